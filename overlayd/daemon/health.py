"""What peers did lately, read from the devices in the background.

Owns: the newest activity of every peer, and when it is read.  Must not know: requests; they read what is here,
however old.
"""

import asyncio
import logging
from collections.abc import Callable

from overlayd.daemon.node import Node
from overlayd.errors import MechanismError
from overlayd.linux.wireguard import Activity
from overlayd.model.objects import GLOBAL
from overlayd.model.rows import Service

log = logging.getLogger(__name__)

# Our own constants.
INTERVAL = 1.0  # seconds between two readings of a small device
PEERS_A_SECOND = 2000  # a reading of a large device takes 4 us a peer: this keeps it under 1 % of a processor


class Health:
    """The activity of all peers of all devices, `generation` growing when it changes."""

    def __init__(self, node: Node) -> None:
        self.generation = 0
        self._node = node
        self._activity: dict[str, dict[bytes, Activity]] = {}
        self.listeners: list[Callable[[str, dict[bytes, Activity]], None]] = []

    def activity(self, scope: str, public_key: bytes) -> Activity | None:
        """What a peer did, as far as it is known."""
        return self._activity.get(scope, {}).get(public_key)

    async def watch(self) -> None:
        """Read the devices, for ever."""
        while True:
            await self.read()
            peers = sum(len(peers) for peers in self._activity.values())
            await asyncio.sleep(max(INTERVAL, peers / PEERS_A_SECOND))

    async def read(self) -> None:
        """Read every device once."""
        backend = self._node.kernel.backend
        if backend is None:
            return
        for scope, device in self._devices().items():
            try:
                found = await self._node.run(backend.activity, device)
            except MechanismError as error:
                log.debug("reading %s: %s", device, error)
                continue
            if found != self._activity.get(scope):
                self._activity[scope] = found
                self.generation += 1
            for listener in self.listeners:
                listener(scope, found)

    def _devices(self) -> dict[str, str]:
        """The names of our devices by scope."""
        state = self._node.state
        devices = {service.name: service.device for service in state.table(Service).values() if service.dedicated}
        if state.overlay is not None and self._node.facts.devices:
            devices[GLOBAL] = state.overlay.interface
        return devices
