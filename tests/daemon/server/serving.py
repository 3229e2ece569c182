"""A server for tests to talk to: handlers that answer when a test says so, and a client that reads what comes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from functools import partial

import msgspec
from lab.patience import LIMIT

from overlayd import wire
from overlayd.daemon.handlers import Handlers
from overlayd.daemon.server import listener
from overlayd.daemon.server.acceptor import QUOTAS, Quotas
from overlayd.daemon.server.connection import LIMITS, Limits
from overlayd.daemon.server.server import Server
from overlayd.daemon.tasks import Tasks
from overlayd.proto import envelope, identity
from overlayd.proto.envelope import Frame
from overlayd.proto.identity import DaemonProcess
from overlayd.proto.mux import EndpointMux, json_wire

PROTOCOL = 0xF0DE
STATUS = wire.encode_response_object(wire.Status(peer_count=0, service_count=0))


class Fake:
    """`status` is quick; allocate_ip is a change that is done when its service's gate opens, and says its name."""

    def __init__(self) -> None:
        self.status = STATUS
        self.reads = 0
        self.begun: list[str] = []
        self.done: list[str] = []
        self._gates: dict[str, asyncio.Event] = {}
        self.quick = {wire.GetStatus: self.read}

    def open(self, name: str) -> None:
        self._gates.setdefault(name, asyncio.Event()).set()

    def is_quick(self, request: wire.Request) -> bool:
        return type(request) in self.quick

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
    admits: Callable[[listener.Credentials], bool] = lambda _: True,
    mux: EndpointMux | None = None,
    quotas: Quotas = QUOTAS,
) -> AsyncIterator[Server]:
    async with Tasks() as changes:
        server = Server(
            handlers or Fake(),  # type: ignore[arg-type]
            admits,
            changes.spawn,
            mux or multiplexer(),
            limits,
            quotas=quotas,
        )
        with contextlib.closing(listener.Place(path, None)) as place:
            async with server.serving(place, LIMIT):
                yield server
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
        async with asyncio.timeout(LIMIT):
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


async def settle() -> None:
    """Let everything that can happen without anybody's help happen."""
    for _ in range(20):
        await asyncio.sleep(0.002)
