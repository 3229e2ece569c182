"""Noticing that a container died.

Owns: one pidfd a process that was attached, all behind one descriptor on the event loop, and when to try again.  Must
not know: what is reclaimed, or how.

No process is known of a container that is attached by its namespace: it has died when its link is gone.  Whoever hears
of that says so (`lost`).
"""

import asyncio
import logging
import os
import select
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from contextlib import asynccontextmanager
from errno import ESRCH
from typing import Any, Self

from overlayd.daemon.change.node import Node
from overlayd.daemon.tasks import Spawn
from overlayd.errors import MechanismError, OverlaydError
from overlayd.linux import netns
from overlayd.model.objects import Netns
from overlayd.model.rows import Attachment, Change

log = logging.getLogger(__name__)


# Our own constant, seconds: from a death that disk or kernel did not let us follow up to the next try.
RETRY = 5.0


class DeathWatch:
    """Works within `running`.  reclaim: takes back what a dead container, given by its handle, held;
    raises OverlaydError when that cannot be now.  spawn: starts a task that outlives this.
    """

    def __init__(
        self,
        reclaim: Callable[[str], Coroutine[Any, Any, None]],
        spawn: Spawn,
    ) -> None:
        self._reclaim = reclaim
        self._spawn = spawn
        self._descriptors: dict[str, dict[Netns, int]] = {}
        self._watched: dict[int, tuple[str, Netns]] = {}  # by descriptor
        self._ends = select.epoll()  # a system call for each that comes or goes, where the loop would need four
        self._retries: dict[str, asyncio.TimerHandle] = {}
        self._unwatched: dict[tuple[str, Netns], asyncio.TimerHandle] = {}  # no descriptor could be had
        asyncio.get_running_loop().add_reader(self._ends, self._some_ended)

    @asynccontextmanager
    async def running(self, node: Node) -> AsyncIterator[Self]:
        """Watch a node's containers, those that are there and those that come, until the block ends."""
        with node.subscribe(self.follow):
            try:
                self.follow({row.id: row for row in node.state.table(Attachment).values()})
                yield self
            finally:
                self.close()

    def follow(self, change: Change) -> None:
        """Start watching attachments that were put, stop watching those that went."""
        for (table, handle), row in change.items():
            if table == Attachment.table:
                processes = row.processes if isinstance(row, Attachment) else ()
                self.forget(handle, keep=processes)
                for process in processes:
                    if process not in self._descriptors.get(handle, ()) and (handle, process) not in self._unwatched:
                        self._watch(handle, process)

    def lost(self, handle: str) -> None:
        """The link of a container is gone: with its namespace, if that is gone."""
        if handle not in self._retries:
            self._spawn(self._reclaim_or_retry(handle))

    def _watch(self, handle: str, process: Netns) -> None:
        loop = asyncio.get_running_loop()
        try:
            descriptor = netns.pidfd(process)
        except MechanismError as error:
            if error.errno != ESRCH:
                log.error("%s is not watched, to be tried again in %g s: %s", handle, RETRY, error)
                self._unwatched[handle, process] = loop.call_later(RETRY, self._watch_again, handle, process)
                return
            loop.call_soon(self._ended, handle, process)  # gone before we looked
            return
        self._descriptors.setdefault(handle, {})[process] = descriptor
        self._watched[descriptor] = (handle, process)
        self._ends.register(descriptor, select.EPOLLIN)

    def _watch_again(self, handle: str, process: Netns) -> None:
        del self._unwatched[handle, process]
        self._watch(handle, process)

    def _some_ended(self) -> None:
        for descriptor, _ in self._ends.poll(0):
            self._ended(*self._watched[descriptor])

    def _ended(self, handle: str, process: Netns) -> None:
        self._close(handle, process)
        self._spawn(self._reclaim_or_retry(handle))

    async def _reclaim_or_retry(self, handle: str) -> None:
        try:
            await self._reclaim(handle)
        except OverlaydError as error:
            log.error("reclaiming %s, to be tried again in %g s: %s", handle, RETRY, error)
            self._retries[handle] = asyncio.get_running_loop().call_later(RETRY, self._try_again, handle)

    def _try_again(self, handle: str) -> None:
        del self._retries[handle]
        self._spawn(self._reclaim_or_retry(handle))

    def forget(self, handle: str, keep: Collection[Netns] = ()) -> None:
        """Stop watching, but for the processes `keep`; nothing happens when it was not watched."""
        if (retry := self._retries.pop(handle, None)) is not None:
            retry.cancel()
        for process in [*self._descriptors.get(handle, ())]:
            if process not in keep:
                self._close(handle, process)
        if self._unwatched:
            for one in [each for each in self._unwatched if each[0] == handle and each[1] not in keep]:
                self._unwatched.pop(one).cancel()

    def _close(self, handle: str, process: Netns) -> None:
        watched = self._descriptors.get(handle, {})
        descriptor = watched.pop(process, None)
        if descriptor is not None:
            del self._watched[descriptor]
            self._ends.unregister(descriptor)
            os.close(descriptor)
        if not watched:
            self._descriptors.pop(handle, None)

    def close(self) -> None:
        for handle in [*self._descriptors, *self._retries, *(handle for handle, _ in self._unwatched)]:
            self.forget(handle)
        asyncio.get_running_loop().remove_reader(self._ends)
        self._ends.close()
