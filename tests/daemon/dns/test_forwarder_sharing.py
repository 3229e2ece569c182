"""What questions, clients and times have to do with each other: shared questions and places, kept answers, loops."""

import asyncio

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from asked_forwarder import CLIENT, ask, at_rest, forward, forwarding, query
from lab.patience import LIMIT
from upstream_server import answer, refusing, serving, slow

from overlayd._fast.dnscache import Cache, key_of
from overlayd.daemon.dns import exchange, loops
from overlayd.daemon.dns import forwarder as module

pytestmark = pytest.mark.usefixtures("quick", "closed")


async def test_forged_clients_of_one_service_do_not_take_the_places_of_another(monkeypatch):
    monkeypatch.setattr(module, "IN_FLIGHT", 16)
    async with serving(lambda asked: [] if b"nobody" in asked else [answer(asked)]) as server:
        forwarder = forwarding(lambda: [server.upstream])
        flood = [
            forward(forwarder, query(f"nobody{number}.example.org").to_wire(), "web", bytes([10, 200, 1, number % 8]))
            for number in range(100)
        ]
        for ingress in ("db", "web"):
            for number in range(20):
                message = query(f"n{number}.{ingress}.example.org").to_wire()
                assert dns.message.from_wire(await forward(forwarder, message, ingress)).answer
        displaced = [dns.message.from_wire(each.result()) for each in flood if each.done()]
        assert len(displaced) >= 84 and all("too many" in each.options[0].text for each in displaced)
        assert len(forwarder._asked) <= 16
        await asyncio.wait(flood)
        assert not forwarder._asked and not len(forwarder._shares)


@pytest.mark.usefixtures("patient")
async def test_clients_that_ask_the_same_share_one_question():
    async with serving(slow(0.1)) as server:
        forwarder = forwarding(lambda: [server.upstream])
        asking = [
            asyncio.ensure_future(ask(forwarder, query(name))) for name in ("www.example.org", "WWW.example.ORG") * 20
        ]
        for response in await asyncio.gather(*asking):
            assert response.answer
        assert len(server.asked) == 1
        differing = [query(want_dnssec=True), query(use_edns=-1)]
        await asyncio.gather(*(ask(forwarder, message) for message in differing))
        assert len(server.asked) == 3


# --- What is kept ---


async def test_an_answer_is_kept_until_the_servers_are_others():
    cache = Cache(10, 10_000)
    async with serving() as one, serving() as two:
        servers = [one.upstream]
        forwarder = forwarding(lambda: tuple(servers), cache)
        await ask(forwarder)
        forwarder.follow_servers()
        assert cache.respond(query().to_wire(), False, CLIENT, asyncio.get_running_loop().time())
        servers.append(two.upstream)
        forwarder.follow_servers()
        assert len(cache) == 0


async def test_that_there_is_nothing_is_kept_of_the_first_server_alone():
    """Of another one it is believed only for want of the first, which knows better when it is back."""
    cache, silent = Cache(10, 10_000), [True]
    async with (
        serving(lambda asked: [] if silent else [answer(asked)]) as internal,
        serving(lambda asked: [nothing(asked)]) as public,
    ):
        servers = (internal.upstream, public.upstream)
        forwarder = forwarding(lambda: servers, cache)
        assert (await ask(forwarder)).rcode() == dns.rcode.NXDOMAIN and len(cache) == 0
        silent.clear()
        assert (await ask(forwarder)).answer and len(cache) == 1
        servers = (public.upstream, internal.upstream)
        assert (await ask(forwarder)).rcode() == dns.rcode.NXDOMAIN and len(cache) == 1


def nothing(asked):
    response = dns.message.from_wire(answer(asked, code=dns.rcode.NXDOMAIN))
    response.authority.append(dns.rrset.from_text("example.org.", 60, "IN", "SOA", "a. b. 1 2 3 4 60"))
    return response.to_wire()


async def test_an_answer_of_servers_that_are_no_more_is_not_kept():
    cache = Cache(10, 10_000)
    async with serving(slow(0.1)) as one:
        servers = [one.upstream]
        forwarder = forwarding(lambda: tuple(servers), cache)
        asking = asyncio.ensure_future(ask(forwarder))
        while not one.asked:  # noqa: ASYNC110 -- the server has no event for it
            await asyncio.sleep(0.01)
        servers.clear()
        forwarder.follow_servers()
        assert (await asking).answer and len(cache) == 0


async def test_a_stale_answer_is_better_than_none():
    """After a while for an upstream that may be slow; at once when it is known to be silent, or says that it failed;
    never for a refusal.
    """
    cache = Cache(10, 10_000)
    loop = asyncio.get_running_loop()
    async with serving() as server:
        forwarder = forwarding(lambda: (server.upstream,), cache)
        await ask(forwarder)
        (entry,) = cache.describe(loop.time())
        forwarder._cache = Late(cache, entry[2] + 1)
        server.by_datagram = refusing
        assert (await ask(forwarder)).rcode() == dns.rcode.REFUSED
        server.by_datagram = lambda asked: [answer(asked, code=dns.rcode.SERVFAIL)]
        response = await ask(forwarder)
        assert response.answer[0].ttl == 30 and response.options[0].code == 3
        server.by_datagram = lambda asked: []
        for _ in range(exchange.MISSED):
            began = loop.time()
            response = await ask(forwarder)
            assert response.answer[0].ttl == 30 and response.options[0].code == 3
            assert module.STALE_AFTER * 0.9 < loop.time() - began < exchange.PATIENCE
            assert (await ask(forwarder)).answer, "who comes later does not wait again"
            await at_rest(forwarder)
        began = loop.time()
        assert (await ask(forwarder)).answer and loop.time() - began < module.STALE_AFTER
        server.by_datagram = lambda asked: [answer(asked)]
        await at_rest(forwarder)
        assert (await ask(forwarder)).answer[0].ttl == 60


class Late:
    """A cache as it is some seconds later."""

    def __init__(self, cache, later):
        self._cache, self._later = cache, later
        self.give, self.clear = cache.give, cache.clear

    def put(self, key, answer, now):
        self._cache.put(key, answer, now)

    def stale(self, key, now):
        return self._cache.stale(key, now + self._later)


async def test_what_is_refreshed_is_asked_for_nobody(monkeypatch):
    cache = Cache(10, 10_000)
    async with serving() as server:
        forwarder = forwarding(lambda: (server.upstream,), cache)
        forwarder.follow_servers()
        forwarder.refresh(query().to_wire())
        while not len(cache):  # noqa: ASYNC110 -- nobody is told
            await asyncio.sleep(0.01)
        assert cache.stale(key_of(query().to_wire()), 0.0) and not len(forwarder._shares)
        monkeypatch.setattr(module, "IN_FLIGHT", 0)
        forwarder.refresh(query("other.example.org").to_wire())
        await ask(forwarder)
        assert len(server.asked) == 2


# --- Loops ---


async def test_a_server_that_forwards_to_us_is_named_and_not_asked(monkeypatch, caplog):
    """It sends on what it is asked, to us, and comes back to its senses later."""
    monkeypatch.undo()
    monkeypatch.setattr(loops, "PERIOD", 0.3)
    monkeypatch.setattr(loops, "RETURN", 0.2)

    def looping(asked):
        def send(server, client):
            forwarder.forward(
                asked, "web", CLIENT, lambda said, origin: server.transport.sendto(said, client), stream=False
            )

        return send

    async with serving(looping) as loop, serving() as good:
        servers = [loop.upstream]
        forwarder = forwarding(lambda: servers)
        assert (await ask(forwarder)).rcode() == dns.rcode.SERVFAIL
        assert len(loop.asked) < 12, "nothing is multiplied"
        assert f"DNS upstream {loop.upstream} forwards to this node" in caplog.text
        assert "would forward to this node" in (await ask(forwarder)).options[0].text
        servers.append(good.upstream)
        assert (await ask(forwarder)).answer
        loop.by_datagram = good.by_datagram
        while forwarder.loops.looping:
            assert (await ask(forwarder)).answer
            await asyncio.sleep(0.05)
        assert caplog.text.count("forwards to this node, so") == 1


def by_way_of(forwarder_of):
    """A server that sends on what it is asked to this forwarder, and sends its answers back."""

    def ask_again(asked):
        def send(server, client):
            deliver = lambda said, origin: server.transport.sendto(said, client)  # noqa: E731
            forwarder_of().forward(asked, "web", CLIENT, deliver, stream=False)

        return send

    return ask_again


@pytest.mark.parametrize("late", [False, True], ids=["owes an answer", "answers late"])
async def test_a_server_that_begins_to_loop_is_found_when_a_question_comes_to_nothing(late, monkeypatch, caplog):
    monkeypatch.undo()
    monkeypatch.setattr(loops, "RETURN", 0.2)
    for name in ("AGAIN", "TRY", "PATIENCE"):
        monkeypatch.setattr(exchange, name, getattr(exchange, name) / 10)
    async with serving() as server:
        forwarder = forwarding(lambda: [server.upstream])
        assert (await ask(forwarder)).answer
        server.by_datagram = by_way_of(lambda: forwarder)
        await asyncio.sleep(loops.RETURN)
        for name in ("one", "two"):
            assert (await ask(forwarder, query(f"{name}.example.org"))).rcode() == dns.rcode.SERVFAIL
            if late:
                forwarder._means.silence.heard(server.upstream)
        assert f"DNS upstream {server.upstream} forwards to this node" in caplog.text


async def test_who_waits_for_a_server_that_loops_is_told_so_at_once(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(exchange, "AGAIN", LIMIT)  # whoever waited for the times of an exchange would wait for ever
    async with serving() as server, serving() as good:
        server.by_datagram = by_way_of(lambda: forwarder)
        forwarder = forwarding(lambda: [server.upstream])
        failure = await asyncio.wait_for(ask(forwarder), LIMIT / 2)
        assert failure.options[0].text == f"{server.upstream} would forward to this node again"
        forwarder = forwarding(lambda: [server.upstream, good.upstream])
        assert (await asyncio.wait_for(ask(forwarder), LIMIT / 2)).answer


async def test_two_nodes_that_forward_to_each_other_find_that(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(exchange, "AGAIN", LIMIT)
    async with serving(by_way_of(lambda: two)) as at_two, serving(by_way_of(lambda: one)) as at_one:
        one, two = forwarding(lambda: [at_two.upstream]), forwarding(lambda: [at_one.upstream])
        two.follow_servers()
        failure = await asyncio.wait_for(ask(one), LIMIT / 2)
        assert failure.rcode() == dns.rcode.SERVFAIL
        assert at_two.upstream in one.loops.looping
        assert len(at_two.asked) + len(at_one.asked) < 12, "nothing is multiplied"


async def test_what_is_no_query_is_not_forwarded():
    assert await forward(forwarding(list), b"\0" * 11) == b""
