"""Forwarding, with real servers on loopback: some of them slow, some dead, some of them liars."""

import asyncio
import socket

import dns.flags
import dns.message
import dns.rcode
import pytest
from upstream_server import answer, serving

from overlayd.daemon.dns import forwarder as module
from overlayd.daemon.dns.forwarder import Forwarder
from overlayd.daemon.dns.upstreams import Upstream


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "TRY", 0.3)
    monkeypatch.setattr(module, "PATIENCE", 1.2)


@pytest.fixture
def dead():
    """A port where nobody listens."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    return Upstream("127.0.0.1", port)


def forwarding(servers):
    return Forwarder(servers, asyncio.ensure_future)


def query(name="www.example.org", **options):
    return dns.message.make_query(name, "A", **{"use_edns": 0, **options})


def forward(forwarder, message, client, *, stream=False):
    """The response, in the future."""
    delivered = asyncio.get_running_loop().create_future()
    forwarder.forward(message, client, delivered.set_result, stream=stream)
    return delivered


async def ask(forwarder, message=None, *, stream=False):
    message = message or query()
    response = dns.message.from_wire(await forward(forwarder, message.to_wire(), "client", stream=stream))
    assert message.is_response(response)
    return response


async def test_an_answer_comes_back_as_it_was():
    async with serving() as server:
        forwarder = forwarding(lambda: [server.upstream])
        for _ in range(8):
            assert (await ask(forwarder)).answer[0][0].address == "192.0.2.80"
        ports, ids = {port for _, port in server.asked}, {sent[:2] for sent, _ in server.asked}
        assert len(ports) > 4 and len(ids) > 4, "a socket and an id of its own"


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


async def test_the_next_one_is_asked_and_then_the_first(dead):
    async with serving(lambda asked: []) as silent, serving() as good:
        forwarder = forwarding(lambda: [dead, silent.upstream, good.upstream])
        for _ in range(3):
            assert (await ask(forwarder)).answer
        assert len(silent.asked) == 1 and len(good.asked) == 3


async def test_a_datagram_that_is_lost_is_sent_again():
    lost = iter([[]])
    async with serving(lambda asked: next(lost, [answer(asked)])) as server:
        assert (await ask(forwarding(lambda: [server.upstream]))).answer
        assert len(server.asked) == 2


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


async def test_there_is_nobody_to_ask():
    response = await ask(forwarding(list))
    assert response.rcode() == dns.rcode.SERVFAIL and "knows no server" in response.options[0].text


def framed(message):
    return len(message).to_bytes(2, "big") + message


async def test_a_long_answer_is_fetched_for_who_came_by_tcp():
    async with serving(
        lambda asked: [answer(asked, truncated=True)],
        lambda asked: [framed(answer(asked))[:1], framed(answer(asked))[1:]],
    ) as server:
        forwarder = forwarding(lambda: [server.upstream])
        by_datagram = await ask(forwarder)
        assert by_datagram.flags & dns.flags.TC and not by_datagram.answer and server.streams == 0
        by_stream = await ask(forwarder, stream=True)
        assert by_stream.answer and not by_stream.flags & dns.flags.TC and server.streams == 1


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
    monkeypatch.setattr(module.secrets, "randbits", lambda bits: 77)
    async with serving(lambda asked: [answer(asked, truncated=True)], bad) as server:
        assert (await ask(forwarding(lambda: [server.upstream]), stream=True)).rcode() == dns.rcode.SERVFAIL


async def test_what_waits_is_bounded_and_counted_by_client(monkeypatch):
    monkeypatch.setattr(module, "OF_CLIENT", 2)
    monkeypatch.setattr(module, "IN_FLIGHT", 3)
    async with serving(lambda asked: []) as server:
        forwarder = forwarding(lambda: [server.upstream])
        message = query().to_wire()
        waiting = [forward(forwarder, message, client) for client in "aaabb"]
        done, _ = await asyncio.wait(waiting, timeout=0.1)
        assert {waiting.index(task) for task in done} == {2, 4}
        for task in done:
            assert "too many" in dns.message.from_wire(task.result()).options[0].text
        await asyncio.wait(waiting)
    async with serving() as server:
        forwarder._servers = lambda: [server.upstream]
        assert (await ask(forwarder)).answer


async def test_what_is_no_query_is_not_forwarded():
    assert await forward(forwarding(list), b"\0" * 11, "client") == b""
