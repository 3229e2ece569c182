"""The part of the daemon that container runtimes talk to, from its start to its end.

Owns: which of its pieces is told what.  Must not know: what a command does.
"""

import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from overlayd.daemon.cni.commands import Commands, Record
from overlayd.daemon.cni.delete_queue import DeleteQueue
from overlayd.daemon.cni.shim_socket import CniSocket
from overlayd.daemon.handlers.context import Daemon
from overlayd.daemon.server.listener import Place
from overlayd.daemon.tasks import Spawn
from overlayd.daemon.upkeep.sentinel import Sentinel
from overlayd.proto.cni import queue_of


class Runtimes:
    """path: of the socket, empty for none."""

    def __init__(self, daemon: Daemon, path: str) -> None:
        self._queue = DeleteQueue(Path(queue_of(path)))
        self._commands = Commands(daemon, self._queue)

    def observe(self, record: Record) -> None:
        """Tell of every command from now on, as `Handlers.observe` does of requests."""
        self._commands.observe(record)

    @asynccontextmanager
    async def serving(
        self, place: Place | None, sentinel: Sentinel, spawn: Spawn, patience: float
    ) -> AsyncIterator[None]:
        """Serve there, if that is wanted, until the block ends; then commands in flight have `patience` seconds.

        Shims can connect before the DELs that were left are done, but are answered after them: one that leaves a DEL
        tries the socket once more, so that it is either seen here or answered.
        """
        if place is None:
            yield
            return
        self._queue.open()
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        shims = CniSocket(self._commands.run, spawn, descriptors)
        with sentinel.subscribe(self._commands.note_repair):
            left = partial(self._queue.work_off, self._commands.run_left)
            async with shims.serving(place, left, patience):
                trying = spawn(self._queue.try_again(self._commands.run_left))
                try:
                    yield
                finally:
                    trying.cancel()
