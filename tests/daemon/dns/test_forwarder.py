"""Forwarding, with real servers on loopback: some of them slow, some dead, some of them liars."""

import asyncio
import itertools
import socket

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from asked_forwarder import CLIENT, ask, forward, forwarding, query
from lab.patience import LIMIT
from upstream_server import answer, refusing, serving, slow

from overlayd._fast.dnscache import Cache
from overlayd.daemon.dns import exchange, upstream_sockets
from overlayd.daemon.dns.upstreams import Upstream

pytestmark = pytest.mark.usefixtures("quick", "closed")


async def test_an_answer_comes_back_as_it_was():
    async with serving() as server:
        forwarder = forwarding(lambda: [server.upstream])
        for _ in range(40):
            assert (await ask(forwarder)).answer[0][0].address == "192.0.2.80"
        ports, ids = {port for _, port in server.asked}, {sent[:2] for sent, _ in server.asked}
        assert 4 < len(ports) <= upstream_sockets.SOCKETS and len(ids) > 30, "by chance"


@pytest.mark.usefixtures("patient")
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


def questions(server):
    """How many different ones it was asked: where it does not answer soon, each is sent once more."""
    return len({datagram[12:] for datagram, _ in server.asked})


async def test_each_question_begins_with_the_first_and_a_silent_one_is_asked_last(dead, monkeypatch):
    monkeypatch.setattr(exchange, "SILENT", 3.0)  # in which a busy machine asks thrice as well
    names = (query(f"n{number}.example.org") for number in itertools.count())
    async with serving(lambda asked: []) as silent, serving() as good:
        forwarder = forwarding(lambda: [dead, silent.upstream, good.upstream])
        for number in range(exchange.MISSED):
            assert (await ask(forwarder, next(names))).answer
            assert (questions(silent), questions(good)) == (number + 1, number + 1)
        assert len(silent.asked) > exchange.MISSED, "a datagram may have been lost"
        for _ in range(3):
            assert (await ask(forwarder, next(names))).answer
        assert questions(silent) == exchange.MISSED, "it is known to be silent"
        await asyncio.sleep(exchange.SILENT)
        await asyncio.gather(*(ask(forwarder, next(names)) for _ in range(5)))
        assert questions(silent) == exchange.MISSED + 1, "one of them tries whether it is back"
        silent.by_datagram = good.by_datagram
        await asyncio.sleep(exchange.SILENT)
        await ask(forwarder, next(names))
        await ask(forwarder, next(names))
        assert questions(silent) == exchange.MISSED + 3, "it is the first again"


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


def nothing(code):
    """Answers of a server that knows of nothing."""
    return lambda asked: [
        answer(asked, code=code) if code else dns.message.make_response(dns.message.from_wire(asked)).to_wire()
    ]


@pytest.mark.parametrize("code", [dns.rcode.NXDOMAIN, dns.rcode.NOERROR])
@pytest.mark.parametrize("stream", [False, True])
async def test_that_there_is_nothing_is_not_believed_of_a_later_server_while_the_first_may_still_answer(code, stream):
    async with serving(slow(1.5 * exchange.TRY)) as internal, serving(nothing(code)) as public, serving() as third:
        servers = [internal.upstream, public.upstream, third.upstream]
        for _ in range(exchange.MISSED + 2):
            forwarder = forwarding(lambda: servers[:2])
            assert (await ask(forwarder, stream=stream)).answer
        assert (await ask(forwarding(lambda: servers[1:]))).rcode() == code, "of the first server it is"
        internal.by_datagram = refusing
        assert not (await ask(forwarder, stream=stream)).answer, "the first has said that it does not know"


async def test_a_slow_server_is_not_a_silent_one():
    """Though another one has answered before it, time and again."""
    slow_for_some = lambda asked: slow(1.2 * exchange.TRY)(asked) if b"outside" in asked else [answer(asked)]  # noqa: E731
    outside_alone = lambda asked: [answer(asked, code=0 if b"outside" in asked else dns.rcode.NXDOMAIN)]  # noqa: E731
    async with serving(slow_for_some) as internal, serving(outside_alone) as public:
        servers = [internal.upstream, public.upstream]
        forwarder = forwarding(lambda: servers)
        for number in range(exchange.MISSED + 2):
            assert (await ask(forwarder, query(f"n{number}.outside.example"))).answer
        await asyncio.sleep(exchange.TRY)
        assert (await ask(forwarder, query("intranet.example"))).answer
        assert [state for _, state in forwarder.upstreams()] == ["ok", "ok"]


async def test_that_there_is_nothing_is_believed_when_those_before_are_known_to_be_silent_or_had_their_time(dead):
    async with serving(lambda asked: []) as silent, serving(nothing(dns.rcode.NXDOMAIN)) as public:
        forwarder = forwarding(lambda: [dead, silent.upstream, public.upstream])
        for number in range(exchange.MISSED + 2):
            began = asyncio.get_running_loop().time()
            assert (await ask(forwarder)).rcode() == dns.rcode.NXDOMAIN
            waited = asyncio.get_running_loop().time() - began >= exchange.PATIENCE
            assert waited == (number < exchange.MISSED)


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


async def test_a_server_that_datagrams_do_not_reach_is_asked_by_connections_at_once_until_they_do():
    reached = []
    by_datagram = lambda asked: [answer(asked)] if reached else []  # noqa: E731
    async with serving(by_datagram, lambda asked: [framed(answer(asked))]) as server:
        forwarder = forwarding(lambda: [server.upstream])
        assert (await ask(forwarder)).answer and len(server.asked) > 1
        server.asked.clear()
        for number in range(3):
            assert (await ask(forwarder, query(f"n{number}.example.org"))).answer
        assert len(server.asked) == 3, "no datagram was waited for"
        reached.append(True)
        server.streams, server.by_stream = 0, lambda asked: []
        for number in range(3):
            assert (await ask(forwarder, query(f"m{number}.example.org"))).answer
        assert server.streams <= 1


async def test_where_queries_with_edns_are_dropped_they_go_without():
    """But for who asks for signatures, which then would be missing."""
    deaf = lambda asked: [answer(asked)] if dns.message.from_wire(asked).edns == -1 else []  # noqa: E731
    async with serving(deaf) as server:
        assert (await ask(forwarding(lambda: [server.upstream]))).answer
        signed = query(want_dnssec=True)
        assert (await ask(forwarding(lambda: [server.upstream]), signed)).rcode() == dns.rcode.SERVFAIL


@pytest.mark.parametrize("code", [dns.rcode.SERVFAIL, dns.rcode.REFUSED])
async def test_a_refusal_without_the_question_is_one(code, monkeypatch):
    monkeypatch.setattr(exchange, "AGAIN", LIMIT)
    headless = lambda asked: [asked[:2] + bytes([0x81, 0x80 | code]) + bytes(8)]  # noqa: E731
    async with serving(headless) as refusing, serving() as good:
        assert (await ask(forwarding(lambda: [refusing.upstream, good.upstream]))).answer
        assert len(refusing.asked) == 1


async def test_an_answer_that_is_cut_on_the_way_is_fetched_by_a_connection(patient):
    async with serving(lambda asked: [answer(asked)[:-3]], lambda asked: [framed(answer(asked))]) as server:
        assert (await ask(forwarding(lambda: [server.upstream]))).answer
        assert len(server.asked) == 1


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
