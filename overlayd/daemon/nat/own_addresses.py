"""This host's addresses, for its candidates.

Owns: when they are read.  Must not know: requests, or what a candidate is.
"""

import asyncio
import logging
import time

from overlayd.daemon.change.node import Node
from overlayd.errors import MechanismError
from overlayd.linux import egress
from overlayd.model.objects import Address

log = logging.getLogger(__name__)

INTERVAL = 60.0  # our own constant, seconds: the built-in NatConfig's refresh


class Candidates:
    """addresses: of this host's physical interfaces, preferred first.  refreshed: when they were read, Unix seconds."""

    def __init__(self, node: Node) -> None:
        self.addresses: list[Address] = []
        self.refreshed = 0
        self._node = node

    async def watch(self) -> None:
        """Read the addresses, forever."""
        while True:
            try:
                await self.refresh()
            except MechanismError as error:
                log.warning("%s", error)
            await asyncio.sleep(INTERVAL)

    async def refresh(self) -> None:
        """Read the addresses.  Raises MechanismError, and keeps those of before."""
        self.addresses = await self._node.run(egress.physical_addresses)
        self.refreshed = int(time.time())
