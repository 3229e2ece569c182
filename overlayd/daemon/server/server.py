"""All connections of the socket together: turns, limits, events, and the end.

Owns: who is connected, whose messages are served next, and what all may hold together.  Must not know: what is in a
message (`daemon.server.connection`), or what a request does (`daemon.handlers`).

Reads only fill a connection's inbox.  A connection that has something to be served queues up, gets a turn, and after a
slice of time the event loop looks at the sockets again.  So however many clients flood, an identity probe, which is
answered as it is read, and the first message of a quiet client wait for no more than a slice and a round of turns.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

from overlayd import wire
from overlayd.daemon.handlers import Handlers
from overlayd.daemon.server.acceptor import QUOTAS, Acceptor, Quotas
from overlayd.daemon.server.connection import LIMITS, Connection, Limits
from overlayd.daemon.server.deliveries import Deliveries
from overlayd.daemon.server.idle import Idle
from overlayd.daemon.server.large import Examiner
from overlayd.daemon.server.listener import Credentials, Place
from overlayd.daemon.server.turns import Turns
from overlayd.daemon.server.unknown_keys import UnknownKeys
from overlayd.daemon.tasks import Spawn, Work
from overlayd.proto.mux import EndpointMux

log = logging.getLogger(__name__)

# Our own constants.
REST = 0.001  # seconds between two slices of a flood while changes are in flight
# Changes that begin before the sockets are looked at again, or so many bytes of them.  What a change does at once, as
# reading its allowed IPs, takes up to 0.3 us a byte.
BEGIN, BEGIN_BYTES = 16, 8 * 1024
GRACE = 1.0  # seconds in which, at the end, what clients had sent already is still read and refused


class Server:
    """All connections of the socket.

    admits: whether a client may connect.  spawn: starts a change, which outlives its connection.  mux: answers probes
    and sorts envelopes; None: only the JSON wire is served.  quotas: how many connections there may be.
    """

    def __init__(
        self,
        handlers: Handlers,
        admits: Callable[[Credentials], bool],
        spawn: Spawn,
        mux: EndpointMux | None = None,
        limits: Limits = LIMITS,
        *,
        quotas: Quotas = QUOTAS,
    ) -> None:
        self.handlers = handlers
        self.mux = mux
        self.limits = limits
        self.unknown_keys = UnknownKeys()
        self.examiner = Examiner()
        self.stopping = False
        self.buffered = 0  # bytes, over all connections
        self.connections: set[Connection] = set()
        self._idle = Idle(self.connections)
        self._acceptor = Acceptor(admits, quotas, lambda client: Connection(self, client), self._idle.first)
        self._spawn = spawn
        self._turns: Turns[Connection] = Turns(limits.turn)
        self.is_next = self._turns.is_next
        self._scheduled = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._deliveries = Deliveries(self._soon)
        self._coming: deque[tuple[Work, int]] = deque()  # changes that have yet to begin, and their bytes
        self._beginning = False
        self._sweeping: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop

    @asynccontextmanager
    async def serving(self, place: Place, patience: float) -> AsyncIterator[None]:
        """Serve there until the block ends, then drain: see there.  patience: seconds."""
        self._loop = asyncio.get_running_loop()
        self._sweep()
        try:
            with self._acceptor.accepting(place):
                yield
        finally:
            await self.drain(patience)
            self.examiner.close()

    def publish(self, event: wire.Event) -> None:
        """Send an event to every client, `changed` to those who watch; one that does not read keeps the newest of each
        peer.
        """
        if isinstance(event, wire.Changed):
            about = f"{event.kind} {event.object} {event.finding.code if event.finding is not None else event.what}"
            listening = [each for each in self.connections if each.watches]
        else:
            about, listening = event.pubkey, list(self.connections)
        message = wire.encode_event(event) if listening else b""

        def delivery() -> Iterator[None]:
            for connection in listening:
                connection.push((type(event), about), message)
                yield

        self._deliveries.add(delivery())

    @property
    def is_watched(self) -> bool:
        """Whether anybody asked for `changed` events."""
        return any(each.watches for each in self.connections)

    async def drain(self, seconds: float) -> None:
        """Refuse new requests, wait so many seconds for those in flight, and close every connection once its answers
        are out.
        """
        self.stopping = True
        self._deliveries.finish()
        while self._coming:
            self._begin()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        for connection in list(self.connections):
            connection.give_up()
        await self._while(lambda: any(connection.busy for connection in self.connections))
        for connection in list(self.connections):
            connection.close("the daemon stops", logging.DEBUG)
        await self._while(lambda: bool(self.connections))
        for connection in list(self.connections):
            connection.abort()
        if self._sweeping is not None:
            self._sweeping.cancel()

    # --- What connections call (`Connections`) ---

    def made(self, connection: Connection) -> None:
        self.connections.add(connection)

    def queue(self, connection: Connection) -> None:
        """Give the connection a turn, once."""
        if not connection.queued:
            connection.queued = True
            self._turns.add(connection)
            self._serve_soon()

    def start(self, change: Work, size: int) -> None:
        """Run a change to its end, whatever becomes of the connection that asked for it.  size: bytes of the request.

        It begins at once if no other one has since the sockets were looked at, else in its turn.
        """
        self._coming.append((change, size))
        if not self._beginning:
            self._begin()

    def account(self, connection: Connection, buffered: int) -> None:
        """Note how many bytes a connection holds; when all hold too many, the one that holds most is cut off.  Clients
        that have hung up hold the requests that are still worked on; who holds no more than a turn's bytes is spared.
        """
        self.buffered += buffered - connection.buffered
        connection.buffered = buffered
        if self.buffered > self.limits.buffered and self.connections:
            largest = max(self.connections, key=lambda one: one.buffered)
            if largest.buffered > self.limits.turn_bytes:
                share = f"{largest.buffered} of {self.buffered} bytes"
                log.warning("connection cut off: it holds %s that are waiting (%s)", share, largest.credentials)
                largest.abort()

    def lost(self, connection: Connection) -> None:
        """Forget a connection."""
        if connection in self.connections:
            self.connections.remove(connection)
            if self._acceptor.left(connection.credentials):
                self.unknown_keys.left(connection.credentials)

    # --- On the event loop ---

    def _serve(self) -> None:
        """A slice of serving, in turns."""
        end = time.monotonic() + self.limits.slice
        try:
            while self._turns and not self._coming:
                connection = self._turns.next()
                connection.queued = False
                connection.serve(self.limits.turn)
                if time.monotonic() > end:
                    break
        finally:
            self._scheduled = False
            if self._turns and not self._coming:  # else when these have begun
                self._scheduled = True
                self._soon(self._serve)

    def _soon(self, callback: Callable[[], None]) -> None:
        """Call somebody when the sockets have been looked at, and the threads of the changes had the interpreter."""
        if self._tasks:
            self._loop.call_later(REST, callback)
        else:
            self._loop.call_soon(callback)

    def _begin(self) -> None:
        """Begin some changes, and the next ones when the sockets have been looked at."""
        size = 0
        for _ in range(BEGIN):
            if not self._coming or size > BEGIN_BYTES:
                break
            change, more = self._coming.popleft()
            size += more
            task = self._spawn(change)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if not self._beginning:
            self._beginning = True
            self._loop.call_soon(self._begin_next)

    def _begin_next(self) -> None:
        self._beginning = False
        if self._coming:
            self._begin()
        elif self._turns:
            self._serve_soon()

    def _serve_soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._serve)

    def _sweep(self) -> None:
        """Once a second: close connections that left a message incomplete, cut off those that do not read the end."""
        now = self._loop.time()
        self._idle.look(now)
        limits = self.limits
        for connection in list(self.connections):
            if connection.closed_since:
                if now - connection.closed_since > limits.linger:
                    connection.abort()
            elif connection.incomplete_since and now - connection.incomplete_since > limits.incomplete:
                connection.close(f"a message stayed incomplete for {limits.incomplete:g} s")
        self._sweeping = self._loop.call_later(min(1.0, limits.incomplete), self._sweep)

    async def _while(self, condition: Callable[[], bool]) -> None:
        """Wait while the condition holds, for GRACE at most."""
        end = self._loop.time() + GRACE
        await asyncio.sleep(0.01)
        while condition() and self._loop.time() < end:  # noqa: ASYNC110 -- of many connections, no one event
            await asyncio.sleep(0.01)
