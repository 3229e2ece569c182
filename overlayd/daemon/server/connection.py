"""One client's connection: its bytes, the order of its answers, and what becomes of bad input.

Owns: reading and writing with back-pressure both ways, and which answer waits for which.  Must not know: what a
request does (`daemon.handlers`), or other connections (`daemon.server.server` says whose turn it is).

Three kinds of requests are served, message by message:

- those that only read the state are answered on the spot, after the changes that the client asked for before them;
- changes become tasks and are answered when done, whatever is asked meanwhile;
- identity probes are answered as they are read, whatever is waiting.

What a client gets served is what it can take: while it does not read its answers, or has too many requests in flight,
it is not read either.
"""

import asyncio
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, cast

from overlayd import wire
from overlayd._fast.frame import Inbox
from overlayd.daemon.server.listener import Credentials, credentials
from overlayd.daemon.server.payload import answer_payload, read_payload
from overlayd.errors import ProtocolError
from overlayd.proto.envelope import Frame
from overlayd.proto.mux import NeedMore, Payload, ProbeAnswered

if TYPE_CHECKING:
    from overlayd.daemon.server.server import Server

log = logging.getLogger(__name__)

# Our own constants.
GATHER = 64 * 1024  # bytes of answers that are gathered before they are handed to the transport
LONGEST_TRACE = 128  # characters of a client's trace strings in our log; a traceparent has 55 (W3C Trace Context)

# What a client is told of its requests when the daemon stops.
REFUSED = "shutting down"
UNFINISHED = (
    "shutting down, and this takes too long to be waited for: it may still take effect; repeat it with the next daemon"
)


class Limits(NamedTuple):
    """Our own limits of a connection, and of all together."""

    turn: int = 64  # messages of one connection that are served before another's
    slice: float = 0.0005  # seconds of serving before the sockets are looked at again
    in_flight: int = 1024  # requests of one connection being worked on or waiting for those; then it is not read
    unread: int = 256 * 1024  # bytes of answers that a client leaves unread; then it is not read either
    events: int = 4096  # events kept for a client that does not read: the newest of each peer
    incomplete: float = 10.0  # seconds that a message may stay incomplete
    linger: float = 5.0  # seconds that a client has for reading its last answers after we closed
    buffered: int = 256 * 1024 * 1024  # bytes of messages and answers, all connections together
    slow: float = 1.0  # seconds from which on a request is logged


LIMITS = Limits()


class Connection(asyncio.BufferedProtocol):
    """One client; made by the server's transport."""

    def __init__(self, server: "Server") -> None:
        self.credentials = Credentials(0, -1, -1)
        self.buffered = 0  # bytes that count against Limits.buffered
        self.queued = False  # waits for its turn
        self.incomplete_since = 0.0  # when the message at the front began, 0: there is none, or we do not read
        self.closed_since = 0.0  # when we closed, 0: we did not
        self._server = server
        self._limits = server.limits
        self._handlers = server.handlers
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._inbox = Inbox()
        self._open = False
        self._eof = False
        self._reading = True
        self._writable = True
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._in_flight = 0  # requests that are not answered yet: changes, and those that are held
        self._newest = 0  # number of the last change
        self._changes: dict[int, int | Frame] = {}  # in flight, by number, oldest first: to whom the answer goes
        # What is answered in its turn: behind which change, to whom, and the request or its refusal.
        self._held: deque[tuple[int, int | Frame, wire.Request | wire.Err]] = deque()
        self._events: dict[tuple[type, str], bytes] = {}  # not sent yet, the newest of each peer
        self._sent_json = False
        self._sent_envelope = False

    # --- What the transport calls ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._open = True
        self.credentials = credentials(self._transport.get_extra_info("socket"))
        self._server.connections.add(self)
        if self._server.admits(self.credentials):
            self._transport.set_write_buffer_limits(high=self._limits.unread)
        else:
            self.close("not allowed: root, the daemon's user and members of the socket's group are")

    def connection_lost(self, error: Exception | None) -> None:
        if self._open:
            log.info("connection lost: %s (%s)", error, self.credentials)
        self._open = False
        self._held.clear()
        self._events.clear()
        self._server.lost(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._inbox.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        self._inbox.received(nbytes)
        if self._inbox.foreign:
            self.serve(1)
        elif self.queued:
            self._steer()
        elif len(self._server.connections) == 1:
            self.serve(self._limits.turn)  # nobody waits for a turn
        else:
            self._server.queue(self)

    def eof_received(self) -> bool:
        """The client has nothing more to say, but may wait for answers."""
        self._eof = True
        self._reading = False
        self._server.queue(self)
        return True

    def pause_writing(self) -> None:
        self._writable = False
        self._steer()
        self._account()

    def resume_writing(self) -> None:
        self._writable = True
        for message in self._events.values():
            self._send(message)
        self._events.clear()
        self._release()
        self._flush()
        self._server.queue(self)

    # --- Reading ---

    def serve(self, turn: int) -> None:
        """Serve up to `turn` of the messages that have come."""
        left = turn
        try:
            while left and self._inbox.buffered and self._may_serve():
                served = self._serve_some(left)
                if not served:
                    break
                left -= served
        except ProtocolError as error:
            self.close(str(error))
        self._flush()
        if not self._open:
            return
        more = self._inbox.buffered > 0
        if more and not left:
            self._server.queue(self)
        elif self._eof and not self._in_flight and self._writable:
            if more:
                self.close("truncated frame: the client hung up in the middle of a message")
            else:
                self.close("the client hung up", logging.DEBUG)
            return
        self._steer()
        if not more or not self._reading:
            self.incomplete_since = 0.0
        elif left < turn or not self.incomplete_since:
            self.incomplete_since = self._loop.time()
        self._account()

    def _may_serve(self) -> bool:
        return self._open and self._writable and self._in_flight < self._limits.in_flight

    def _serve_some(self, most: int) -> int:
        """Serve one envelope, or up to `most` JSON frames; 0 when no message is whole."""
        bodies = self._inbox.take(min(most, self._limits.in_flight - self._in_flight))
        if bodies:
            self._sent_json = True
            for body in bodies:
                self._read_json(body)
            return len(bodies)
        if not self._inbox.foreign:
            return 0
        if self._server.mux is None:
            raise ProtocolError("an envelope, and only the JSON wire is served here (--no-probe)")
        match self._server.mux.poll(self._inbox.peek()):
            case ProbeAnswered(reply=reply, consumed=consumed):
                self._send(reply)
            case Payload(frame=frame, consumed=consumed):
                self._read_envelope(frame)
            case NeedMore():
                return 0
        self._sent_envelope = True
        self._inbox.consume(consumed)
        return 1

    def _read_json(self, body: memoryview) -> None:
        try:
            id, request = wire.decode_request(body)
        except wire.BadRequest as error:
            self._answer_in_turn(error.id, wire.Err(message=str(error)))
        except wire.NotARequest as error:
            log.warning("ignored: %s (%s)", error, self.credentials)
        else:
            self._ask(id, request)

    def _read_envelope(self, frame: Frame) -> None:
        request = read_payload(frame)
        if isinstance(request, wire.Err):
            self._answer_in_turn(frame, request)
        elif request is not None:
            self._ask(frame, request)

    def _ask(self, to: int | Frame, request: wire.Request) -> None:
        if self._server.stopping:
            self._answer_in_turn(to, wire.Err(message=REFUSED))
        elif self._handlers.is_quick(request):
            self._answer_in_turn(to, request)
        else:
            self._in_flight += 1
            self._newest += 1
            self._changes[self._newest] = to
            self._server.start(self._change(self._newest, to, request))

    async def _change(self, number: int, to: int | Frame, request: wire.Request) -> None:
        began = time.monotonic()
        response = await self._handlers.run(request)
        seconds = time.monotonic() - began
        if seconds > self._limits.slow:
            log.warning("slow request: %s took %.1f s (%s)%s", _op(request), seconds, self.credentials, _trace(to))
        if number not in self._changes:  # the client was told that it is not waited for
            return
        del self._changes[number]
        self._in_flight -= 1
        self._answer(to, response)
        self._release()
        self._flush()
        if not self._reading:
            self._server.queue(self)

    def _steer(self) -> None:
        """Read only what can be served next."""
        wanted = self._may_serve() and not self.queued
        if wanted != self._reading and self._open and not self._eof:
            self._reading = wanted
            if wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _account(self) -> None:
        unsent = 0 if self._writable or not self._open else self._transport.get_write_buffer_size()
        if self.buffered != self._inbox.buffered + unsent:
            self._server.account(self, self._inbox.buffered + unsent)

    # --- Writing ---

    def _answer_in_turn(self, to: int | Frame, what: wire.Request | wire.Err) -> None:
        """Answer after the changes that were asked for before."""
        if self._in_flight or not self._writable:
            self._in_flight += 1
            self._held.append((self._newest, to, what))
        else:
            self._answer(to, what if isinstance(what, wire.Err) else self._handlers.read(what))

    def _release(self) -> None:
        """Give the answers that waited for a change that is done, or for the client to read."""
        held = self._held
        while held and self._writable and not (self._changes and next(iter(self._changes)) <= held[0][0]):
            _, to, what = held.popleft()
            self._in_flight -= 1
            self._answer(to, what if isinstance(what, wire.Err) else self._handlers.read(what))

    def _answer(self, to: int | Frame, response: wire.Response | bytes) -> None:
        """to: the id of a JSON request, or the envelope that the request came in.  bytes: encoded already."""
        if isinstance(to, Frame):
            self._send(answer_payload(to, response))
        elif isinstance(response, bytes):
            self._send(wire.encode_spliced(to, response))
        else:
            self._send(wire.encode_response(to, response))

    def push(self, about: tuple[type, str], message: bytes) -> None:
        """Send an event, or keep it while the client does not read.  Clients that speak envelopes only get none."""
        if not self._open or (self._sent_envelope and not self._sent_json):
            return
        if self._writable:
            self._send(message)
            self._flush()
            return
        self._events.pop(about, None)
        self._events[about] = message
        if len(self._events) > self._limits.events:
            del self._events[next(iter(self._events))]

    def _send(self, message: bytes) -> None:
        self._out.append(message)
        self._out_bytes += len(message)
        if self._out_bytes >= GATHER:
            self._flush()

    def _flush(self) -> None:
        if not self._out:
            return
        gathered = b"".join(self._out)
        self._out.clear()
        self._out_bytes = 0
        if self._open:
            self._transport.write(gathered)

    # --- The end ---

    @property
    def busy(self) -> bool:
        """Whether the client is owed answers that it would read."""
        return self.queued or bool(self._changes) or (self._in_flight > 0 and self._writable)

    def give_up(self) -> None:
        """Tell the client of every change in flight that the daemon stops before it is done."""
        for to in self._changes.values():
            self._answer(to, wire.Err(message=UNFINISHED))
        self._in_flight -= len(self._changes)
        self._changes.clear()
        self._release()
        self._flush()

    def close(self, why: str, level: int = logging.WARNING) -> None:
        """Serve no more; the client gets `Limits.linger` to read what it was answered."""
        if self._open:
            log.log(level, "connection closed: %s (%s)", why, self.credentials)
            self._flush()
            self._open = False
            self._held.clear()
            self.closed_since = self._loop.time()
            self._transport.close()

    def abort(self) -> None:
        """Hang up now, whatever has not been sent."""
        self._open = False
        self._transport.abort()


def _op(request: wire.Request) -> str:
    return str(request.__struct_config__.tag)


def _trace(to: int | Frame) -> str:
    """What a client says of its trace, for our log: its text, which may be anything."""
    if not isinstance(to, Frame) or not (to.traceparent or to.tracestate):
        return ""
    return f" traceparent {to.traceparent[:LONGEST_TRACE]!a} tracestate {to.tracestate[:LONGEST_TRACE]!a}"
