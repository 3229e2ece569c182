"""Knowing the networks that this host reaches without the overlay, and telling when they overlap with it.

Owns: what was read last, when it is read, and the log's words for an overlap's coming and going.  Must not know: which
overlap is refused (`model.overlaps`), or what the kernel told of a change (`sentinel`).
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from overlayd.daemon.change.node import Node
from overlayd.errors import MechanismError
from overlayd.linux.surroundings import host_networks
from overlayd.model import overlaps
from overlayd.model.findings import Finding
from overlayd.model.objects import Address
from overlayd.model.overlaps import HostNetwork
from overlayd.model.routing import has_route
from overlayd.model.rows import Change, Overlay, Peer, Service

log = logging.getLogger(__name__)


class Surroundings:
    """networks: those that the host reaches without us, as they were read last, and here: its addresses, as
    `host_networks` tells them.  findings: what overlaps now.
    """

    def __init__(self, node: Node) -> None:
        self.networks: tuple[HostNetwork, ...] = ()
        self.here: dict[Address, str] = {}
        self.findings: tuple[Finding, ...] = ()
        self._node = node
        self._ours: set[int] = set()  # the indexes of links that are ours, as they were read last

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow what is set up until the block ends; the caller of `look` follows the host's side."""
        with self._node.subscribe(self.follow):
            try:
                await self.look()
            except MechanismError as error:
                log.error("looking for networks that overlap with the overlay: %s", error)
            yield

    def read(self) -> None:
        """Read the host's networks.  Blocks: for worker threads.  MechanismError when the kernel refuses."""
        here: dict[Address, str] = {}
        self.networks = host_networks(self._ours, here)
        self.here = here

    async def look(self) -> None:
        """Read the host's networks, and log what is new.  MechanismError when the kernel refuses."""
        await self._node.run(self.read)
        self._judge()

    def follow(self, change: Change) -> None:
        """Judge again when a change has taken effect that leads other networks into the overlay."""
        if any(table in (Overlay.table, Service.table) or self._is_routed(row) for (table, _), row in change.items()):
            self._judge()

    def _is_routed(self, row: object) -> bool:
        overlay = self._node.state.overlay
        if not isinstance(row, Peer) or overlay is None:
            return False
        return any(has_route(row.scope, network, overlay.cluster) for network in (*row.listed, *row.added))

    def _judge(self) -> None:
        found = tuple(overlaps.findings(self._node.state, self.networks))
        for finding in found:
            if finding not in self.findings:
                level = logging.INFO if finding.severity == "hint" else logging.WARNING
                log.log(level, "%s", finding.line)
        for finding in self.findings:
            if finding not in found and not any(
                (each.object, each.problem) == (finding.object, finding.problem) for each in found
            ):
                log.info("%s %s no longer", finding.object, finding.problem)
        self.findings = found
