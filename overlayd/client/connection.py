"""The bytes of a client's one connection to the daemon.

Owns: matching answers to what was asked, keeping unread events within bounds, back-pressure.  Must not know: what a
request is for, when to connect or to give up (`client`).
"""

import asyncio
import secrets
import socket
from typing import Any, cast

from overlayd import wire
from overlayd._fast.frame import Inbox
from overlayd.client import identity as client_identity
from overlayd.errors import OverlaydError, ProtocolError
from overlayd.proto import envelope, identity
from overlayd.proto.envelope import Frame
from overlayd.proto.identity import DaemonProcess

# Ours.
FRAMES_A_TURN = 64  # taken from the inbox at once
UNREAD_EVENTS = 16_384  # a few for each peer of a large cluster


class ConnectionLost(OverlaydError):
    """The connection ended, and with it every call that waited: what the daemon did of them is not known.  foreign: for
    what was said there, which is not this protocol, or no frame of it.
    """

    def __init__(self, message: str, *, foreign: bool = False) -> None:
        super().__init__(message)
        self.foreign = foreign


class Connection(asyncio.BufferedProtocol):
    """The transport's side: bytes to answers and events, and back-pressure."""

    def __init__(self) -> None:
        self._inbox = Inbox()
        self._waiting: dict[int, asyncio.Future[wire.Response]] = {}
        self._probes: dict[int, asyncio.Future[Frame]] = {}
        self._next_id = 1
        self._unread: dict[tuple[type, str], wire.Event] = {}
        self._event_arrived = asyncio.Event()  # set for good when the connection is lost
        self._writable = asyncio.Event()
        self._writable.set()
        self._closed = asyncio.Event()
        self._closing = False
        self._broken: ProtocolError | None = None
        self._lost: str | None = None  # why the connection ended

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.peer = client_identity.peer(self._transport.get_extra_info("socket"))

    def connection_lost(self, error: Exception | None) -> None:
        if self._closing:
            self._lost = "the client was closed"
        elif self._broken:
            self._lost = f"connection dropped: {self._broken}"
        elif error:
            self._lost = f"connection lost: {error}"
        else:
            self._lost = "the daemon closed the connection" + (" inside a frame" if self._inbox.partial else "")
        waiting: list[asyncio.Future[Any]] = [*self._waiting.values(), *self._probes.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(ConnectionLost(self._lost, foreign=self._broken is not None))
        self._waiting.clear()
        self._probes.clear()
        self._writable.set()
        self._event_arrived.set()
        self._closed.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._inbox.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        self._inbox.received(nbytes)
        try:
            while self._receive_some():
                pass
        except ProtocolError as error:
            self._broken = error
            self._transport.abort()

    def _receive_some(self) -> bool:
        """Receive the messages at the front of the inbox, if any is whole."""
        bodies = self._inbox.take(FRAMES_A_TURN)
        for body in bodies:
            self._receive(wire.decode_server_frame(body))
        if bodies or not self._inbox.foreign:
            return bool(bodies)
        decoded = envelope.decode(self._inbox.peek())
        if decoded is None:
            return False
        frame, consumed = decoded
        self._inbox.consume(consumed)
        future = self._probes.pop(frame.request_id, None)
        if future is None:
            raise ProtocolError("the daemon sent an envelope that was not asked for")
        if not future.done():
            future.set_result(frame)
        return True

    def _receive(self, message: tuple[int, wire.Response] | wire.Event | None) -> None:
        if isinstance(message, tuple):
            id, response = message
            if not 0 < id < self._next_id:
                raise ProtocolError(f"the daemon answered request {id}, which was not asked")
            future = self._waiting.pop(id, None)  # None: its caller gave up
            if future and not future.done():
                future.set_result(response)
        elif message is not None:
            subject = message.pubkey if not isinstance(message, wire.Changed) else f"{message.kind} {message.object}"
            key = (type(message), subject)
            self._unread.pop(key, None)
            self._unread[key] = message
            if len(self._unread) > UNREAD_EVENTS:
                del self._unread[next(iter(self._unread))]
            self._event_arrived.set()

    async def probe(self) -> DaemonProcess:
        await self._may_write()
        request = identity.probe_request(secrets.token_bytes(identity.NONCE_SIZE))
        future: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._probes[request.request_id] = future
        self._transport.write(envelope.encode(request))
        return identity.parse_probe_reply(await future, request)

    async def _may_write(self) -> None:
        while not self._writable.is_set():
            await self._writable.wait()
        if self._lost or self._closing or self._broken:
            raise ConnectionLost(self._lost or "connection is closing")

    async def ask(self, request: wire.Request) -> wire.Response:
        await self._may_write()
        id = self._next_id
        frame = wire.encode_request(id, request)
        self._next_id += 1
        future: asyncio.Future[wire.Response] = asyncio.get_running_loop().create_future()
        self._waiting[id] = future
        self._transport.write(frame)
        try:
            return await future
        finally:
            self._waiting.pop(id, None)

    async def next_event(self) -> wire.Event | None:
        while not self._unread:
            if self._closing:
                return None
            if self._lost:
                raise ConnectionLost(self._lost)
            self._event_arrived.clear()
            await self._event_arrived.wait()
        return self._unread.pop(next(iter(self._unread)))

    async def close(self) -> None:
        self._closing = self._closing or self._lost is None
        if self._transport.get_write_buffer_size():  # close() would wait for a daemon that may never read again
            self._transport.abort()
        else:
            self._transport.close()
        await self._closed.wait()


def connected(path: str) -> socket.socket:
    """A non-blocking socket that is connected to `path`; raises OSError, a BlockingIOError when the backlog is full.

    A local connect is done at once or fails.  asyncio would take a full backlog for a connect under way, and then
    for success.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock
