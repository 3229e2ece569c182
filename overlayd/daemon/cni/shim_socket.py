"""The socket of the CNI shim: a call and the descriptor of a namespace come in, an answer goes out.

Owns: its connections, the descriptors that came by them until their call has been answered, and how many there may be.
Must not know: what a command does.

uvloop's transports carry no descriptors, so the sockets are read here, with recvmsg(2).
"""

import asyncio
import logging
import os
import socket
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from overlayd.daemon.server.accepting import Accepting
from overlayd.daemon.server.listener import Credentials, Place
from overlayd.daemon.tasks import Spawn
from overlayd.errors import ProtocolError
from overlayd.proto import cni
from overlayd.proto.cni import Answer, Call
from overlayd.wire import MAX_BODY

log = logging.getLogger(__name__)

# Our own constants.
IN_FLIGHT = 256  # calls at once; more wait in the kernel's queue
SHARE = 16  # they get one in so many of the process's descriptors, and each may take two
BACKLOG = 4096
HELD = 4 * MAX_BODY  # bytes of requests that are not complete yet, of all together
INCOMPLETE = 10.0  # seconds in which a shim has to send its request, and to take its answer
PROMPT = 0.2  # or so many, when somebody else waits for its place: a shim sends as it connects
PIECE = 65536  # bytes
_RIGHTS = socket.CMSG_SPACE(4 * array("i").itemsize)  # the shim sends one descriptor

Do = Callable[[Call, int | None, Credentials], Awaitable[Answer]]


class CniSocket:
    """do: answers a call, and never raises; the descriptor stays open until it returns.  spawn: starts what outlives
    the connection: a change that has begun goes on though the shim is gone.  descriptors: how many we may have.
    """

    def __init__(self, do: Do, spawn: Spawn, descriptors: int) -> None:
        self._do = do
        self._spawn = spawn
        self.most = max(1, min(IN_FLIGHT, descriptors // SHARE))
        self.held = 0  # bytes
        self._callers: dict[_Caller, None] = {}  # the oldest first
        self._serving: set[asyncio.Task[None]] = set()
        self._accepting = Accepting("CNI calls", self._full, self._take, BACKLOG)

    @asynccontextmanager
    async def serving(
        self, place: Place, before: Callable[[], Awaitable[None]], patience: float
    ) -> AsyncIterator[None]:
        """Serve there until the block ends; then the socket is closed, and those in flight have so many seconds to end.
        before: is done while shims can connect already, but nobody is answered.
        """
        place.socket.listen(BACKLOG)
        await before()
        try:
            with self._accepting.running(place):
                yield
        finally:
            for caller in [*self._callers]:
                caller.give_up()
            if self._serving:
                await asyncio.wait(self._serving, timeout=patience)

    @property
    def calls(self) -> int:
        """How many are connected."""
        return len(self._callers)

    def start(self, caller: "_Caller") -> None:
        """The caller's request is complete."""
        task = self._spawn(self._serve(caller))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    def left(self, caller: "_Caller") -> None:
        """The caller's connection is closed."""
        self._callers.pop(caller, None)
        self._accepting.resume()

    def _full(self) -> str:
        return f"{self.most} are under way" if len(self._callers) >= self.most and self._late() is None else ""

    def _late(self) -> "_Caller | None":
        """Who has to give way: the oldest that has not sent its request."""
        return next((caller for caller in self._callers if caller.is_late), None)

    def _take(self, connection: socket.socket, client: Credentials) -> None:
        if client.uid not in (0, os.getuid()):
            log.warning("CNI call refused: it is for root alone (%s)", client)
            connection.close()
            return
        if len(self._callers) >= self.most and (late := self._late()) is not None:
            late.refuse(f"it has not sent its request, and all {self.most} places are taken")
        caller = _Caller(self, connection, client, asyncio.get_running_loop())
        self._callers[caller] = None
        caller.begin()

    async def _serve(self, caller: "_Caller") -> None:
        try:
            try:
                call = cni.decode(caller.body)
            except ProtocolError as error:
                log.warning("%s (%s)", error, caller.client)
                return
            answer = await self._do(call, caller.descriptor, caller.client)
            await caller.answer(cni.encode(answer))
        finally:
            caller.hang_up()


class _Caller:
    """A connection: its request as far as it has come, and its descriptor."""

    def __init__(
        self, owner: CniSocket, connection: socket.socket, client: Credentials, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.client = client
        self.descriptor: int | None = None
        self._owner = owner
        self._connection = connection
        self._loop = loop
        self._began = loop.time()
        self._buffer = bytearray()
        self._reading = True
        self._held = 0
        self._late: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Read the request, which a shim sends as it connects: mostly it is there already."""
        self._read()
        if self._reading:
            why = f"its request was incomplete for {INCOMPLETE:g} s"
            self._late = self._loop.call_later(INCOMPLETE, self.refuse, why)
            self._loop.add_reader(self._connection, self._read)

    @property
    def body(self) -> bytes:
        return bytes(self._buffer[4:])

    async def answer(self, body: bytes) -> None:
        """Send an answer, unless the shim is gone."""
        frame = len(body).to_bytes(4, "little") + body
        with suppress(OSError, TimeoutError):
            # At once, for the runtime waits: what follows a command, as its line in the log, comes later.
            sent = self._send(frame)
            if sent < len(frame):
                await asyncio.wait_for(self._loop.sock_sendall(self._connection, frame[sent:]), INCOMPLETE)

    def _send(self, frame: bytes) -> int:
        try:
            return self._connection.send(frame)
        except BlockingIOError:
            return 0

    def give_up(self) -> None:
        """Hang up unless the request is complete."""
        if self._reading:
            self.hang_up()

    def hang_up(self) -> None:
        """Close all that is open."""
        self._stop_reading()
        self._account(0)
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None
        self._connection.close()
        self._owner.left(self)

    def _read(self) -> None:
        try:
            piece, ancillary, _, _ = self._connection.recvmsg(PIECE, _RIGHTS, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.hang_up()
            return
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                self._take(data)
        self._buffer += piece
        size = int.from_bytes(self._buffer[:4], "little") if len(self._buffer) >= 4 else 0
        self._account(len(self._buffer))
        if not piece:
            self.hang_up()
        elif size > MAX_BODY or len(self._buffer) > 4 + size > 4:
            self.refuse(f"its frame has a length of {size} bytes")
        elif self._owner.held > HELD:
            self.refuse(f"{self._owner.held} bytes of requests are incomplete")
        elif size and len(self._buffer) == 4 + size:
            self._stop_reading()
            self._account(0)
            self._owner.start(self)

    def _take(self, data: bytes) -> None:
        """The first descriptor is the namespace's; no shim of ours sends another."""
        descriptors = array("i")
        descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
        for descriptor in descriptors:
            if self.descriptor is None:
                self.descriptor = descriptor
            else:
                os.close(descriptor)

    def _account(self, held: int) -> None:
        self._owner.held += held - self._held
        self._held = held

    @property
    def is_late(self) -> bool:
        """Whether its request should be here and is not."""
        return self._reading and self._loop.time() - self._began > PROMPT

    def refuse(self, why: str) -> None:
        """Hang up on a shim that does not do its part."""
        log.warning("CNI call dropped: %s (%s)", why, self.client)
        self.hang_up()

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            if self._late is not None:
                self._late.cancel()
                self._loop.remove_reader(self._connection)
