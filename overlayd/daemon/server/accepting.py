"""Accepting on a listening socket, while there is room.

Owns: the socket until it is closed, and when accepting pauses.  Must not know: who gets a connection, how many there
may be, or what becomes of one.

When there is no room, or the process has no descriptor left, nobody is accepted until something has ended: clients wait
in the kernel's queue, and what is open goes on.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from overlayd.daemon.server.listener import Credentials, credentials

log = logging.getLogger(__name__)

# Our own constants.
ROUND = 4  # connections that are accepted before anything else is looked at
RETRY = 1.0  # seconds after which a process without a descriptor to spare looks again


class Accepting:
    """what: it is called in the log.  full: why there is no room now, empty while there is some.  take: is given each
    new connection, which does not block, and who made it.
    """

    def __init__(self, what: str, full: Callable[[], str], take: Callable[[socket.socket, Credentials], None]) -> None:
        self._what = what
        self._full = full
        self._take = take
        self._listener: socket.socket | None = None
        self._paused = False
        self._loop: asyncio.AbstractEventLoop

    @contextmanager
    def running(self, listener: socket.socket) -> Iterator[None]:
        """Accept on a socket that listens and does not block, until the block ends; then it is closed."""
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._loop.add_reader(listener, self._accept)
        try:
            yield
        finally:
            self._loop.remove_reader(listener)
            self._listener = None
            listener.close()

    def resume(self) -> None:
        """Something has ended, so that there may be room again."""
        if self._paused and self._listener is not None and not self._full():
            self._paused = False
            self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        for _ in range(ROUND):
            if self._listener is None:
                return
            if why := self._full():
                self._pause(why)
                return
            try:
                accepted, _ = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:  # no descriptor, or no memory
                self._pause(f"{error.strerror}: raise the limit of descriptors (LimitNOFILE)")
                self._loop.call_later(RETRY, self.resume)
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
        assert self._listener is not None
        self._paused = True
        self._loop.remove_reader(self._listener)
        log.warning("no further %s are accepted until one is closed: %s", self._what, why)
