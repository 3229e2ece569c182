"""Forwarding, with real servers on loopback: some of them slow, some dead, some of them liars."""

import asyncio
import socket

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from upstream_server import answer, serving

from overlayd._fast.dnscache import Cache, key_of
from overlayd.daemon.dns import exchange, loops, upstream_sockets
from overlayd.daemon.dns import forwarder as module
from overlayd.daemon.dns.forwarder import Forwarder
from overlayd.daemon.dns.upstreams import Upstream


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A fifth of the times, and no marks but in the tests of loops."""
    for name in ("RESTART", "AGAIN", "TRY", "PATIENCE", "SILENT"):
        monkeypatch.setattr(exchange, name, getattr(exchange, name) / 5)
    monkeypatch.setattr(module, "STALE_AFTER", module.STALE_AFTER / 5)
    monkeypatch.setattr(loops.Loops, "check", lambda self, *_: None)


@pytest.fixture
def dead():
    """A port where nobody listens."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    return Upstream("127.0.0.1", port)


CLIENT = bytes([10, 200, 1, 9])


made = []


def forwarding(servers, cache=None):
    made.append(Forwarder(servers, Cache(0, 0) if cache is None else cache))
    return made[-1]


@pytest.fixture(autouse=True)
async def closed():
    """Every forwarder, after its test, within the test's loop."""
    yield
    while made:
        made.pop().close()


def query(name="www.example.org", **options):
    return dns.message.make_query(name, "A", **{"use_edns": 0, **options})


def forward(forwarder, message, ingress="web", client=CLIENT, *, stream=False):
    """The response, in the future."""
    delivered = asyncio.get_running_loop().create_future()
    forwarder.follow_servers()
    forwarder.forward(message, ingress, client, lambda response, origin: delivered.set_result(response), stream=stream)
    return delivered


async def ask(forwarder, message=None, *, stream=False):
    message = message or query()
    response = dns.message.from_wire(await forward(forwarder, message.to_wire(), stream=stream))
    assert message.is_response(response)
    return response


async def test_an_answer_comes_back_as_it_was():
    async with serving() as server:
        forwarder = forwarding(lambda: [server.upstream])
        for _ in range(40):
            assert (await ask(forwarder)).answer[0][0].address == "192.0.2.80"
        ports, ids = {port for _, port in server.asked}, {sent[:2] for sent, _ in server.asked}
        assert 4 < len(ports) <= upstream_sockets.SOCKETS and len(ids) > 30, "by chance"


async def at_rest(forwarder):
    """Nothing is in flight any more."""
    while forwarder._asked:  # noqa: ASYNC110 -- nobody is told
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("limit", ["LIFETIME", "QUERIES"])
async def test_no_socket_is_used_for_long_and_none_is_closed_that_waits_for_an_answer(monkeypatch, limit):
    monkeypatch.setattr(upstream_sockets, limit, {"LIFETIME": 0.0, "QUERIES": 1}[limit])
    async with serving(slow(0.05)) as server:
        forwarder = forwarding(lambda: [server.upstream])
        names = [query(f"n{number}.example.org") for number in range(40)]
        for response in await asyncio.gather(*(ask(forwarder, name) for name in names)):
            assert response.answer
        assert len({port for _, port in server.asked}) == 40
        assert len(forwarder._means.sockets._open) <= upstream_sockets.SOCKETS


def refusing(asked):
    return [answer(asked, code=dns.rcode.REFUSED)]


def slow(seconds):
    """Answers of a server that takes its time."""

    def later(asked):
        def send(server, client):
            asyncio.get_running_loop().call_later(seconds, server.transport.sendto, answer(asked), client)

        return send

    return later


async def test_only_the_answer_to_our_question_counts():
    def liar(asked):
        id = int.from_bytes(asked[:2], "big")
        other = query("www.example.com")
        other.id = id
        return [
            b"",
            asked,
            b"\xff" * 40,
            answer(asked, id=id ^ 1, code=dns.rcode.NXDOMAIN),
            answer(other.to_wire(), code=dns.rcode.NXDOMAIN),
            answer(asked)[:20],
            answer(asked),
        ]

    async with serving(liar) as server:
        assert (await ask(forwarding(lambda: [server.upstream]))).rcode() == dns.rcode.NOERROR


async def test_each_question_begins_with_the_first_and_a_silent_one_is_asked_last(dead):
    async with serving(lambda asked: []) as silent, serving() as good:
        forwarder = forwarding(lambda: [dead, silent.upstream, good.upstream])
        for number in range(exchange.MISSED):
            assert (await ask(forwarder)).answer
            assert (len(silent.asked), len(good.asked)) == (2 * number + 2, number + 1)
        for _ in range(3):
            assert (await ask(forwarder)).answer
        assert len(silent.asked) == 2 * exchange.MISSED, "it is known to be silent"
        await asyncio.sleep(exchange.SILENT)
        asking = [asyncio.ensure_future(ask(forwarder, query(f"n{number}.example.org"))) for number in range(5)]
        await asyncio.gather(*asking)
        assert len(silent.asked) == 2 * exchange.MISSED + 2, "one of them tries whether it is back"
        silent.by_datagram = good.by_datagram
        await asyncio.sleep(exchange.SILENT)
        await ask(forwarder)
        await ask(forwarder)
        assert len(silent.asked) == 2 * exchange.MISSED + 4, "it is the first again"


async def test_one_lost_datagram_and_one_broken_domain_change_nothing():
    def first(asked):
        if b"lost" in asked:
            return []
        return [answer(asked, code=dns.rcode.SERVFAIL if b"broken" in asked else 0)]

    async with serving(first) as internal, serving(lambda asked: [answer(asked, code=dns.rcode.NXDOMAIN)]) as public:
        forwarder = forwarding(lambda: [internal.upstream, public.upstream])
        for name in ("lost.example.org", "broken.example.org"):
            assert (await ask(forwarder, query(name))).rcode() == dns.rcode.NXDOMAIN
            assert (await ask(forwarder)).answer


async def test_a_datagram_that_is_lost_is_sent_again():
    lost = iter([[]])
    async with serving(lambda asked: next(lost, [answer(asked)])) as server:
        assert (await ask(forwarding(lambda: [server.upstream]))).answer
        assert len(server.asked) == 2


async def test_a_slow_servers_answer_is_taken_while_others_are_asked():
    """The others only refuse; and with none at all."""
    async with serving(slow(2.5 * exchange.TRY)) as late, serving(refusing) as refuser:
        for servers in ([late.upstream], [late.upstream, refuser.upstream], [refuser.upstream, late.upstream]):
            assert (await ask(forwarding(lambda servers=servers: servers))).answer


@pytest.mark.parametrize("headless", [False, True])
@pytest.mark.parametrize("code", [dns.rcode.FORMERR, dns.rcode.NOTIMP])
async def test_a_server_that_does_not_know_edns_is_asked_without(headless, code):
    def old(asked):
        if dns.message.from_wire(asked).edns == -1:
            return [answer(asked)]
        return [asked[:2] + bytes([0x81, 0x80 | code]) + bytes(8) if headless else answer(asked, code=code)]

    async with serving(old) as server:
        assert (await ask(forwarding(lambda: [server.upstream]))).answer
        assert len(server.asked) == 2
        assert (await ask(forwarding(lambda: [server.upstream]), query(use_edns=-1))).answer
        assert len(server.asked) == 3


async def test_a_server_that_takes_no_query_at_all_is_passed_over():
    headless = lambda asked: [asked[:2] + bytes([0x81, 0x81]) + bytes(8)]  # noqa: E731
    async with serving(headless) as broken, serving() as good:
        assert (await ask(forwarding(lambda: [broken.upstream, good.upstream]))).answer
        assert (await ask(forwarding(lambda: [broken.upstream]))).rcode() == dns.rcode.SERVFAIL


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("dropped", [False, True], ids=["nobody listens", "datagrams are dropped"])
async def test_a_server_that_takes_connections_only(stream, dropped):
    async with serving(lambda asked: [], lambda asked: [framed(answer(asked))]) as server:
        if not dropped:
            server.transport.close()
        assert (await ask(forwarding(lambda: [server.upstream]), stream=stream)).answer
        assert server.streams == 1


async def test_an_answer_that_is_damaged_is_none():
    async with serving(lambda asked: [answer(asked)[:-3], answer(asked)]) as server:
        assert (await ask(forwarding(lambda: [server.upstream]))).answer


async def test_a_refusal_is_passed_on_when_nobody_does_better(dead):
    async with serving(lambda asked: [answer(asked, code=dns.rcode.REFUSED)]) as refusing, serving() as good:
        assert (await ask(forwarding(lambda: [refusing.upstream, good.upstream]))).answer
        assert (await ask(forwarding(lambda: [dead, refusing.upstream]))).rcode() == dns.rcode.REFUSED
        assert len(refusing.asked) == 2


@pytest.mark.parametrize("silent", [False, True])
async def test_nobody_answers(dead, silent):
    async with serving(lambda asked: []) as server:
        response = await ask(forwarding(lambda: [server.upstream if silent else dead]))
        assert response.rcode() == dns.rcode.SERVFAIL
        (error,) = response.options
        assert error.code == 22 and error.text.startswith("no answer from 127.0.0.1")


async def test_servers_that_are_started_anew_are_waited_for(dead):
    """As a plain forwarder's clients ask again; but once, and not for what is stale."""
    forwarder = forwarding(lambda: [dead])
    asking = asyncio.ensure_future(ask(forwarder))
    while forwarder.upstreams() != [(dead, "silent")]:  # noqa: ASYNC110 -- nobody is told
        await asyncio.sleep(0.005)
    assert not asking.done()
    async with serving(port=dead.port):
        assert (await asking).answer and forwarder.upstreams() == [(dead, "ok")]


async def test_a_server_where_nobody_listens_is_tried_by_datagram_alone_for_a_while(dead, monkeypatch):
    async with serving() as good:
        connected = []
        connect = asyncio.open_connection
        monkeypatch.setattr(asyncio, "open_connection", lambda *to: connected.append(to) or connect(*to))
        forwarder = forwarding(lambda: [dead, good.upstream])
        for number in range(5):
            assert (await ask(forwarder, query(f"n{number}.example.org"))).answer
        assert connected == [tuple(dead)] and len(good.asked) == 5
        async with serving(port=dead.port) as back:
            assert (await ask(forwarder)).answer and len(back.asked) == 1, "the first again, at once"
        await asyncio.sleep(exchange.SILENT)
        assert (await ask(forwarder)).answer and connected == 2 * [tuple(dead)]


async def test_there_is_nobody_to_ask():
    coming = forward(forwarding(list), query().to_wire())
    assert coming.done(), "and so nobody to wait for"
    response = dns.message.from_wire(coming.result())
    assert response.rcode() == dns.rcode.SERVFAIL and "knows no server" in response.options[0].text


def framed(message):
    return len(message).to_bytes(2, "big") + message


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_truncated_is_fetched_whole_also_for_who_would_not_come_by_tcp(stream):
    async with serving(
        lambda asked: [answer(asked, truncated=True)],
        lambda asked: [framed(answer(asked))[:1], framed(answer(asked))[1:]],
    ) as server:
        whole = await ask(forwarding(lambda: [server.upstream]), stream=stream)
        assert whole.answer and not whole.flags & dns.flags.TC and server.streams == 1


async def test_what_does_not_fit_a_datagram_is_truncated_and_waits_for_the_client_in_the_cache():
    def long(asked):
        response = dns.message.from_wire(answer(asked))
        response.answer = [
            dns.rrset.from_text(response.question[0].name, 60, "IN", "A", *(f"192.0.2.{n}" for n in range(100)))
        ]
        return [framed(response.to_wire())]

    async with serving(lambda asked: [answer(asked, truncated=True)], long) as server:
        cache = Cache(10, 100_000)
        forwarder = forwarding(lambda: [server.upstream], cache)
        assert (await ask(forwarder)).flags & dns.flags.TC
        kept = cache.respond(query().to_wire(), True, CLIENT, asyncio.get_running_loop().time())
        assert len(dns.message.from_wire(kept).answer[0]) == 100 and server.streams == 1


@pytest.mark.parametrize("streams", [lambda asked: [], lambda asked: [b"\1\0abc"]])
async def test_without_a_connection_truncated_will_do_for_who_came_by_datagram(streams):
    async with serving(lambda asked: [answer(asked, truncated=True)], streams) as server:
        response = await ask(forwarding(lambda: [server.upstream]))
        assert response.rcode() == dns.rcode.NOERROR and response.flags & dns.flags.TC and not response.answer


async def test_truncated_will_do_when_connections_are_dropped():
    """The server's connections are accepted by the kernel, and never answered."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]

        class Truncating(asyncio.DatagramProtocol):
            def connection_made(self, transport):
                self.transport = transport

            def datagram_received(self, data, address):
                self.transport.sendto(answer(data, truncated=True), address)

        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(Truncating, local_addr=("127.0.0.1", port))
        forwarder = forwarding(lambda: [Upstream("127.0.0.1", port)])
        response = await ask(forwarder)
        assert response.flags & dns.flags.TC and forwarder.upstreams()[0][1] == "ok"
        transport.close()


@pytest.mark.parametrize(
    "bad",
    [
        lambda asked: [],
        lambda asked: [b"\0"],
        lambda asked: [b"\1\0abc"],
        lambda asked: [framed(answer(asked, id=0)), framed(b"")],
    ],
)
async def test_a_stream_that_breaks_off(bad, monkeypatch):
    monkeypatch.setattr(exchange.secrets, "randbits", lambda bits: 77)
    async with serving(lambda asked: [answer(asked, truncated=True)], bad) as server:
        assert (await ask(forwarding(lambda: [server.upstream]), stream=True)).rcode() == dns.rcode.SERVFAIL


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
    """After a while for an upstream that may be slow; at once when it is known to be silent; never for a refusal."""
    cache = Cache(10, 10_000)
    loop = asyncio.get_running_loop()
    async with serving() as server:
        forwarder = forwarding(lambda: (server.upstream,), cache)
        await ask(forwarder)
        (entry,) = cache.describe(loop.time())
        forwarder._cache = Late(cache, entry[2] + 1)
        server.by_datagram = refusing
        assert (await ask(forwarder)).rcode() == dns.rcode.REFUSED
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


async def test_a_server_that_begins_to_loop_is_found_when_it_owes_an_answer(monkeypatch, caplog):
    monkeypatch.undo()
    monkeypatch.setattr(loops, "RETURN", 0.2)
    for name in ("AGAIN", "TRY", "PATIENCE"):
        monkeypatch.setattr(exchange, name, getattr(exchange, name) / 10)

    def looping(asked):
        def send(server, client):
            deliver = lambda said, origin: server.transport.sendto(said, client)  # noqa: E731
            forwarder.forward(asked, "web", CLIENT, deliver, stream=False)

        return send

    async with serving() as server:
        forwarder = forwarding(lambda: [server.upstream])
        assert (await ask(forwarder)).answer
        server.by_datagram = looping
        await asyncio.sleep(loops.RETURN)
        for name in ("one", "two"):
            assert (await ask(forwarder, query(f"{name}.example.org"))).rcode() == dns.rcode.SERVFAIL
        assert f"DNS upstream {server.upstream} forwards to this node" in caplog.text


async def test_what_is_no_query_is_not_forwarded():
    assert await forward(forwarding(list), b"\0" * 11) == b""
