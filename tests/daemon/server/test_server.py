"""The server on a real Unix socket and uvloop, with handlers that answer when a test says so.

Its contract is bytes and their order: who is answered, when, and what a client can do to another one.  What requests
mean is the business of the handlers' own tests.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import struct

import pytest
from lab.patience import until_async as until
from serving import (
    ME,
    Fake,
    change,
    connect,
    json_frame,
    payload,
    probe,
    serving,
    settle,
    status,
    told,
)

from overlayd import wire
from overlayd.daemon.handlers import Handlers
from overlayd.daemon.server.connection import Limits
from overlayd.proto import envelope, identity
from overlayd.proto.envelope import Frame

# --- What a bad frame gets ---


@pytest.mark.parametrize(
    ("data", "logged"),
    [
        pytest.param(struct.pack("<I", 8 * 1024 * 1024 + 2), "frame too large", id="too-large"),
        pytest.param(struct.pack("<I", 8 * 1024 * 1024 + 1) + b"{", "frame too large", id="starts-like-an-envelope"),
        pytest.param(json_frame(b"not json"), "not a frame", id="not-json"),
        pytest.param(json_frame(b"[1, 2]"), "not a frame", id="not-an-object"),
        pytest.param(json_frame(b""), "not a frame", id="empty"),
        pytest.param(json_frame(b"\xff{}"), "not a frame", id="not-utf8"),
        pytest.param(json_frame(b'{"frame":"request","request":{"op":"status"}}'), "not a frame", id="no-id"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", "frame too large", id="http"),
        pytest.param(b"\x01\x01\x00\x00\x01" + bytes(100), "frame too large", id="large-envelope"),
        pytest.param(b"\x01\x02\x00\x00\x00\x00\x00", "field number 0", id="bad-envelope"),
        pytest.param(
            envelope.encode(Frame(version=1, protocol=0xAD01)), "0xad01 is the broker's own", id="broker-protocol"
        ),
        pytest.param(envelope.encode(Frame(version=1, protocol=0x7001)), "0x7001 is not served here", id="protocol"),
        pytest.param(
            envelope.encode(Frame(version=1, protocol=0xB232, payload=b"short")), "nonce of 5 bytes", id="probe"
        ),
    ],
)
async def test_what_cannot_be_trusted_closes_its_connection_alone(
    path: str, data: bytes, logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(path), await connect(path) as bystander, await connect(path) as client:
        client.send(status(1), data)
        assert await client.answers(1) == [(1, "status")]  # what came before it is answered
        with pytest.raises(EOFError):
            await client.receive()
        bystander.send(status(2))
        assert await bystander.answers(1) == [(2, "status")]
    [line] = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert logged in line
    assert f"pid {os.getpid()} uid {os.getuid()} gid {os.getgid()}" in line


async def test_answers_that_came_before_a_bad_frame_are_still_delivered(path: str) -> None:
    handlers = Fake()
    handlers.status = b'{"result":"status","x":"' + b"x" * 400_000 + b'"}'  # more than a socket's buffer takes
    async with serving(path, handlers) as server, await connect(path) as client:
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        client.send(status(1), json_frame(b"not json"))
        await until(lambda: any(connection.closed_since for connection in server.connections))
        await settle()
        client.reader._transport.resume_reading()  # type: ignore[attr-defined]
        assert [told(one) for one in await client.receive_all()] == [(1, "status")]


async def test_a_bad_request_is_answered_and_others_are_ignored(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(path), await connect(path) as client:
        client.send(
            json_frame(b'{"frame":"request","id":1,"request":{"op":"no_such_op"}}'),
            json_frame(b'{"frame":"request","id":2,"request":{"op":"release_ip"}}'),
            json_frame(b'{"frame":"response","id":3,"response":{"result":"ok"}}'),
            json_frame(b'{"frame":"event","event":"peer_health_changed","pubkey":"k","healthy":true}'),
            status(2**64 - 1),
        )
        first, second, third = await client.answers(3)
    assert (first[0], "no_such_op" in first[1]) == (1, True)
    assert (second[0], "request.ip" in second[1]) == (2, True)
    assert third == (2**64 - 1, "status")
    ignored = [record.getMessage() for record in caplog.records if "ignored" in record.getMessage()]
    assert len(ignored) == 2


async def test_an_error_inside_any_handler_is_an_answer(path: str) -> None:
    """The real dispatch table, over a daemon that is broken everywhere."""
    async with serving(path, Handlers(None)), await connect(path) as client:  # type: ignore[arg-type]
        client.send(status(1), wire.encode_request(2, wire.SetLocalNodeId(7)), status(3))
        for id, said in await client.answers(3):
            assert said.startswith("internal error: AttributeError"), id


async def test_without_probes_only_the_json_wire_is_served(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(path) as server:
        server.mux = None
        for message in (probe(), payload(1)):
            async with await connect(path) as client:
                client.send(status(1), message, status(2))
                assert [told(one) for one in await client.receive_all()] == [(1, "status")]
    assert caplog.text.count("--no-probe") == 2


# --- Many requests, many clients ---


async def test_a_thousand_requests_in_one_write_are_answered_in_order(path: str) -> None:
    async with serving(path), await connect(path) as client:
        client.send(*(status(id) for id in range(1000)))
        assert await client.answers(1000) == [(id, "status") for id in range(1000)]


async def test_two_hundred_clients_at_once(path: str) -> None:
    async def ask(number: int) -> list[tuple[int, str]]:
        async with await connect(path) as client:
            client.send(*(status(number * 100 + turn) for turn in range(20)))
            return await client.answers(20)

    async with serving(path):
        answers = await asyncio.gather(*map(ask, range(200)))
    assert answers == [[(number * 100 + turn, "status") for turn in range(20)] for number in range(200)]


async def test_a_large_frame_and_a_frame_byte_by_byte(path: str) -> None:
    largest = b'{"frame":"request","id":1,"request":{"op":"status"}}'.ljust(8 * 1024 * 1024)
    async with serving(path), await connect(path) as client, await connect(path) as slow:
        client.send(json_frame(largest))
        for byte in status(1) + probe() + payload(2) + status(3):
            slow.send(bytes([byte]))
            await asyncio.sleep(0)
        assert await client.answers(1) == [(1, "status")]
        first, proof, *rest = [await slow.receive() for _ in range(4)]
        assert [told(one) for one in (first, *rest)] == [(1, "status"), (2, "status"), (3, "status")]
        assert isinstance(proof, Frame)
        assert proof.protocol == envelope.PROTOCOL_PROBE


async def test_floods_do_not_keep_a_quiet_client_waiting(path: str) -> None:
    """Not timed: what is served in between is counted, with one turn for each look at the sockets."""
    handlers = Fake()
    floods, limits = 32, Limits(turn=16, slice=0.0)
    flood = b"".join(map(status, range(500)))
    async with serving(path, handlers, limits=limits), contextlib.AsyncExitStack() as stack:
        quiet = await stack.enter_async_context(await connect(path))
        clients = [await stack.enter_async_context(await connect(path)) for _ in range(floods)]
        readers = [asyncio.create_task(client.answers(500)) for client in clients]
        for client in clients:
            client.send(flood)
        await until(lambda: handlers.reads > floods * limits.turn)
        for _ in range(5):
            before = handlers.reads
            quiet.send(probe())
            assert isinstance(await quiet.receive(), Frame)
            assert handlers.reads - before <= 8 * limits.turn  # answered as it is read: a few looks at the sockets
            before = handlers.reads
            quiet.send(status(1))
            assert told(await quiet.receive()) == (1, "status")
            assert handlers.reads - before <= (floods + 8) * limits.turn  # after a turn of everybody else
        assert handlers.reads < floods * 500  # the floods were there all the time
        for reader in readers:
            assert len(await reader) == 500


# --- Order ---


async def test_a_quick_answer_waits_for_the_changes_before_it_and_for_nothing_else(path: str) -> None:
    handlers = Fake()
    async with serving(path, handlers), await connect(path) as client, await connect(path) as other:
        client.send(status(1), change(2, "a"), status(3), change(4, "b"), status(5))
        assert await client.answers(1) == [(1, "status")]
        await until(lambda: handlers.begun == ["a", "b"])
        other.send(status(9))
        assert await other.answers(1) == [(9, "status")]
        reads = handlers.reads
        handlers.open("b")
        assert await client.answers(1) == [(4, "b")]
        assert handlers.reads == reads  # 3 and 5 read the state after change a, not before
        handlers.open("a")
        assert await client.answers(3) == [(2, "a"), (3, "status"), (5, "status")]


async def test_an_answer_that_takes_long_is_given_in_its_turn(path: str) -> None:
    class Slow(Fake):
        async def run(self, request: wire.Request) -> wire.Response | bytes:
            if not isinstance(request, wire.GetStatus):
                return await super().run(request)
            assert not self.reads or "b" in self.done
            await settle()
            self.reads += 1
            return self.status

        def read(self, request: wire.Request) -> bytes | None:
            return self.status if self.reads > 1 else None  # type: ignore[return-value]

    handlers = Slow()
    async with serving(path, handlers) as server, await connect(path) as client:
        client.send(status(1), change(2, "b"), status(3), payload(4), status(5))
        await until(lambda: handlers.begun == ["b"])
        assert await client.answers(1) == [(1, "status")]
        handlers.open("b")
        assert await client.answers(4) == [(2, "b"), (3, "status"), (4, "status"), (5, "status")]
        await until(lambda: server.buffered == 0)


@pytest.mark.parametrize(("length", "most"), [(1, 16), (1000, 9)])
async def test_many_changes_begin_in_turns_between_which_others_are_answered(path: str, length: int, most: int) -> None:
    """What a change does at once, such as reading its addresses, adds up."""
    handlers, seen = Fake(), [0]
    async with serving(path, handlers), await connect(path) as client:
        client.send(*(change(number, "x" * length) for number in range(400)))
        while seen[-1] < 400:
            await asyncio.sleep(0)
            seen.append(len(handlers.begun))
        handlers.open("x" * length)
        assert sorted(id for id, _ in await client.answers(400)) == [*range(400)]
    steps = [after - before for before, after in itertools.pairwise(seen)]
    assert 1 < max(steps) <= most


async def test_later_changes_do_not_starve_a_quick_answer(path: str) -> None:
    handlers = Fake()
    async with serving(path, handlers), await connect(path) as client:
        client.send(change(1, "a"), status(2), change(3, "never"))
        await until(lambda: handlers.begun == ["a", "never"])
        client.send(status(4), change(5, "never"))
        handlers.open("a")
        assert await client.answers(2) == [(1, "a"), (2, "status")]
        handlers.open("never")
        assert sorted(await client.answers(3)) == [(3, "never"), (4, "status"), (5, "never")]


async def test_a_refusal_waits_its_turn_too(path: str) -> None:
    handlers = Fake()
    async with serving(path, handlers), await connect(path) as client:
        client.send(change(1, "a"), json_frame(b'{"frame":"request","id":2,"request":{"op":"release_ip"}}'))
        await until(lambda: handlers.begun == ["a"])
        handlers.open("a")
        assert [id for id, _ in await client.answers(2)] == [1, 2]


async def test_a_probe_is_answered_while_everything_waits(path: str) -> None:
    handlers = Fake()
    async with serving(path, handlers), await connect(path) as client:
        client.send(change(1, "a"), status(2), payload(3), probe(b"n" * 32))
        reply = await client.receive()
        assert isinstance(reply, Frame)
        assert identity.parse_probe_reply(reply, identity.probe_request(b"n" * 32)) == ME
        handlers.open("a")
        assert await client.answers(3) == [(1, "a"), (2, "status"), (3, "status")]
