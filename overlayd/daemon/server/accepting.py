"""Accepting at a path, while there is room.

Owns: the socket until it is closed, that it stays where clients look for it, and when accepting pauses.  Must not know:
who gets a connection, how many there may be, or what becomes of one.

Who tidies up directories may remove the socket under a daemon that works, and nobody would reach it again: so it is
looked at now and then, and bound again.

When there is no room, or the process has no descriptor left, nobody is accepted until something has ended: clients wait
in the kernel's queue, and what is open goes on.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EMFILE, ENFILE

from overlayd.daemon.server.listener import Credentials, Place, credentials
from overlayd.errors import OverlaydError

log = logging.getLogger(__name__)

# Our own constants.
ROUND = 4  # connections that are accepted before anything else is looked at
LOOK = 2.0  # seconds between two looks at the path
RETRY = 0.25  # seconds after which we look again whether there is room: a descriptor, or somebody who may give way

_REMEDIES = {EMFILE: "raise the limit of descriptors (LimitNOFILE)", ENFILE: "raise the host's (sysctl fs.file-max)"}


class Accepting:
    """what: it is called in the log.  full: why there is no room now, empty while there is some.  take: is given each
    new connection, which does not block, and who made it.  backlog: connections that wait to be accepted.
    """

    def __init__(
        self,
        what: str,
        full: Callable[[], str],
        take: Callable[[socket.socket, Credentials], None],
        backlog: int,
    ) -> None:
        self._what = what
        self._backlog = backlog
        self._full = full
        self._take = take
        self._place: Place | None = None
        self._paused = False
        self._retrying: asyncio.TimerHandle | None = None
        self._trouble = ""  # why the socket cannot be bound again
        self._loop: asyncio.AbstractEventLoop

    @contextmanager
    def running(self, place: Place) -> Iterator[None]:
        """Listen there, and accept until the block ends; then the socket is closed."""
        self._loop = asyncio.get_running_loop()
        self._place = place
        place.socket.listen(self._backlog)
        self._loop.add_reader(place.socket, self._accept)
        self._looking = self._loop.call_later(LOOK, self._look)
        try:
            yield
        finally:
            self._looking.cancel()
            if self._retrying is not None:
                self._retrying.cancel()
            self._loop.remove_reader(place.socket)
            self._place = None
            place.socket.close()

    def resume(self) -> None:
        """Accept again: something has ended, or gives way, so that there may be room."""
        if self._paused and self._place is not None and not self._full():
            self._paused = False
            self._loop.add_reader(self._place.socket, self._accept)

    def _retry_later(self) -> None:
        if self._retrying is not None:
            self._retrying.cancel()
        self._retrying = self._loop.call_later(RETRY, self._retry)

    def _retry(self) -> None:
        self._retrying = None
        self.resume()
        if self._paused and self._place is not None:
            self._retry_later()

    def _look(self) -> None:
        assert self._place is not None
        self._looking = self._loop.call_later(LOOK, self._look)
        if not self._place.is_lost():
            return
        try:
            former = self._place.retake()
        except OverlaydError as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                log.error("clients do not find this daemon, for its socket was removed: %s", error)
            return
        self._trouble = ""
        self._loop.remove_reader(former)
        former.close()
        self._place.socket.listen(self._backlog)
        if not self._paused:
            self._loop.add_reader(self._place.socket, self._accept)
        log.warning("somebody removed the socket %s: it is there again", self._place.path)

    def _accept(self) -> None:
        for _ in range(ROUND):
            if self._place is None:
                return
            if why := self._full():
                self._pause(why)
                return
            try:
                accepted, _ = self._place.socket.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:  # no descriptor, or no memory
                remedy = _REMEDIES.get(error.errno or 0, "it is tried again by itself")
                self._pause(f"{error.strerror}: {remedy}")
                return
            accepted.setblocking(False)
            try:
                client = credentials(accepted)
            except OSError as error:
                log.warning("connection closed: cannot tell who it is: %s", error.strerror)
                accepted.close()
            else:
                self._take(accepted, client)

    def _pause(self, why: str) -> None:
        assert self._place is not None
        self._paused = True
        self._loop.remove_reader(self._place.socket)
        self._retry_later()
        log.warning("no further %s are accepted until one is closed: %s", self._what, why)
