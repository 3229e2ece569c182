"""Noticing that somebody else's firewall keeps our traffic from being forwarded.

Owns: what was found last, and when it is looked for.  Must not know: how a blocking chain is told (`model.blockers`).

Our own accept cannot overrule another table's drop (Docker and firewalld bring one along), and we do not touch what is
not ours: so the missing rule is named, and an operator adds it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from overlayd.daemon.change.node import Node
from overlayd.daemon.tasks import KeepUp
from overlayd.errors import MechanismError
from overlayd.linux.nft import Nft
from overlayd.model.rows import Change, Overlay, Service

log = logging.getLogger(__name__)

# Our own constant: seconds between two looks at the host's whole ruleset while nothing is set up.
INTERVAL = 60.0


class ForwardWatch:
    """blockers: the chains that block now, each with the rule that it lacks, in words; for the doctor.

    nft: for this alone, since a large ruleset takes long to list and requests must not wait for that.  In use until the
    node is closed.
    """

    def __init__(self, node: Node, nft: Nft) -> None:
        self.blockers: tuple[str, ...] = ()
        self._node = node
        self._nft = nft
        self._wanted = asyncio.Event()

    @asynccontextmanager
    async def running(self, keep_up: KeepUp) -> AsyncIterator[None]:
        """Look now and then until the block ends."""
        with self._node.subscribe(self.follow):
            watch = keep_up(self.watch)
            try:
                yield
            finally:
                watch.cancel()

    def follow(self, change: Change) -> None:
        """Look at once when something was set up that forwards."""
        if any(table in (Overlay.table, Service.table) for table, _ in change):
            self._wanted.set()

    async def watch(self) -> None:
        """Look now and then, for ever."""
        while True:
            self._wanted.clear()
            await self.check()
            try:
                async with asyncio.timeout(INTERVAL):
                    await self._wanted.wait()
            except TimeoutError:
                continue

    async def check(self) -> None:
        """Look, and log what has changed."""
        state = self._node.state
        found: tuple[str, ...] = ()
        if state.overlay is not None or state.table(Service):
            try:
                found = tuple(await self._node.run(self._nft.forward_blockers))
            except MechanismError as error:
                log.error("looking for firewall rules that block the overlay: %s", error)
                return
        for text in found:
            if text not in self.blockers:
                log.warning("the host's firewall drops what the overlay forwards: %s", text)
        for text in self.blockers:
            if text not in found:
                log.info("no longer in the overlay's way: %s", text)
        self.blockers = found
