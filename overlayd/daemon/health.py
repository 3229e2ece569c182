"""What peers did lately, read from the devices in the background, and who is told when it matters.

Owns: the newest activity of every peer, and when it is read.  Must not know: requests; they read what is here,
however old.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from overlayd import wire
from overlayd.daemon.node import Node
from overlayd.errors import MechanismError
from overlayd.linux.wireguard import Activity
from overlayd.model.health import FRESH, HealthTracker, is_fresh
from overlayd.model.layout import endpoint_address, endpoint_text
from overlayd.model.objects import GLOBAL, Address
from overlayd.model.peers import text
from overlayd.model.roaming import RoamingTracker
from overlayd.model.rows import Service

log = logging.getLogger(__name__)

# Our own constants.
INTERVAL = 1.0  # seconds between two readings of a small device
PEERS_A_SECOND = 2000  # a reading of a large device takes 4 us a peer: this keeps it under 1 % of a processor

Endpoint = tuple[Address, int]


class Health:
    """The activity of all peers of all devices, `generation` growing when it changes.

    fresh: seconds for which a handshake vouches for a peer.  announce: who takes the events.  listeners: called with
    scope, public key and whether the peer is healthy, when that changes.  readings: called with scope and activity of
    each reading.  seen_as: an endpoint of the device as it is told to others.
    """

    def __init__(self, node: Node, fresh: float = FRESH) -> None:
        self.generation = 0
        self.announce: list[Callable[[wire.Event], None]] = []
        self.listeners: list[Callable[[str, bytes, bool], None]] = []
        self.readings: list[Callable[[str, Mapping[bytes, Activity]], None]] = []
        self.seen_as: Callable[[Endpoint], Endpoint] = lambda endpoint: endpoint
        self._node = node
        self._fresh = fresh
        self._scopes: dict[str, _Scope] = {}

    def activity(self, scope: str, public_key: bytes) -> Activity | None:
        """What a peer did, as far as it is known."""
        known = self._scopes.get(scope)
        return known.activity.get(public_key) if known is not None else None

    def is_fresh(self, scope: str, public_key: bytes) -> bool:
        """Whether a peer has been heard of lately."""
        activity = self.activity(scope, public_key)
        return activity is not None and is_fresh(activity.last_handshake, time.time(), self._fresh)

    async def resume(self) -> None:
        """Read every device once, and announce nothing: an earlier daemon may have."""
        for scope, found in (await self._read()).items():
            known = self._scopes[scope] = _Scope(self._node, scope, self._fresh)
            known.activity = found
            known.health.resume(found, time.time())
            known.moved(found)

    async def watch(self) -> None:
        """Read the devices, for ever."""
        while True:
            peers = sum(len(known.activity) for known in self._scopes.values())
            await asyncio.sleep(max(INTERVAL, peers / PEERS_A_SECOND))
            await self.refresh()

    async def refresh(self) -> None:
        """Read every device once, and announce what has changed."""
        devices = self._devices()
        for scope in self._scopes.keys() - devices.keys():
            del self._scopes[scope]
            self.generation += 1
        for scope, found in (await self._read()).items():
            known = self._scopes.setdefault(scope, _Scope(self._node, scope, self._fresh))
            if found != known.activity:
                known.activity = found
                self.generation += 1
            for key, endpoint in known.moved(found):
                shown = endpoint_text(self.seen_as(endpoint))
                log.info("peer %s has moved to %s", text(key), shown)
                self.publish(wire.NatEndpointChanged(text(key), shown))
            for key, healthy in known.health.observe(found, time.time()):
                log.info("peer %s %s", text(key), "answers" if healthy else "does not answer any more")
                self.publish(wire.PeerHealthChanged(text(key), healthy))
                for listener in self.listeners:
                    listener(scope, key, healthy)
            for take in self.readings:
                take(scope, found)

    def publish(self, event: wire.Event) -> None:
        """Tell everybody."""
        for take in self.announce:
            take(event)

    async def _read(self) -> dict[str, dict[bytes, Activity]]:
        """What the devices show of the peers that we gave them."""
        backend = self._node.kernel.backend
        shown = {}
        for scope, device in self._devices().items():
            assert backend is not None
            try:
                found = await self._node.run(backend.activity, device)
            except MechanismError as error:
                log.debug("reading %s: %s", device, error)
                continue
            ours = self._node.state.peers(scope)
            shown[scope] = {key: activity for key, activity in found.items() if key in ours}
        return shown

    def _devices(self) -> dict[str, str]:
        """The names of our devices by scope."""
        state = self._node.state
        if self._node.kernel.backend is None:
            return {}
        devices = {service.name: service.device for service in state.table(Service).values() if service.dedicated}
        if state.overlay is not None:
            devices[GLOBAL] = state.overlay.interface
        return devices


class _Scope:
    """What is known of the peers of one device."""

    def __init__(self, node: Node, scope: str, fresh: float) -> None:
        self.activity: Mapping[bytes, Activity] = {}
        self.health = HealthTracker(fresh)
        self._roaming: RoamingTracker[Endpoint] = RoamingTracker()
        self._node = node
        self._scope = scope

    def moved(self, found: Mapping[bytes, Activity]) -> list[tuple[bytes, Endpoint]]:
        """The peers that have moved by themselves, and where they are."""
        return self._roaming.observe({key: activity.endpoint for key, activity in found.items()}, self._given)

    def _given(self, key: bytes) -> Endpoint | None:
        peer = self._node.state.peers(self._scope).get(key)
        return endpoint_address(peer, self._node.facts) if peer is not None else None
