"""Shutting edge peers out when their time is over.

Owns: one timer, set to the edge peer that expires first.  Must not know: what expiry changes.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from overlayd.daemon.change.node import Node
from overlayd.daemon.tasks import Spawn
from overlayd.errors import OverlaydError
from overlayd.model import edges
from overlayd.model.rows import Change, Edge

log = logging.getLogger(__name__)

# Our own constants, in seconds.
LONGEST_SLEEP = 60.0  # a timer does not notice that the clock is set: it is looked at this often
RETRY = 5.0  # after a failure


class Expiry:
    """At work within `running`.  spawn: starts a task that outlives this.  clock: Unix seconds."""

    def __init__(
        self,
        node: Node,
        spawn: Spawn,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._node = node
        self._spawn = spawn
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Shut out edge peers that expire, until the block ends."""
        with self._node.subscribe(self.follow):
            try:
                self._arm()
                yield
            finally:
                self._stop()

    def follow(self, change: Change) -> None:
        """Set the timer again when an edge peer came or went."""
        if any(table == Edge.table for table, _ in change):
            self._arm()

    def _arm(self) -> None:
        """Set the timer to the first expiry; none without edge peers."""
        first = min((edge.expires for edge in self._node.state.table(Edge).values()), default=None)
        if first is None:
            self._stop()
        else:
            self._wake_in(min(max(first - self._clock(), 0.0), LONGEST_SLEEP))

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake_in(self, seconds: float) -> None:
        self._stop()
        self._timer = asyncio.get_running_loop().call_later(seconds, lambda: self._spawn(self._expire()))

    async def _expire(self) -> None:
        now = self._clock()
        if not any(edge.expires <= now for edge in self._node.state.table(Edge).values()):
            self._arm()
            return
        try:
            names = await self._node.change(lambda draft: edges.expire(draft, now), everything=True)
        except OverlaydError as error:
            log.error("expiry of edge peers, to be tried again in %g s: %s", RETRY, error)
            self._wake_in(RETRY)
            return
        for name in names:
            log.info("edge peer %s has expired", name)
