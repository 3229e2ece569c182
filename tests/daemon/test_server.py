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
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec
import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overlayd import wire
from overlayd.daemon import endpoint
from overlayd.daemon.connection import LIMITS, Limits
from overlayd.daemon.handlers import Handlers
from overlayd.daemon.server import Server
from overlayd.proto import envelope, identity
from overlayd.proto.envelope import Frame
from overlayd.proto.identity import DaemonProcess
from overlayd.proto.mux import EndpointMux, json_wire

pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture")

PROTOCOL = 0xF0DE
PATIENCE = 20  # seconds until a test gives up; nothing takes that long
STATUS = wire.encode_response_object(wire.Status(peer_count=0, service_count=0))


@pytest.fixture
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    return uvloop.EventLoopPolicy()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "s")


class Fake:
    """`status` is quick; allocate_ip is a change that is done when its service's gate opens, and says its name."""

    def __init__(self) -> None:
        self.status = STATUS
        self.reads = 0
        self.begun: list[str] = []
        self.done: list[str] = []
        self._gates: dict[str, asyncio.Event] = {}

    def open(self, name: str) -> None:
        self._gates.setdefault(name, asyncio.Event()).set()

    def is_quick(self, request: wire.Request) -> bool:
        return isinstance(request, wire.GetStatus)

    def read(self, request: wire.Request) -> bytes:
        self.reads += 1
        return self.status

    async def run(self, request: wire.Request) -> wire.Response:
        assert isinstance(request, wire.AllocateIp)
        self.begun.append(request.service)
        await self._gates.setdefault(request.service, asyncio.Event()).wait()
        self.done.append(request.service)
        return wire.Ip(request.service)


ME = DaemonProcess(
    pid=4242,
    exe_path="/usr/bin/overlayd",
    namespace_id="overlayd",
    path="/run/overlayd.sock",
    started_at_unix_ms=1_700_000_000_000,
    boot_id="11111111-2222-3333-4444-555555555555",
    exe_hash=bytes(32),
)


def multiplexer(me: DaemonProcess = ME) -> EndpointMux:
    return EndpointMux(
        legacy=json_wire,
        answer_probe=partial(identity.answer_probe, identity=identity.encode(me)),
        served=frozenset({PROTOCOL}),
    )


@contextlib.asynccontextmanager
async def serving(
    path: str,
    handlers: Fake | Handlers | None = None,
    *,
    limits: Limits = LIMITS,
    admits: Callable[[endpoint.Credentials], bool] = lambda _: True,
    mux: EndpointMux | None = None,
) -> AsyncIterator[Server]:
    server = Server(handlers or Fake(), admits, mux or multiplexer(), limits)  # type: ignore[arg-type]
    accepting = await server.listen(endpoint.bind(path, None))
    try:
        yield server
    finally:
        accepting.close()
        await server.drain(PATIENCE)
    assert server.buffered == 0


class Client:
    """The other end of the socket, written as plainly as can be."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()

    def send(self, *messages: bytes) -> None:
        self.writer.write(b"".join(messages))

    async def receive(self) -> dict[str, object] | Frame:
        """The next message: the object of a JSON frame, or an envelope.  EOFError at the end."""
        async with asyncio.timeout(PATIENCE):
            try:
                head = await self.reader.readexactly(5)
                if head[0] == 1 and head[4] <= 1:
                    body = await self.reader.readexactly(int.from_bytes(head[1:5], "little"))
                    return envelope.decode_body(body)
                body = head[4:] + await self.reader.readexactly(int.from_bytes(head[:4], "little") - 1)
            except asyncio.IncompleteReadError as error:
                assert not error.partial
                raise EOFError from None
            except ConnectionResetError:
                raise EOFError from None
        return msgspec.json.decode(body)

    async def receive_all(self) -> list[dict[str, object] | Frame]:
        """Every message until the server closes."""
        received = []
        with contextlib.suppress(EOFError):
            while True:
                received.append(await self.receive())
        return received

    async def answers(self, count: int) -> list[tuple[int, str]]:
        """The next answers as (id, what): an address, a refusal, or the name of the result."""
        return [told(await self.receive()) for _ in range(count)]


def told(message: dict[str, object] | Frame) -> tuple[int, str]:
    if isinstance(message, Frame):
        id, response = message.request_id, msgspec.json.decode(message.payload)
    else:
        id, response = message["id"], message["response"]
    return id, response.get("ip") or response.get("message") or response["result"]


async def connect(path: str) -> Client:
    return Client(*await asyncio.open_unix_connection(path))


def status(id: int) -> bytes:
    return wire.encode_request(id, wire.GetStatus())


def change(id: int, name: str) -> bytes:
    return wire.encode_request(id, wire.AllocateIp(name, False))


def json_frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "little") + body


def payload(id: int, body: bytes = b'{"op":"status"}', **fields: object) -> bytes:
    return envelope.encode(Frame(version=1, protocol=PROTOCOL, payload=body, request_id=id, **fields))


def probe(nonce: bytes = bytes(32)) -> bytes:
    return envelope.encode(identity.probe_request(nonce))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def settle() -> None:
    """Let everything that can happen without anybody's help happen."""
    for _ in range(20):
        await asyncio.sleep(0.002)


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


# --- Limits ---


async def test_requests_in_flight_are_counted_exactly(path: str) -> None:
    handlers = Fake()
    async with serving(path, handlers, limits=Limits(in_flight=4)), await connect(path) as client:
        client.send(*(change(id, f"c{id}") for id in range(1, 8)))
        await until(lambda: len(handlers.begun) == 4)
        await settle()
        assert handlers.begun == ["c1", "c2", "c3", "c4"]
        handlers.open("c3")
        assert await client.answers(1) == [(3, "c3")]
        await settle()
        assert handlers.begun == ["c1", "c2", "c3", "c4", "c5"]
        for id in range(1, 8):
            handlers.open(f"c{id}")
        assert sorted(await client.answers(6)) == [(id, f"c{id}") for id in (1, 2, 4, 5, 6, 7)]


async def test_answers_that_wait_their_turn_are_in_flight_too(path: str) -> None:
    handlers = Fake()
    async with serving(path, handlers, limits=Limits(in_flight=4)), await connect(path) as client:
        client.send(change(1, "a"), status(2), status(3), change(4, "b"), change(5, "c"))
        await until(lambda: len(handlers.begun) == 2)
        await settle()
        assert handlers.begun == ["a", "b"]
        handlers.open("a")
        assert await client.answers(3) == [(1, "a"), (2, "status"), (3, "status")]
        await until(lambda: handlers.begun == ["a", "b", "c"])
        handlers.open("b")
        handlers.open("c")
        assert await client.answers(2) == [(4, "b"), (5, "c")]


@pytest.mark.parametrize("waited_for", [False, True], ids=["on the spot", "in their turn"])
async def test_answers_are_not_made_for_a_client_that_does_not_read(path: str, waited_for: bool) -> None:
    handlers = Fake()
    handlers.status = b'{"result":"status","x":"' + b"x" * 1_000_000 + b'"}'
    async with serving(path, handlers) as server, await connect(path) as stalled, await connect(path) as other:
        stalled.reader._transport.pause_reading()  # type: ignore[attr-defined]
        stalled.send(change(0, "a") if waited_for else status(0), *(status(id) for id in range(1, 500)))
        handlers.open("a")
        await until(lambda: handlers.reads > 0)
        await settle()
        assert handlers.reads < 5
        assert server.buffered < 3_000_000
        for event in range(100):
            server.publish(wire.PeerHealthChanged("k", event % 2 == 0))
            server.publish(wire.PeerHealthChanged(f"{event}", True))
        handlers.status = STATUS
        other.send(status(1))
        assert [await other.receive() for _ in range(201)][200]["id"] == 1
        stalled.reader._transport.resume_reading()  # type: ignore[attr-defined]
        received = [await stalled.receive() for _ in range(500 + 101)]
    assert [one["id"] for one in received if one["frame"] == "response"] == list(range(500))
    events = [one for one in received if one["frame"] == "event"]
    assert [one["healthy"] for one in events if one["pubkey"] == "k"] == [False]  # the newest of each peer
    assert len(events) == 101


async def test_events_for_a_client_that_does_not_read_are_bounded(path: str) -> None:
    handlers = Fake()
    handlers.status = b'{"result":"status","x":"' + b"x" * 1_000_000 + b'"}'
    async with serving(path, handlers, limits=Limits(events=3)) as server, await connect(path) as stalled:
        stalled.reader._transport.pause_reading()  # type: ignore[attr-defined]
        stalled.send(status(1))
        await until(lambda: handlers.reads > 0)
        await settle()
        for number in (*range(10), 7, 10):
            server.publish(wire.PeerHealthChanged(f"{number}", True))
        stalled.reader._transport.resume_reading()  # type: ignore[attr-defined]
        received = [await stalled.receive() for _ in range(4)]
    assert [one["pubkey"] for one in received[1:]] == ["9", "7", "10"]


async def test_a_message_that_stays_incomplete_closes_its_connection(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        serving(path, limits=Limits(incomplete=0.2)),
        await connect(path) as idle,
        await connect(path) as dribbling,
        await connect(path) as enveloped,
    ):
        enveloped.send(probe()[:-1])
        dribbling.send(status(1), status(2)[:4])
        assert await dribbling.answers(1) == [(1, "status")]
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            while True:  # a byte now and then does not buy time
                dribbling.send(b" ")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await dribbling.reader.readexactly(1)
        with pytest.raises(EOFError):
            await enveloped.receive()
        idle.send(status(3))  # a client that only waits is left alone
        assert await idle.answers(1) == [(3, "status")]
    assert caplog.text.count("stayed incomplete for 0.2 s") == 2


async def test_a_message_that_we_do_not_read_is_not_called_incomplete(path: str) -> None:
    handlers = Fake()
    limits = Limits(in_flight=1, incomplete=0.1)
    async with serving(path, handlers, limits=limits) as server, await connect(path) as client:
        client.send(change(1, "a"), status(2)[:10])
        await until(lambda: handlers.begun == ["a"])
        client.send(status(2)[10:])
        [connection] = server.connections
        began = time.monotonic()
        await until(lambda: time.monotonic() - began > 0.5)
        assert not connection.closed_since
        handlers.open("a")
        assert await client.answers(2) == [(1, "a"), (2, "status")]


async def test_when_all_hold_too_much_whoever_holds_most_is_cut_off(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    small, large = status(1), json_frame(b" " * 50_000 + status(2)[4:])
    async with (
        serving(path, limits=Limits(buffered=100_000)) as server,
        await connect(path) as innocent,
        await connect(path) as hog,
        await connect(path) as another,
    ):
        innocent.send(small[:-1])
        hog.send(json_frame(b" " * 200_000)[:80_000])
        await until(lambda: server.buffered == len(small) - 1 + 80_000)
        another.send(large[:40_000])  # the last straw
        with pytest.raises(EOFError):
            await hog.receive()
        await until(lambda: server.buffered == len(small) - 1 + 40_000)
        innocent.send(small[-1:])
        another.send(large[40_000:])
        assert await innocent.answers(1) == [(1, "status")]
        assert await another.answers(1) == [(2, "status")]
        await until(lambda: server.buffered == 0)
    assert caplog.text.count("cut off") == 1


async def test_unread_answers_count_as_well(path: str) -> None:
    handlers = Fake()
    handlers.status = b'{"result":"status","x":"' + b"x" * 1_000_000 + b'"}'
    async with serving(path, handlers, limits=Limits(buffered=2_500_000)) as server, contextlib.AsyncExitStack() as all:
        for _ in range(8):
            client = await all.enter_async_context(await connect(path))
            client.reader._transport.pause_reading()  # type: ignore[attr-defined]
            client.send(status(1))
        await until(lambda: handlers.reads == 8)
        await until(lambda: len(server.connections) < 8)
        assert 0 < server.buffered <= 2_500_000


# --- The end of a connection, the end of the server ---


async def test_a_client_that_half_closes_gets_its_answers(path: str) -> None:
    handlers = Fake()
    async with serving(path, handlers) as server, await connect(path) as client:
        client.send(*(status(id) for id in range(300)), change(300, "a"), status(301), payload(302))
        client.writer.write_eof()
        assert await client.answers(300) == [(id, "status") for id in range(300)]
        await settle()
        assert server.connections
        handlers.open("a")
        assert [told(one) for one in await client.receive_all()] == [(300, "a"), (301, "status"), (302, "status")]
        await until(lambda: not server.connections)


async def test_a_half_closed_client_may_read_late(path: str) -> None:
    handlers = Fake()
    handlers.status = b'{"result":"status","x":"' + b"x" * 1_000_000 + b'"}'
    async with serving(path, handlers), await connect(path) as client:
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        client.send(*(status(id) for id in range(50)))
        client.writer.write_eof()
        await until(lambda: handlers.reads > 0)
        await settle()
        client.reader._transport.resume_reading()  # type: ignore[attr-defined]
        assert [told(one)[0] for one in await client.receive_all()] == list(range(50))


async def test_the_end_inside_a_frame_is_logged_and_what_was_whole_is_answered(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(path) as server:
        async with await connect(path) as client:
            client.send(status(1), status(2)[:-1])
            client.writer.write_eof()
            assert [told(one) for one in await client.receive_all()] == [(1, "status")]
        async with await connect(path) as client:
            client.send(status(1))
            client.writer.write_eof()
            assert [told(one) for one in await client.receive_all()] == [(1, "status")]
        await until(lambda: not server.connections)
    assert caplog.text.count("truncated frame") == 1


async def test_a_client_that_is_gone_leaves_its_changes_running_and_nothing_else(path: str) -> None:
    handlers = Fake()
    async with serving(path, handlers) as server:
        async with await connect(path) as client:
            client.send(change(1, "a"), status(2))
            await until(lambda: handlers.begun == ["a"])
        async with await connect(path) as rude:  # resets: it leaves answers unread
            rude.send(*(status(id) for id in range(2000)))
            await rude.receive()
        await settle()
        handlers.open("a")
        await until(lambda: handlers.done == ["a"])
        await until(lambda: not server.connections)


async def test_a_stop_answers_what_is_in_flight_and_refuses_the_rest(path: str) -> None:
    handlers = Fake()
    async with serving(path, handlers) as server, await connect(path) as client, await connect(path) as idle:
        client.send(change(1, "a"), status(2))
        await until(lambda: handlers.begun == ["a"])
        stopping = asyncio.create_task(server.drain(PATIENCE))
        await until(lambda: server.stopping)
        client.send(change(3, "b"), status(4))
        idle.send(payload(5))
        assert await idle.answers(1) == [(5, "shutting down")]
        handlers.open("a")
        answers = [told(one) for one in await client.receive_all()]
        assert answers == [(1, "a"), (2, "status"), (3, "shutting down"), (4, "shutting down")]
        await stopping
        assert handlers.begun == ["a"]
        assert not server.connections


async def test_a_stop_under_load_answers_everything_that_was_sent(path: str) -> None:
    handlers = Fake()
    async with serving(path, handlers) as server, contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(await connect(path)) for _ in range(20)]
        for client in clients:
            client.send(*(status(id) for id in range(1000)))
        await until(lambda: handlers.reads > 0)
        receiving = [asyncio.create_task(client.receive_all()) for client in clients]
        await server.drain(PATIENCE)
        for received in receiving:
            answers = [told(one) for one in await received]
            assert [id for id, _ in answers] == list(range(1000))
            assert {what for _, what in answers} <= {"status", "shutting down"}


async def test_a_client_that_does_not_read_does_not_stop_the_stop(path: str) -> None:
    handlers = Fake()
    handlers.status = b'{"result":"status","x":"' + b"x" * 1_000_000 + b'"}'
    async with serving(path, handlers) as server, await connect(path) as stalled:
        stalled.reader._transport.pause_reading()  # type: ignore[attr-defined]
        stalled.send(*(status(id) for id in range(50)))
        await until(lambda: handlers.reads > 0)
        await server.drain(PATIENCE)
        await until(lambda: not server.connections)


# --- Who may connect ---

ASK = """
import socket, sys
with socket.socket(socket.AF_UNIX) as s:
    s.connect(sys.argv[1])
    s.sendall(bytes.fromhex(sys.argv[2]))
    sys.stdout.write(s.recv(65536).hex())
"""
SYSTEM_PYTHON = "/usr/bin/python3"  # strangers may not enter the home of whoever runs the tests


@pytest.fixture
def open_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ot") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize(
    ("uid", "gid", "welcome"),
    [(0, 0, True), (65534, 65534, False), (65534, 1, True), (1, 65534, True), (2, 65534, False)],
    ids=["root", "stranger", "of the group", "member by the user database", "another user"],
)
async def test_the_kernel_says_who_connects(
    open_directory: Path, uid: int, gid: int, welcome: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The file's mode would keep strangers out as well: it is opened to all, so that only the check is left."""
    socket = open_directory / "s"
    admits = endpoint.Admission("daemon")
    assert admits.gid == 1
    async with serving(str(socket), admits=admits):
        socket.chmod(0o666)
        argv = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", SYSTEM_PYTHON, "-S", "-c", ASK]
        process = await asyncio.create_subprocess_exec(
            *argv, socket, status(7).hex(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        said, complaint = await process.communicate()
    assert bool(said) is welcome, complaint
    assert ("not allowed" in caplog.text and f"uid {uid} gid {gid}" in caplog.text) is not welcome


# --- Envelopes ---


async def test_requests_in_envelopes(path: str) -> None:
    handlers = Fake()
    handlers.open("web")
    past, future = int(time.time() * 1000) - 1, int(time.time() * 1000) + 60_000
    allocate = b'{"op":"allocate_ip","service":"web","join_global":false}'
    async with serving(path, handlers), await connect(path) as client:
        client.send(
            payload(1),
            payload(2, allocate),
            payload(3, encoding=1),
            payload(4, deadline_unix_ms=past),
            payload(5, deadline_unix_ms=future),
            payload(6, b"not json"),
            payload(7, b'{"op":"release_ip"}'),
            payload(8, kind=envelope.KIND_CANCEL),
            payload(9, kind=envelope.KIND_RESPONSE),
            payload(10, traceparent="00-a-b-01", tracestate="v=1"),
        )
        frames = [await client.receive() for _ in range(8)]
    assert all(isinstance(one, Frame) and one.kind == envelope.KIND_RESPONSE for one in frames)
    said = dict(told(one) for one in frames)
    assert (said[1], said[2], said[5], said[10]) == ("status", "web", "status", "status")
    assert "payload_encoding 1" in said[3]
    assert "deadline" in said[4]
    assert "not JSON" in said[6]
    assert "request.ip" in said[7]
    assert set(said) == {1, 2, 3, 4, 5, 6, 7, 10}
    assert (frames[-1].traceparent, frames[-1].tracestate) == ("00-a-b-01", "v=1")


async def test_an_answer_too_large_for_an_envelope_is_an_error(path: str) -> None:
    handlers = Fake()
    handlers.status = b"x" * (16 * 1024 * 1024)
    async with serving(path, handlers), await connect(path) as client:
        client.send(payload(1), status(2), payload(3, traceparent="t" * (16 * 1024 * 1024 - 100)))
        handlers.open("a")
        for id, said in await client.answers(3):
            assert "too large" in said, id


async def test_events_go_to_those_who_speak_json(path: str) -> None:
    event = wire.NatEndpointChanged("k", "192.0.2.1:1")
    async with serving(path) as server, contextlib.AsyncExitStack() as stack:
        silent, json, enveloped, both = [await stack.enter_async_context(await connect(path)) for _ in range(4)]
        json.send(status(1))
        enveloped.send(probe(), payload(1))
        both.send(probe(), payload(1), status(1))
        for client, count in ((json, 1), (enveloped, 2), (both, 3)):
            for _ in range(count):
                await client.receive()
        await until(lambda: len(server.connections) == 4)
        server.publish(event)
        for client in (silent, json, both):
            assert (await client.receive())["event"] == "nat_endpoint_changed"
        enveloped.send(payload(2))
        assert await enveloped.answers(1) == [(2, "status")]


async def test_a_slow_request_is_logged_with_its_trace(path: str, caplog: pytest.LogCaptureFixture) -> None:
    handlers = Fake()
    allocate = b'{"op":"allocate_ip","service":"web","join_global":false}'
    async with serving(path, handlers, limits=Limits(slow=0.02)), await connect(path) as client:
        client.send(
            payload(1, allocate, traceparent="00-abc\n\x1b[31m", tracestate="x" * 10_000), change(2, "web"), status(3)
        )
        await until(lambda: len(handlers.begun) == 2)
        await asyncio.sleep(0.05)
        handlers.open("web")
        await client.answers(3)
        client.send(change(4, "web"))
        await client.answers(1)
    enveloped, plain = [line for line in caplog.messages if "slow request" in line]
    assert "allocate_ip took 0." in plain
    assert f"pid {os.getpid()}" in plain
    assert r"traceparent '00-abc\n\x1b[31m'" in enveloped
    assert len(enveloped) < 500


# --- Everything mixed ---

MESSAGES = st.lists(
    st.sampled_from(["status", "change", "bad", "probe", "payload", "payload change", "ignored"]), max_size=40
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kinds=MESSAGES, cuts=st.lists(st.integers(0, 4000), max_size=12), limit=st.sampled_from([1, 2, 5, 1024]))
def test_any_mixture_in_any_pieces_is_answered(path: str, kinds: list[str], cuts: list[int], limit: int) -> None:
    """Every request once, to its own id and in its own kind of frame; quick ones in order and never before a change
    that was asked for earlier.
    """
    allocate = b'{"op":"allocate_ip","service":"c","join_global":false}'
    make: dict[str, Callable[[int], bytes]] = {
        "status": status,
        "change": lambda id: change(id, "c"),
        "bad": lambda id: json_frame(b'{"frame":"request","id":%d,"request":{}}' % id),
        "probe": lambda id: probe(id.to_bytes(32, "little")),
        "payload": payload,
        "payload change": lambda id: payload(id, allocate),
        "ignored": lambda id: payload(id, kind=envelope.KIND_EVENT),
    }
    stream = b"".join(make[kind](id) for id, kind in enumerate(kinds, 1))
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    handlers = Fake()
    handlers.open("c")

    async def converse() -> list[dict[str, object] | Frame]:
        async with serving(path, handlers, limits=Limits(in_flight=limit, turn=3)), await connect(path) as client:
            for start, end in itertools.pairwise(edges):
                client.send(stream[start:end])
                await asyncio.sleep(0)
            client.writer.write_eof()
            return await client.receive_all()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        received = runner.run(converse())
    probes = [one for one in received if isinstance(one, Frame) and one.protocol == envelope.PROTOCOL_PROBE]
    assert [int.from_bytes(one.payload[:8], "little") for one in probes] == [
        id for id, kind in enumerate(kinds, 1) if kind == "probe"
    ]
    answers = [one for one in received if one not in probes]
    ids = [told(one)[0] for one in answers]
    assert sorted(ids) == [id for id, kind in enumerate(kinds, 1) if kind not in ("probe", "ignored")]
    for one, id in zip(answers, ids, strict=True):
        assert isinstance(one, Frame) is kinds[id - 1].startswith("payload")
        assert (told(one)[1] == "c") is kinds[id - 1].endswith("change")
    quick = [id for id in ids if not kinds[id - 1].endswith("change")]
    assert quick == sorted(quick)
    for id in quick:
        before = {one for one in range(1, id) if kinds[one - 1].endswith("change")}
        assert before <= set(ids[: ids.index(id)])
