"""The Unix socket: connections, pipelining, backpressure, and what becomes of bad input.

Owns: the bytes of every connection and the order of its answers.  Must not know: what a request does
(`daemon.handlers`), or the kernel.

A read may hold many requests: quick ones (those that only read the state) are answered on the spot and their
answers leave in one write; the others become tasks.  An answer that was asked for after a change on the same
connection waits for that change.
"""

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable
from typing import cast

from overlayd import wire
from overlayd._fast.frame import Inbox
from overlayd.daemon.endpoint import Credentials, credentials
from overlayd.daemon.handlers import Handlers
from overlayd.daemon.payload import answer_payload, read_payload
from overlayd.errors import ProtocolError
from overlayd.proto.envelope import Frame
from overlayd.proto.mux import EndpointMux, NeedMore, Payload, ProbeAnswered

log = logging.getLogger(__name__)

# Our own constants.
TURN = 32  # messages a connection may have served before others get their turn: 32 floods stay under 5 ms together
IN_FLIGHT = 1024  # requests of one connection being worked on; then it is not read
WRITE_HIGH = 256 * 1024  # bytes a client may leave unread before it is not read any more
FLUSH = 64 * 1024  # bytes of answers gathered before they are written
UNFINISHED = 10.0  # seconds a message may stay incomplete
BUFFERED = 256 * 1024 * 1024  # bytes of unfinished messages over all connections
EVENTS = 4096  # events kept for a client that does not read: the newest of each peer


class Server:
    """All connections of the socket."""

    def __init__(
        self, handlers: Handlers, admit: Callable[[Credentials], bool], mux: EndpointMux | None = None
    ) -> None:
        self.handlers = handlers
        self.admit = admit
        self.mux = mux
        self.stopping = False
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self._sweeping: asyncio.TimerHandle | None = None

    async def listen(self, listener: socket.socket) -> asyncio.Server:
        """Serve a bound socket."""
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(lambda: Connection(self), sock=listener, backlog=1024)
        self._sweeping = loop.call_later(1, self._sweep)
        return server

    def publish(self, event: wire.Event) -> None:
        """Send an event to every client; one that does not read keeps the newest of each peer."""
        message = wire.encode_event(event)
        for connection in self.connections:
            connection.push((type(event), event.pubkey), message)

    async def drain(self, seconds: float) -> None:
        """Refuse new requests, wait for those in flight, and close every connection once its answers are out."""
        self.stopping = True
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=seconds)
        for connection in list(self.connections):
            connection.close("the daemon stops")
        for _ in range(50):
            if not self.connections:
                break
            await asyncio.sleep(0.01)
        if self._sweeping is not None:
            self._sweeping.cancel()

    def spawn(self, work: asyncio.Task[None]) -> None:
        self.tasks.add(work)
        work.add_done_callback(self.tasks.discard)

    def room(self) -> bool:
        """Whether unfinished messages may still grow."""
        return sum(connection.inbox.buffered for connection in self.connections) <= BUFFERED

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in list(self.connections):
            if connection.unfinished_since and now - connection.unfinished_since > UNFINISHED:
                connection.abort(f"a message stayed incomplete for {UNFINISHED:.0f} s")
        self._sweeping = loop.call_later(1, self._sweep)


class Connection(asyncio.BufferedProtocol):
    """One client."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.inbox = Inbox()
        self.unfinished_since = 0.0
        self.credentials = Credentials(0, -1, -1)
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._changes: dict[int, None] = {}  # changes in flight, oldest first
        self._newest_change = 0
        self._held: deque[tuple[int, Callable[[], bytes]]] = deque()  # quick answers, each with the change it waits for
        self._events: dict[tuple[type, str], bytes] = {}
        self._writable = True
        self._reading = True
        self._again = False  # another turn is scheduled
        self._speaks_json = False
        self._speaks_envelopes = False

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.credentials = credentials(self._transport.get_extra_info("socket"))
        if not self.server.admit(self.credentials):
            self.abort("not allowed: root, the daemon's user and members of the socket's group are")
            return
        self._transport.set_write_buffer_limits(high=WRITE_HIGH)
        self.server.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        if self._transport is not None and self.inbox.partial:
            log.warning("truncated frame: the client (%s) hung up in the middle of a message", self.credentials)
        self._transport = None
        self._held.clear()
        self._events.clear()
        self.server.connections.discard(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.inbox.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        self.inbox.received(nbytes)
        if not self._again:
            self._serve()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._writable = False
        self._steer()

    def resume_writing(self) -> None:
        self._writable = True
        for message in self._events.values():
            self._send(message)
        self._events.clear()
        self._flush()
        self._serve()

    # Reading.

    def _serve(self) -> None:
        """Serve what has come, one turn of it."""
        self._again = False
        if self._transport is None:
            return
        try:
            served = self._serve_some()
        except ProtocolError as error:
            self.abort(str(error))
            return
        self._flush()
        if served >= TURN and self._may_serve():
            self._again = True
            self._loop.call_soon(self._serve)
        elif self.inbox.partial:
            if not self.unfinished_since or served:
                self.unfinished_since = self._loop.time()
            if not self.server.room():
                self.abort("too many bytes of unfinished messages are held already")
                return
        else:
            self.unfinished_since = 0.0
        self._steer()

    def _serve_some(self) -> int:
        inbox = self.inbox
        served = 0
        while served < TURN and self._may_serve():
            bodies = inbox.take(min(TURN - served, IN_FLIGHT - len(self._changes)))
            if bodies:
                self._speaks_json = True
                served += len(bodies)
                for body in bodies:
                    self._request(body)
            elif inbox.foreign and self.server.mux is not None:
                if not self._envelope(self.server.mux):
                    break
                served += 1
            elif inbox.foreign:
                raise ProtocolError("an envelope, and only the JSON wire is served here (--no-probe)")
            else:
                break
        return served

    def _may_serve(self) -> bool:
        return self._writable and self._transport is not None and len(self._changes) < IN_FLIGHT

    def _steer(self) -> None:
        """Read only while there is room for what comes."""
        wanted = self._may_serve() and not self._again
        if self._transport is not None and wanted != self._reading and not self._transport.is_closing():
            self._reading = wanted
            if wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _request(self, body: memoryview) -> None:
        try:
            id, request = wire.decode_request(body)
        except wire.BadRequest as error:
            id, message = error.id, str(error)
            self._answer(lambda: wire.encode_response(id, wire.Err(message=message)))
            return
        except wire.NotARequest as error:
            log.warning("ignored: %s (%s)", error, self.credentials)
            return
        self._dispatch(request, lambda response: _reply(id, response))

    def _envelope(self, mux: EndpointMux) -> bool:
        """Serve the envelope at the head; False when it is not whole yet."""
        match mux.poll(self.inbox.peek()):
            case ProbeAnswered(reply=reply, consumed=consumed):
                self._speaks_envelopes = True
                self.inbox.consume(consumed)
                self._send(reply)
            case Payload(frame=frame, consumed=consumed):
                self._speaks_envelopes = True
                self.inbox.consume(consumed)
                self._payload(frame)
            case NeedMore():
                return False
        return True

    def _payload(self, frame: Frame) -> None:
        request = read_payload(frame)
        if isinstance(request, wire.Err):
            self._answer(lambda: answer_payload(frame, request))
        elif request is not None:
            self._dispatch(request, lambda response: answer_payload(frame, response))

    def _dispatch(self, request: wire.Request, encode: Callable[[wire.Response | bytes], bytes]) -> None:
        handlers = self.server.handlers
        if self.server.stopping:
            self._answer(lambda: encode(wire.Err(message="shutting down")))
            return
        quick = handlers.quick(request)
        if quick is not None:
            self._answer(lambda: encode(quick()))
            return
        self._newest_change += 1
        number = self._newest_change
        self._changes[number] = None
        self.server.spawn(self._loop.create_task(self._change(number, request, encode)))

    async def _change(
        self, number: int, request: wire.Request, encode: Callable[[wire.Response | bytes], bytes]
    ) -> None:
        response = await self.server.handlers.run(request)
        del self._changes[number]
        self._send(encode(response))
        while self._held and (not self._changes or next(iter(self._changes)) > self._held[0][0]):
            self._send(self._held.popleft()[1]())
        self._flush()
        if not self._reading and not self._again:
            self._serve()

    # Writing.

    def _answer(self, answer: Callable[[], bytes]) -> None:
        """Give a quick answer, after those of the changes that were asked for before it."""
        if self._changes:
            self._held.append((self._newest_change, answer))
        else:
            self._send(answer())

    def push(self, about: tuple[type, str], message: bytes) -> None:
        """Send an event, or keep it while the client does not read.  Clients that speak envelopes only get none."""
        if self._speaks_envelopes and not self._speaks_json:
            return
        if self._writable:
            self._send(message)
            self._flush()
            return
        self._events.pop(about, None)
        self._events[about] = message
        if len(self._events) > EVENTS:
            del self._events[next(iter(self._events))]

    def _send(self, message: bytes) -> None:
        self._out.append(message)
        self._out_bytes += len(message)
        if self._out_bytes >= FLUSH:
            self._flush()

    def _flush(self) -> None:
        if self._out:
            if self._transport is not None:
                self._transport.write(b"".join(self._out) if len(self._out) > 1 else self._out[0])
            self._out.clear()
            self._out_bytes = 0

    # The end.

    def close(self, why: str) -> None:
        """Close once everything is written."""
        if self._transport is not None:
            log.debug("connection closed: %s (%s)", why, self.credentials)
            self._flush()
            self._transport.close()

    def abort(self, why: str) -> None:
        """Close because of what the client did."""
        log.warning("connection closed: %s (%s)", why, self.credentials)
        if self._transport is not None:
            self._flush()
            if self._transport.get_write_buffer_size():
                self._transport.abort()  # it does not read: waiting for it to take what was written could take for ever
            else:
                self._transport.close()


def _reply(id: int, response: wire.Response | bytes) -> bytes:
    """The frame of an answer; one that is encoded already (a cached status) is wrapped as it is."""
    return wire.encode_spliced(id, response) if isinstance(response, bytes) else wire.encode_response(id, response)
