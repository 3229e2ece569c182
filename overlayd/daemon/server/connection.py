"""One client's connection: its bytes, and what becomes of bad input.

Owns: reading and writing with back-pressure both ways.  Must not know: which answer waits for which
(`proto.connection`), what a request does (`daemon.handlers`), or whose turn it is (`daemon.server.server`).

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
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, cast

from overlayd import wire
from overlayd._fast.exchange import Exchange
from overlayd._fast.frame import Inbox
from overlayd.daemon.handlers import Handlers
from overlayd.daemon.server import audit
from overlayd.daemon.server.large import LARGE, Examiner
from overlayd.daemon.server.listener import Credentials
from overlayd.daemon.server.payload import answer_payload, read_payload
from overlayd.daemon.server.unknown_keys import UnknownKeys
from overlayd.daemon.tasks import Work
from overlayd.errors import ProtocolError
from overlayd.proto.connection import AnswerOrder
from overlayd.proto.envelope import Frame
from overlayd.proto.mux import EndpointMux, NeedMore, Payload, ProbeAnswered

log = logging.getLogger(__name__)

# Our own constants.
BYTES_OF_A_MESSAGE = 1024  # a turn costs as many messages as were served, or as so many bytes make up
GATHER = 64 * 1024  # bytes of answers that are gathered before they are handed to the transport
LONG = 1024  # bytes of a piece, on the average, from which on pieces are not joined
LONGEST_TRACE = 128  # characters of a client's trace strings in our log; a traceparent has 55 (W3C Trace Context)

# What a client is told of its requests when the daemon stops.
REFUSED = "shutting down"
UNFINISHED = (
    "shutting down, and this takes too long to be waited for: it may still take effect; repeat it with the next daemon"
)


class Limits(NamedTuple):
    """Our own limits of a connection, and of all together."""

    turn: int = 64  # messages of one connection that are served before another's
    at_once: int = 8  # of them that are served as they are read, if nobody comes before
    turn_bytes: int = 64 * 1024  # or so many bytes of them
    slice: float = 0.0005  # seconds of serving before the sockets are looked at again
    in_flight: int = 1024  # requests of one connection being worked on or waiting for those; then it is not read
    unread: int = 256 * 1024  # bytes of answers that a client leaves unread; then it is not read either
    events: int = 4096  # events kept for a client that does not read: the newest of each peer
    incomplete: float = 10.0  # seconds that a message may stay incomplete
    linger: float = 5.0  # seconds that a client has for reading its last answers after we closed
    buffered: int = 256 * 1024 * 1024  # bytes of messages and answers, all connections together
    slow: float = 1.0  # seconds from which on a request is logged


LIMITS = Limits()


class Connections(Protocol):
    """All connections together, as one of them sees them."""

    handlers: Handlers
    mux: EndpointMux | None
    limits: Limits
    unknown_keys: UnknownKeys
    examiner: Examiner
    stopping: bool  # nothing new is begun

    def is_next(self, connection: "Connection") -> bool:
        """Whether nobody who waits comes before it."""

    def made(self, connection: "Connection") -> None:
        """Know a connection from now on."""

    def lost(self, connection: "Connection") -> None:
        """Forget a connection."""

    def queue(self, connection: "Connection") -> None:
        """Give the connection a turn, once."""

    def start(self, change: Work, size: int) -> None:
        """Run a change, whatever becomes of the connection that asked for it.  size: of the request, in bytes."""

    def account(self, connection: "Connection", buffered: int) -> None:
        """Note how many bytes a connection holds."""


class Connection(asyncio.BufferedProtocol):
    """One client; made by the server's transport."""

    def __init__(self, server: Connections, client: Credentials) -> None:
        self.credentials = client
        self.buffered = 0  # bytes that count against Limits.buffered
        self.queued = False  # waits for its turn
        self.paid_until = 0  # see `daemon.server.turns`
        self.incomplete_since = 0.0  # when the message at the front began, 0: there is none, or we do not read
        self.closed_since = 0.0  # when we closed, 0: we did not
        self.seen = 0  # these two: see `daemon.server.idle`
        self._server = server
        self._limits = server.limits
        self._handlers = server.handlers
        self._loop = asyncio.get_running_loop()
        self.quiet_since = self._loop.time()
        self._transport: asyncio.Transport
        self._inbox = Inbox()
        self._exchange = Exchange(self._inbox, wire.decode_plain, server.handlers.quick, LARGE)
        self._open = False
        self._eof = False
        self._reading = True
        self._examining = 0  # bytes of a large request that is being decoded
        self._working = 0  # bytes of the requests that are being worked on
        # Answers go to the id of a JSON request, or to the envelope that a request came in.
        self._order: AnswerOrder[int | Frame, wire.Request | wire.Err] = AnswerOrder(server.limits.events)
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._flushing = False  # soon
        self.get_buffer = self._inbox.get_buffer  # type: ignore[method-assign]  # once for each read: no step between
        self.watches = False  # has asked for `changed` events
        self._program = ""  # the client's, once it has asked for a change
        self._takes_events: bool | None = None  # only who sends JSON does; None: nothing has been sent

    # --- What the transport calls ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._open = True
        self._transport.set_write_buffer_limits(high=self._limits.unread)
        self._server.made(self)

    def connection_lost(self, error: Exception | None) -> None:
        if self._open:
            log.info("connection lost: %s (%s)", error, self.credentials)
        self._leave()

    def buffer_updated(self, nbytes: int) -> None:
        self._inbox.received(nbytes)
        if self._inbox.foreign:
            self.serve(1)
        elif self.queued:
            self._steer()
        elif not self._server.is_next(self):
            self._server.queue(self)
        elif not self._answer_at_once():
            self.serve(self._limits.at_once)

    def eof_received(self) -> bool:
        """The client has nothing more to say, but may wait for answers."""
        self._eof = True
        self._reading = False
        self._server.queue(self)
        return True

    def pause_writing(self) -> None:
        self._order.reads = False
        self._steer()
        self._account()

    def resume_writing(self) -> None:
        self._order.reads = True
        for event in self._order.kept_events():
            self._send(event)
        self._release()
        self._flush()
        self._server.queue(self)

    # --- Reading ---

    def serve(self, turn: int) -> None:
        """Serve up to `turn` of the messages that have come."""
        left = turn
        held = self._inbox.buffered
        enough = held - self._limits.turn_bytes
        try:
            while left and self._inbox.buffered and self._may_serve():
                served = self._serve_some(left)
                if not served:
                    break
                left = left - served if self._inbox.buffered > enough else 0
        except ProtocolError as error:
            self.close(str(error))
        self._flush()
        if not self._open:
            return
        buffered = self._inbox.buffered
        self.paid_until += max(turn - left, (held - buffered) // BYTES_OF_A_MESSAGE)
        if buffered and not left:
            self._server.queue(self)
        elif self._eof and not self._order.in_flight and not self._examining and self._order.reads:
            if buffered:
                self.close("truncated frame: the client hung up in the middle of a message")
            else:
                self.close("the client hung up", logging.DEBUG)
            return
        self._steer()
        if not buffered or not self._reading:
            self.incomplete_since = 0.0
        elif left < turn or not self.incomplete_since:
            self.incomplete_since = self._loop.time()
        self._account()

    def _answer_at_once(self) -> bool:
        """Answer what has come, if nothing is in flight; False when there is more to do."""
        if self._order.in_flight or self._server.stopping or not self._may_serve():
            return False
        exchange = self._exchange
        try:
            pieces = exchange.advance(self._limits.at_once, LARGE)
        except ProtocolError:
            return False  # and `serve` meets it again
        if not exchange.taken:
            return False
        self._takes_events = True
        self.paid_until += exchange.taken
        if len(pieces) == 1:
            self._transport.write(pieces[0])
        elif pieces:
            self._transport.writelines(pieces)
        if exchange.left is not None:
            self._serve_other(exchange.left, exchange.size)
            return False
        return not self._inbox.buffered and not self.buffered

    def _may_serve(self) -> bool:
        order, limits = self._order, self._limits
        return self._open and order.reads and not self._examining and order.in_flight < limits.in_flight

    def _serve_some(self, most: int) -> int:
        """Serve one envelope, or up to `most` JSON frames; 0 when no message is whole."""
        order, exchange = self._order, self._exchange
        at_once = not order.in_flight and not self._server.stopping
        for piece in exchange.advance(min(most, self._limits.in_flight - order.in_flight), LARGE, at_once):
            self._send(piece)
        if exchange.taken:
            self._takes_events = True
            if (left := exchange.left) is not None:
                self._serve_other(left, exchange.size)
            return exchange.taken
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
        self._takes_events = self._takes_events or False
        self._inbox.consume(consumed)
        return 1

    def _serve_other(self, frame: Any, size: int) -> None:
        """A frame that the short way does not answer: decoded, or its body, which is large or cannot be decoded."""
        if not isinstance(frame, memoryview):
            self._ask(frame.id, frame.request, size)
        elif size >= LARGE:
            self._server.start(self._examine(frame, size), 0)
        else:
            try:
                self._read_json(frame)
            except ProtocolError as error:
                self.close(str(error))

    def _read_json(self, body: memoryview) -> None:
        try:
            id, request = wire.decode_request(body, self._unknown)
        except wire.BadRequest as error:
            self._answer_in_turn(error.id, wire.Err(str(error), "bad_request"))
        except wire.NotARequest as error:
            log.warning("ignored: %s (%s)", error, self.credentials)
        else:
            self._ask(id, request, len(body))

    def _read_envelope(self, frame: Frame) -> None:
        if len(frame.payload) >= LARGE:
            self._server.start(self._examine(frame, len(frame.payload)), 0)
            return
        request = read_payload(frame, self._unknown)
        if isinstance(request, wire.Err):
            self._answer_in_turn(frame, request)
        elif request is not None:
            self._ask(frame, request, len(frame.payload))

    def _unknown(self, keys: Sequence[wire.UnknownKey]) -> None:
        self._server.unknown_keys.told(self.credentials, keys)

    def _examine(self, body: memoryview | Frame, size: int) -> Work:
        """Serve a large request; what comes after it waits until it is decoded."""
        self._examining = size
        return self._examined(body, size)

    async def _examined(self, body: memoryview | Frame, size: int) -> None:
        try:
            to, request, unknown = await self._server.examiner.examine(body)
        except wire.NotARequest as error:
            log.warning("ignored: %s (%s)", error, self.credentials)
        except ProtocolError as error:
            self.close(str(error))
        else:
            if self._open:
                self._unknown(unknown)
                self._answer_examined(to, request, size)
        self._examining = 0
        self._account()
        self._flush()
        self._server.queue(self)

    def _answer_examined(self, to: int | Frame, request: wire.Request | wire.Err | None, size: int) -> None:
        if isinstance(request, wire.Err):
            self._answer_in_turn(to, request)
        elif request is not None:
            self._ask(to, request, size)

    def _ask(self, to: int | Frame, request: wire.Request, size: int) -> None:
        """size: bytes of the request, which count until it is done."""
        if self._server.stopping:
            self._answer_in_turn(to, wire.Err(REFUSED, "stopping"))
        elif self._handlers.is_quick(request):
            self._answer_in_turn(to, request)
        else:
            self.watches = self.watches or isinstance(request, wire.Watch)
            self._working += size
            self._server.start(self._change(self._order.change(to), to, request, size), size)

    async def _change(self, number: int, to: int | Frame, request: wire.Request, size: int) -> None:
        began = time.monotonic()
        response = await self._handlers.run(request)
        self._working -= size
        self._account()
        seconds = time.monotonic() - began
        if self._order.done(number):  # else the client was told that it is not waited for
            self._answer(to, response)
            self._release()
            if not self._order.in_flight:
                self._flush()
            elif not self._flushing:  # those that end together are answered in one write
                self._flushing = True
                self._loop.call_soon(self._flush)
            if not self._reading:
                self._server.queue(self)
        # The client need not wait for what is written of its request.
        if not isinstance(response, bytes):  # which a change is never answered by
            if not self._program:
                self._program = audit.program_of(self.credentials)
            audit.tell(self.credentials, self._program, request, response, seconds)
        if seconds > self._limits.slow:
            log.warning("slow request: %s took %.1f s (%s)%s", _op(request), seconds, self.credentials, _trace(to))

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
        """What is held for this client, also after it has hung up: requests that are worked on stay."""
        unsent = 0 if self._order.reads or not self._open else self._transport.get_write_buffer_size()
        held = self._inbox.buffered + unsent + self._examining + self._working
        if self.buffered != held:
            self._server.account(self, held)

    # --- Writing ---

    def _answer_in_turn(self, to: int | Frame, what: wire.Request | wire.Err) -> None:
        """Answer after the changes that were asked for before."""
        if not self._order.hold(to, what):
            self._answer_now(to, what)

    def _release(self) -> None:
        """Give the answers that waited for a change that is done, or for the client to read."""
        for to, what in self._order.due():
            self._answer_now(to, what)

    def _answer_now(self, to: int | Frame, what: wire.Request | wire.Err) -> None:
        """Answer, or begin to, when that takes long: what is asked later waits for it as for a change."""
        if isinstance(what, wire.Err):
            self._answer(to, what)
        elif (response := self._handlers.read(what)) is not None:
            self._answer(to, response)
        else:
            self._server.start(self._change(self._order.change(to), to, what, 0), 0)

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
        if not self._open or self._takes_events is False:
            return
        if self._order.reads:
            self._send(message)
            self._flush()
        else:
            self._order.keep_event(about, message)

    def _send(self, message: bytes) -> None:
        self._out.append(message)
        self._out_bytes += len(message)
        if self._out_bytes >= GATHER:
            self._flush()

    def _flush(self) -> None:
        self._flushing = False
        if not self._out:
            return
        pieces, self._out = self._out, []
        # Many small ones are sooner copied than told apart by the kernel; long answers are as good as they are.
        joined = len(pieces) == 1 or self._out_bytes < LONG * len(pieces)
        self._out_bytes = 0
        if self._open and joined:
            self._transport.write(b"".join(pieces))
        elif self._open:
            self._transport.writelines(pieces)

    # --- The end ---

    @property
    def busy(self) -> bool:
        """Whether the client is owed answers that it would read, or will: it may only be behind with those before."""
        behind = not self._order.reads and self._inbox.buffered > 0
        return self.queued or bool(self._examining) or behind or self._order.is_owed

    def give_up(self) -> None:
        """Tell the client of every change in flight that the daemon stops before it is done."""
        for to in self._order.give_up():
            self._answer(to, wire.Err(UNFINISHED, "stopping"))
        self._release()
        self._flush()

    def close(self, why: str, level: int = logging.WARNING) -> None:
        """Serve no more; the client gets `Limits.linger` to read what it was answered."""
        if self._open:
            log.log(level, "connection closed: %s (%s)", why, self.credentials)
            self._flush()
            self._open = False
            self._order.drop()
            self.closed_since = self._loop.time()
            self._transport.close()

    @property
    def is_idle(self) -> bool:
        """Whether nobody misses it who can connect again: nothing came or has to go, and no events are asked for."""
        holds = self.buffered or self._inbox.buffered or self._order.in_flight
        return self._open and not (self.watches or self.busy or self._eof or holds)

    def make_room(self, why: str) -> None:
        """Hang up for somebody else."""
        idle = self._loop.time() - self.quiet_since
        log.warning("connection closed: it was idle for %.0f s, and %s (%s)", idle, why, self.credentials)
        self.abort()

    def abort(self) -> None:
        """Hang up now, whatever has not been sent."""
        self._transport.abort()
        self._leave()

    def _leave(self) -> None:
        """Let go of all but the requests that are worked on."""
        self._open = False
        self._order.drop()
        self._inbox.consume(self._inbox.buffered)
        self._server.lost(self)
        self._account()


def _op(request: wire.Request) -> str:
    return str(request.__struct_config__.tag)


def _trace(to: int | Frame) -> str:
    """What a client says of its trace, for our log: its text, which may be anything."""
    if not isinstance(to, Frame) or not (to.traceparent or to.tracestate):
        return ""
    return f" traceparent {to.traceparent[:LONGEST_TRACE]!a} tracestate {to.tracestate[:LONGEST_TRACE]!a}"
