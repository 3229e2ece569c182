"""New connections: who gets one, and how many there may be.

Owns: accepting, the quotas, and when it pauses.  Must not know: what a connection does once it is there.

The quotas are of all connections, of one user's and of one process's.  Who has used up its own is hung up on at once.
When all are taken, or the process has no descriptor left, nobody is accepted until one is free again: clients wait in
the kernel's queue, and what is open goes on.
"""

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from overlayd.daemon.server.listener import Credentials, credentials

log = logging.getLogger(__name__)

# Our own constants.
BACKLOG = 1024  # connections that wait to be accepted
ROUND = 4  # of them that are accepted before anything else is looked at
RETRY = 1.0  # seconds after which a process without a descriptor to spare looks again
SHARE = 4  # connections get one in so many of the process's descriptors; the rest is for the work


class Quotas(NamedTuple):
    """How many connections there may be: in all, of one user, of one process."""

    all: int = 4096
    user: int = 3072
    process: int = 2048

    def within(self, descriptors: int) -> "Quotas":
        """The same proportions, for a process that may have so many descriptors."""
        room = max(1, descriptors // SHARE)
        if self.all <= room:
            return self
        return Quotas(room, max(1, self.user * room // self.all), max(1, self.process * room // self.all))


QUOTAS = Quotas()


class Acceptor:
    """Accepts on one listening socket.

    admits: whether somebody may have a connection at all.  quotas: how many there may be.  make: the protocol of a new
    connection; whoever made it calls `left` when it is closed.
    """

    def __init__(
        self,
        admits: Callable[[Credentials], bool],
        quotas: Quotas,
        make: Callable[[Credentials], asyncio.BaseProtocol],
    ) -> None:
        self._admits = admits
        self._quotas = quotas
        self._make = make
        self._open = 0
        self._of_user: Counter[int] = Counter()
        self._of_process: Counter[int] = Counter()
        self._listener: socket.socket | None = None
        self._paused = False
        self._loop: asyncio.AbstractEventLoop
        self._opening: set[asyncio.Task[None]] = set()

    @contextmanager
    def accepting(self, listener: socket.socket) -> Iterator[None]:
        """Accept on a bound socket, which does not block, until the block ends; then it is closed."""
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        listener.listen(BACKLOG)
        self._loop.add_reader(listener, self._accept)
        try:
            yield
        finally:
            self._loop.remove_reader(listener)
            self._listener = None
            listener.close()

    def left(self, client: Credentials) -> bool:
        """A connection of this client is closed.  Returns whether it was the last of its process."""
        self._open -= 1
        for counter, who in ((self._of_user, client.uid), (self._of_process, client.pid)):
            counter[who] -= 1
            if not counter[who]:
                del counter[who]
        self._resume()
        return client.pid not in self._of_process

    def _accept(self) -> None:
        for _ in range(ROUND):
            if self._listener is None:
                return
            if self._open >= self._quotas.all:
                self._pause(f"all {self._quotas.all} are taken (--max-connections)")
                return
            try:
                accepted, _ = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:  # no descriptor, or no memory
                self._pause(f"{error.strerror}: raise the limit of descriptors (LimitNOFILE)")
                self._loop.call_later(RETRY, self._resume)
                return
            accepted.setblocking(False)
            self._admit(accepted)

    def _admit(self, accepted: socket.socket) -> None:
        try:
            client = credentials(accepted)
        except OSError as error:
            log.warning("connection closed: cannot tell who it is: %s", error.strerror)
            accepted.close()
            return
        if over := self._over(client):
            log.warning("connection closed: too many connections: %s", over)
        elif not self._admits(client):
            log.warning(
                "connection closed: not allowed: root, the daemon's user and members of the socket's group are (%s)",
                client,
            )
        else:
            self._open += 1
            self._of_user[client.uid] += 1
            self._of_process[client.pid] += 1
            task = self._loop.create_task(self._hand_over(accepted, client))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
            return
        accepted.close()

    def _over(self, client: Credentials) -> str:
        """Whose quota another connection of this client would be over, if any."""
        # 0 stands for all processes of another pid namespace.
        if client.pid and self._of_process[client.pid] >= self._quotas.process:
            return f"process {client.pid} has its {self._quotas.process} already (--max-connections-per-process)"
        if self._of_user[client.uid] >= self._quotas.user:
            return f"user {client.uid} has its {self._quotas.user} already (--max-connections-per-user)"
        return ""

    async def _hand_over(self, accepted: socket.socket, client: Credentials) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: self._make(client), accepted)
        except OSError as error:
            log.warning("connection closed: %s (%s)", error, client)
            accepted.close()
            self.left(client)

    def _pause(self, why: str) -> None:
        assert self._listener is not None
        self._paused = True
        self._loop.remove_reader(self._listener)
        log.warning("no further connections are accepted until one is closed: %s", why)

    def _resume(self) -> None:
        if self._paused and self._listener is not None and self._open < self._quotas.all:
            self._paused = False
            self._loop.add_reader(self._listener, self._accept)
