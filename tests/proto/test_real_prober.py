"""The running-process family's own prober and server, over real Unix sockets.

Its client must find a server made of our multiplexer `up`, and ours must read what its server says of itself.  Its
server also decodes with prost itself, so it is the last word on what a malformed envelope is.
"""

import asyncio
import json
import os
import random
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
import pytest
from endpoint_client import PAYLOAD_PROTOCOL, ask, connected, meeting, until, wait_for
from lab.patience import LIMIT
from running_process_service import ServiceServer, ServiceSpec

from overlayd.daemon.server import identity as daemon_identity
from overlayd.errors import ProtocolError
from overlayd.proto import envelope, identity
from overlayd.proto.envelope import Frame
from overlayd.proto.identity import DaemonProcess, Suspicion
from overlayd.proto.mux import EndpointMux, Legacy, NeedMore, Payload, ProbeAnswered, Verdict, json_wire

BOOT_ID = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
VECTORS = {
    vector["id"]: bytes.fromhex(vector["hex"])
    for vector in json.loads((Path(__file__).parents[1] / "vectors/envelope.json").read_text())["vectors"]
}


@pytest.fixture
def spec() -> Iterator[ServiceSpec]:
    with tempfile.TemporaryDirectory(prefix="ot", dir="/tmp") as directory, meeting(Path(directory)) as spec:
        yield spec


# --- our server, their client -------------------------------------------------------------------------------------


class EchoServer:
    """A daemon in little, in a thread: probes answered, JSON frames echoed, payloads answered in capitals."""

    def __init__(self, path: str, answers_as: DaemonProcess) -> None:
        self.mux = EndpointMux(
            legacy=json_wire,
            answer_probe=partial(identity.answer_probe, identity=identity.encode(answers_as)),
            served=frozenset({PAYLOAD_PROTOCOL}),
        )
        self.probes = 0
        self.transports: set[asyncio.Transport] = set()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(path)))

    def __enter__(self) -> "EchoServer":
        self._thread.start()
        assert self._listening.wait(LIMIT)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _serve(self, path: str) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await self._loop.create_unix_server(lambda: Connection(self), path)
        self._listening.set()
        await self._stop.wait()
        server.close()
        for transport in self.transports:
            transport.abort()


class Connection(asyncio.Protocol):
    def __init__(self, server: EchoServer) -> None:
        self.server = server
        self.buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.server.transports.add(transport)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        try:
            while (consumed := self.serve_one()) > 0:
                del self.buffer[:consumed]
        except ProtocolError:
            self.transport.close()

    def serve_one(self) -> int:
        """Answer the message at the front of the buffer; its size, or 0 if it is not all there."""
        match self.server.mux.poll(self.buffer):
            case ProbeAnswered(reply, consumed):
                self.server.probes += 1
                self.transport.write(reply)
                return consumed
            case Payload(frame, consumed):
                if frame.kind == envelope.KIND_REQUEST:
                    self.transport.write(envelope.respond(frame, frame.payload.upper()))
                return consumed
            case Legacy():
                end = 4 + int.from_bytes(self.buffer[:4], "little")
                if len(self.buffer) < end:
                    return 0
                self.transport.write(bytes(self.buffer[:end]))
                return end
            case NeedMore():
                return 0


def test_their_client_finds_us_up_and_gets_its_answers(spec: ServiceSpec) -> None:
    me = daemon_identity.current("overlayd", spec.endpoint)
    with EchoServer(spec.endpoint, me), connected(spec) as client:
        daemon_identity.publish(me, spec.identity_path)
        wait_for(client, "up")
        payloads = [b'{"op": "n%d"}' % number for number in range(60)]
        assert ask(client, *payloads) == [payload.upper() for payload in payloads]
        large = b"x" * 1_000_000
        assert ask(client, large, b"", b"small") == [large.upper(), b"", b"SMALL"]
        daemon_identity.withdraw(me, spec.identity_path)
        wait_for(client, "down")


def test_we_stay_up_while_the_json_wire_is_flooded(spec: ServiceSpec) -> None:
    me = daemon_identity.current("overlayd", spec.endpoint)
    daemon_identity.publish(me, spec.identity_path)
    frame = b"\x01\x01\x00\x00" + b"[" + b" " * 255 + b"]"  # 257 bytes: the header starts like an envelope's
    stop = threading.Event()
    echoes: list[bool] = []

    def flood() -> None:
        with socket.socket(socket.AF_UNIX) as raw, raw.makefile("rb") as stream:
            raw.connect(spec.endpoint)
            while not stop.is_set():
                raw.sendall(frame * 50)
                echoes.append(stream.read(len(frame) * 50) == frame * 50)

    with EchoServer(spec.endpoint, me) as server, connected(spec) as client:
        wait_for(client, "up")
        flooder = threading.Thread(target=flood)
        flooder.start()
        try:
            probed = server.probes
            states = set()
            for _ in range(20):
                assert ask(client, b"ping") == [b"PING"]
                states.add(client.state)
            until(lambda: server.probes >= probed + 3, "three probes amid the flood")
            states.add(client.state)
        finally:
            stop.set()
            flooder.join()
        assert states == {"up"}
    assert set(echoes) == {True}


@pytest.mark.parametrize("lie", [{"pid": 1}, {"exe_hash": bytes(32)}, {"boot_id": "another"}, {"namespace_id": "else"}])
def test_their_client_does_not_take_another_identity_for_ours(spec: ServiceSpec, lie: dict[str, object]) -> None:
    """The counterpart of the first test: `up` is not what everybody gets."""
    me = daemon_identity.current("overlayd", spec.endpoint)
    daemon_identity.publish(me, spec.identity_path)
    with EchoServer(spec.endpoint, msgspec.structs.replace(me, **lie)) as server, connected(spec) as client:
        until(lambda: server.probes >= 3, "three probes")
        assert client.state == "down"


# --- their server, our prober -------------------------------------------------------------------------------------


def converse(path: str, wire: bytes) -> DaemonProcess | None:
    """Send `wire` and then a probe: the identity in the answer, or None if the connection is closed before it."""
    probe = identity.probe_request(os.urandom(identity.NONCE_SIZE))
    received = b""
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(20)
        raw.connect(path)
        try:
            raw.sendall(wire + envelope.encode(probe))
            while chunk := raw.recv(65536):
                received += chunk
                while (decoded := envelope.decode(received)) is not None:
                    frame, consumed = decoded
                    received = received[consumed:]
                    if frame.protocol == envelope.PROTOCOL_PROBE and frame.request_id == probe.request_id:
                        return identity.parse_probe_reply(frame, probe)
        except (ConnectionResetError, BrokenPipeError):
            pass
    return None


@pytest.fixture
def their_server(spec: ServiceSpec) -> Iterator[ServiceServer]:
    with ServiceServer(spec) as server:
        yield server


@pytest.mark.usefixtures("their_server")
def test_we_read_their_identity_file_and_believe_their_answer(spec: ServiceSpec) -> None:
    published = identity.from_json(spec.identity_path.read_bytes())
    answered = converse(spec.endpoint, b"")
    assert answered is not None
    assert published.pid == os.getpid()
    assert published.exe_path == str(Path(sys.executable).resolve())
    assert published.exe_hash == daemon_identity.current("", "").exe_hash  # both hash this very process
    assert published.boot_id == BOOT_ID
    assert identity.mismatch(published, answered, boot_id=BOOT_ID, published_pid_runs=True) is None
    stale = msgspec.structs.replace(published, started_at_unix_ms=1)
    found = identity.mismatch(stale, answered, boot_id=BOOT_ID, published_pid_runs=True)
    assert found is not None
    assert found.suspicion is Suspicion.STALE_FILE


MUX = EndpointMux(
    legacy=lambda buffer: Verdict.ENVELOPE,
    answer_probe=partial(identity.answer_probe, identity=b""),
    served=frozenset({PAYLOAD_PROTOCOL}),
)


def we_take(wire: bytes) -> bool:
    try:
        assert isinstance(MUX.poll(wire), Payload | ProbeAnswered)
    except ProtocolError:
        return False
    return True


def framed(body: bytes) -> bytes:
    return b"\x01" + len(body).to_bytes(4, "little") + body


ORDINARY = envelope.encode(Frame(version=1, protocol=PAYLOAD_PROTOCOL, payload=b"x", request_id=3))[envelope.HEADER :]


@pytest.mark.parametrize(("peculiar", "taken"), [
    pytest.param(b"\x7b" * 99 + b"\x78\x01" + b"\x7c" * 99, True, id="field inside the 99th group"),
    pytest.param(b"\x7b" * 100 + b"\x78\x01" + b"\x7c" * 100, False, id="field inside the 100th group"),
    pytest.param(b"\x88\x80\x80\x80\x80\x00\x01", True, id="key of six bytes"),
    pytest.param(b"\x22\x81\x80\x80\x80\x80\x00x", True, id="length of six bytes"),
    pytest.param(b"\x88\x80\x80\x80\x10\x01", False, id="key over 32 bits"),
    pytest.param(b"\x28" + b"\xff" * 9 + b"\x02", False, id="varint over 64 bits"),
    pytest.param(b"\x7b\x0b\x0c\x7c", True, id="known number inside a group"),
    pytest.param(b"\x0b\x0c", False, id="known field as a group"),
    pytest.param(b"\x42\x03\xed\xa0\x80", False, id="surrogate in text"),
    pytest.param(b"\x42\x01\xff\x42\x01a", False, id="bad text that is replaced"),
    pytest.param(b"\x10" + b"\xff" * 9 + b"\x01", True, id="negative kind"),
    pytest.param(b"\x08\x02", True, id="a payload of envelope version 2"),
])  # fmt: skip
@pytest.mark.usefixtures("their_server")
def test_prost_itself_takes_and_refuses_the_same(spec: ServiceSpec, peculiar: bytes, taken: bool) -> None:
    wire = framed(ORDINARY + peculiar)
    assert we_take(wire) is taken
    assert (converse(spec.endpoint, wire) is not None) is taken


def test_prost_itself_judges_damaged_envelopes_as_we_do(spec: ServiceSpec, their_server: ServiceServer) -> None:
    rng = random.Random(7)
    seeds = [
        wire[envelope.HEADER :] for name, wire in VECTORS.items() if name not in {"V06", "V54", "V55", "V57", "V58"}
    ]
    taken = 0
    for _ in range(1500):
        body = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 2)):
            at = rng.randrange(len(body) + 1)
            body[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        wire = framed(bytes(body))
        ours = we_take(wire)
        assert (converse(spec.endpoint, wire) is not None) is ours, wire.hex()
        taken += ours
        their_server.recv(0)
    assert 100 < taken < 1400
