"""New connections: who gets one, and how many there may be.

Owns: the quotas.  Must not know: what a connection does once it is there, or how the socket is watched (`accepting`).

The quotas are of all connections, of one user's and of one process's.  A process that has used up its own is hung up on
at once.  When all are taken, or a user's, one that is idle gives way.  If there is none, the user is hung up on at
once; of all, nobody is accepted until one is free again.
"""

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from overlayd.daemon.server.accepting import Accepting
from overlayd.daemon.server.listener import Credentials, Place

log = logging.getLogger(__name__)

# Our own constants.
BACKLOG = 1024  # connections that wait to be accepted
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


class Idler(Protocol):
    """A connection that can give way."""

    def make_room(self, why: str) -> None:
        """Be closed, and `left`, before this returns."""


class Acceptor:
    """Accepts at one path.

    admits: whether somebody may have a connection at all.  quotas: how many there may be.  make: the protocol of a new
    connection; whoever made it calls `left` when it is closed.  idle: which one gives way, of this user's or of all.
    """

    def __init__(
        self,
        admits: Callable[[Credentials], bool],
        quotas: Quotas,
        make: Callable[[Credentials], asyncio.BaseProtocol],
        idle: Callable[[int | None], Idler | None],
    ) -> None:
        self._admits = admits
        self._quotas = quotas
        self._make = make
        self._idle = idle
        self._open = 0
        self._of_user: Counter[int] = Counter()
        self._of_process: Counter[int] = Counter()
        self._accepting = Accepting("connections", self._full, self._admit, BACKLOG)
        self._loop: asyncio.AbstractEventLoop
        self._opening: set[asyncio.Task[None]] = set()

    @contextmanager
    def accepting(self, place: Place) -> Iterator[None]:
        """Accept there until the block ends; then the socket is closed."""
        self._loop = asyncio.get_running_loop()
        with self._accepting.running(place):
            yield

    def left(self, client: Credentials) -> bool:
        """A connection of this client is closed.  Returns whether it was the last of its process."""
        self._open -= 1
        for counter, who in ((self._of_user, client.uid), (self._of_process, client.pid)):
            counter[who] -= 1
            if not counter[who]:
                del counter[who]
        self._accepting.resume()
        return client.pid not in self._of_process

    def _full(self) -> str:
        if self._open < self._quotas.all or self._idle(None) is not None:
            return ""
        return f"all {self._quotas.all} are taken, and none is idle (--max-connections)"

    def _admit(self, accepted: socket.socket, client: Credentials) -> None:
        if not self._admits(client):
            log.warning(
                "connection closed: not allowed: root, the daemon's user and members of the socket's group are (%s)",
                client,
            )
        elif over := self._over(client):
            log.warning("connection closed: too many connections: %s", over)
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
        """Whose quota another connection of this client would be over, if any, also once an idle one has given way."""
        # 0 stands for all processes of another pid namespace.
        if client.pid and self._of_process[client.pid] >= self._quotas.process:
            return f"process {client.pid} has its {self._quotas.process} already (--max-connections-per-process)"
        if self._of_user[client.uid] >= self._quotas.user:
            has = f"user {client.uid} has its {self._quotas.user} already (--max-connections-per-user)"
            if not self._gives_way(client.uid, has):
                return has
        if self._open >= self._quotas.all:
            self._gives_way(None, f"all {self._quotas.all} are taken (--max-connections)")
        return ""

    def _gives_way(self, uid: int | None, why: str) -> bool:
        one = self._idle(uid)
        if one is not None:
            one.make_room(why)
        return one is not None

    async def _hand_over(self, accepted: socket.socket, client: Credentials) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: self._make(client), accepted)
        except OSError as error:
            log.warning("connection closed: %s (%s)", error, client)
            accepted.close()
            self.left(client)
