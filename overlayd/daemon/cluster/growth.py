"""Further blocks of this node: one more is claimed when those that it has are full.

Owns: when one is claimed, and why that fails.  Must not know: what is in a block (`model.membership`), how it is
claimed (`joining`).
"""

import asyncio
import logging
import random
from collections.abc import Callable

from overlayd.daemon.change.node import Node
from overlayd.daemon.cluster.joining import Joining
from overlayd.errors import OverlaydError
from overlayd.model import membership
from overlayd.model.findings import Finding
from overlayd.model.objects import GLOBAL
from overlayd.model.rows import Change, Lease, Membership, Service

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds, after a block could not be claimed; our own constants


class Growth:
    """in_doubt: whether our place in the cluster is, so that nothing is claimed.  grown: is told of each further block.

    lacking: what there is no room for, in words; failure: why there is no further block.  Both are empty when all is
    well.
    """

    def __init__(self, node: Node, joining: Joining, in_doubt: Callable[[], bool], grown: Callable[[], None]) -> None:
        self.lacking = ""
        self.failure = ""
        self._node = node
        self._joining = joining
        self._in_doubt = in_doubt
        self._grown = grown
        self._changed = asyncio.Event()
        self._changed.set()

    def follow(self, change: Change) -> None:
        """Something of this node has changed: perhaps it is full now, or has room again."""
        for (table, _), row in change.items():
            if table == Service.table or (table == Lease.table and (row is None or _is_of_node(row))):
                self._changed.set()
                return

    def look_again(self) -> None:
        """Our place in the cluster is in no doubt any more, or the overlay is up."""
        self._changed.set()

    async def run(self) -> None:
        """Keep room, until it is cancelled."""
        pause = FIRST_PAUSE
        while True:
            await self._changed.wait()
            if not self._is_full() or self._in_doubt():
                self._changed.clear()
                self.failure = ""
                continue
            try:
                block = await self._joining.extend(self._is_full)
            except OverlaydError as error:
                self._fail(str(error))
                await asyncio.sleep(pause * random.uniform(0.5, 1))
                pause = min(pause * 2, LONGEST_PAUSE)
            else:
                pause, self.failure = FIRST_PAUSE, ""
                if block is None:
                    continue
                cluster = self._node.state.table(Membership)[""].cluster
                log.info("cluster %s: %s is ours as well, for %s", cluster, block, self.lacking)
                self._grown()

    def findings(self) -> list[Finding]:
        """For the doctor: that this node is full."""
        if not self.failure:
            return []
        known = self._node.state.table(Membership)[""]
        what, remedy = f"cluster {known.cluster}", "remove nodes that are gone (overlayctl cluster nodes, remove-node)"
        if not known.blocks:
            problem = f"has no block for this node: {self.failure}"
            return [Finding("cluster-full", "error", what, problem, "this node has no network", remedy)]
        blocks = ", ".join(map(str, known.blocks))
        problem = f"has no further block for this node, whose {blocks} have no room for {self.lacking}: {self.failure}"
        symptom = f"requests for further {self.lacking} are refused on this node; what is there goes on"
        return [Finding("cluster-full", "warning", what, problem, symptom, f"{remedy}, or what this one does not need")]

    def _is_full(self) -> bool:
        self.lacking = membership.lacking(self._node.state)
        return bool(self.lacking)

    def _fail(self, why: str) -> None:
        if why != self.failure:
            log.warning("this node has no room for further %s, and no further block: %s", self.lacking, why)
        self.failure = why


def _is_of_node(row: object) -> bool:
    return isinstance(row, Lease) and row.pool == GLOBAL
