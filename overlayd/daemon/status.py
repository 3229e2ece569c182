"""What `status` answers: the changes that have taken effect, encoded once for as long as nothing changes.

Owns: the Status response and its cache.  Must not know: devices; what a peer did lately comes from `health`.

The state is ahead of what is shown here: a change is in it as soon as it is decided, and may yet be taken back.
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple, TypeVar, cast

from overlayd import keys, wire
from overlayd.daemon.change.node import Node
from overlayd.daemon.change.slices import Slices, TakesLong
from overlayd.daemon.peers.health import Health
from overlayd.model.health import Condition
from overlayd.model.layout import endpoint_text
from overlayd.model.objects import GLOBAL, Address
from overlayd.model.rows import Change, Overlay, Peer, Service, peer_of
from overlayd.model.rows import Node as NodeRow
from overlayd.model.subnets import first_usable

# Our own constant: peers that are described at once, some 6 us each; and twice as many allowed IPs of those that have
# changed.
AT_ONCE = 256

K = TypeVar("K")
V = TypeVar("V")

# The endpoint and the last handshake of a peer that has been heard of, for before that its endpoint cannot roam; and
# how it is.
_Did = tuple[tuple[Address, int] | None, int, Condition]


class About(NamedTuple):
    """What stays as it is while this daemon runs.  started: Unix seconds.  backend: of WireGuard, None for none."""

    version: str
    started: int
    backend: str | None


class _Shown(NamedTuple):
    """A peer as it was shown, and what of.  allowed_ips: their text."""

    peer: Peer
    did: _Did
    encoded: bytes
    allowed_ips: str


class StatusView:
    """The status of a node whose state is settled; later changes come through `follow`.  cluster: tells of this node's
    part in a cluster that is kept in a store, if it has one.
    """

    def __init__(
        self, node: Node, health: Health, about: About, cluster: Callable[[], wire.StatusCluster] | None = None
    ) -> None:
        self._node = node
        self._health = health
        self._about = about
        self._facts = node.facts
        self._findings = 0
        self._overlay: Overlay | None = None
        self._services: dict[str, Service] = {}
        self._described: dict[str, wire.StatusService] = {}  # each service as it is shown
        self._peers: dict[str, dict[bytes, Peer]] = {}  # by scope
        self._shown: dict[bytes, _Shown] = {}  # those of the global overlay
        self._outdated: dict[bytes, None] = {}  # in their order
        self._heard = -1  # what `health` had seen
        self._encoded = b""
        self._describing = asyncio.Lock()
        self._number = 0
        self._dedicated_devices: dict[str, str] = {}  # by service
        self._devices: list[str] = []  # the global one first, the others in the order of their services' names
        self._versions: list[str] = []  # of what serves the devices, as it is shown
        self._cluster = cluster
        kinds = (NodeRow, Overlay, Service, Peer)
        self.follow({row.id: row for kind in kinds for row in node.state.table(kind).values()})

    def follow(self, change: Change) -> None:
        """Show a change that has taken effect."""
        for (table, key), row in change.items():
            if table == Overlay.table:
                self._overlay = cast(Overlay | None, row)
                self._list_devices()
            elif table == Service.table:
                service = cast(Service | None, row)
                _put(self._services, key, service)
                _put(self._described, key, _service(service) if service is not None else None)
                _put(
                    self._dedicated_devices, key, service.device if service is not None and service.dedicated else None
                )
                self._list_devices()
            elif table == Peer.table:
                self._take(*peer_of(key), cast(Peer | None, row))
            elif table == NodeRow.table:
                self._number = cast(NodeRow, row).node_id
            else:
                continue
            self._encoded = b""

    def _list_devices(self) -> None:
        up = [self._overlay.interface] if self._overlay is not None and self._overlay.up else []
        self._devices = [*up, *(device for _, device in sorted(self._dedicated_devices.items()))]

    def count_findings(self, number: int) -> None:
        """Show so many findings from now on, and what no change of rows tells of: the MTU, and what serves the devices.
        Called every second, so that an answer need not look.
        """
        same = self._facts is self._node.facts and self._versions == self._served_by()
        if number != self._findings or not same:
            self._findings, self._encoded = number, b""

    def outdate(self) -> None:
        """Have everything but the peers looked at again for the next answer."""
        self._encoded = b""

    def unready(self) -> str:
        """Why this node can have no tunnels, empty when it can."""
        if self._overlay is None or not self._overlay.up:
            return "the global overlay is not set up"
        return "" if self._node.facts.devices else "there is no WireGuard on this node"

    def encoded(self) -> bytes:
        """The status response as JSON.  TakesLong: too many peers are to be described again for doing it at once."""
        self._notice()
        if not self._encoded or self._cluster is not None:
            if self._is_long():
                raise TakesLong
            for key in [*self._outdated]:
                self._describe(key)
            peers = self._shown.values() if self._overlay and self._overlay.up else ()
            self._encoded = wire.encode_with(self._without_peers(), "peers", [shown.encoded for shown in peers])
        return self._encoded

    async def described(self) -> bytes:
        """The status response as JSON, others being served meanwhile."""
        async with self._describing:
            slices = Slices()
            self._notice()
            while self._is_long():
                for key in [*self._outdated]:
                    if key in self._outdated:
                        self._describe(key)
                        await slices.pause()
                self._notice()
            return self.encoded()

    def _without_peers(self) -> wire.Status:
        overlay = self._overlay if self._overlay and self._overlay.up else None
        self._facts = self._node.facts
        self._versions = self._served_by()
        return wire.Status(
            interface=overlay.interface if overlay and self._node.facts.devices else None,
            node_ip=str(first_usable(overlay.slice or overlay.cluster)) if overlay else None,
            public_key=keys.text(keys.public(self._node.state.node.private_key)),
            overlay_cidr=str(overlay.cluster) if overlay else None,
            slice_cidr=str(overlay.slice) if overlay and overlay.slice else None,
            peer_count=len(self._shown) if overlay else 0,
            service_count=len(self._services),
            dedicated_services=tuple(self._dedicated(each) for each in self._services.values() if each.dedicated),
            services=tuple(self._described.values()),
            version=self._about.version,
            backend=self._about.backend,
            mtu=self._facts.mtu,
            wg_port=overlay.wg_port if overlay else None,
            node_id=self._number or None,
            started_at_unix=self._about.started,
            findings=self._findings,
            devices=self._shown_devices(),
            cluster=self._cluster() if self._cluster is not None else None,
        )

    def _served_by(self) -> list[str]:
        """What serves each device now."""
        backend = self._node.kernel.backend
        return [backend.version(device) for device in self._devices] if backend is not None else []

    def _shown_devices(self) -> tuple[wire.StatusDevice, ...]:
        backend = self._node.kernel.backend
        if backend is None:
            return ()
        served = zip(self._devices, self._versions, strict=True)
        return tuple(wire.StatusDevice(device, backend.name, version or None) for device, version in served)

    def _take(self, public_key: bytes, scope: str, peer: Peer | None) -> None:
        peers = self._peers.setdefault(scope, {})
        _put(peers, public_key, peer)
        if not peers:
            del self._peers[scope]
        if scope == GLOBAL and peer is not None:
            self._outdated[public_key] = None
        elif scope == GLOBAL:
            self._outdated.pop(public_key, None)
            self._shown.pop(public_key, None)

    def _notice(self) -> None:
        """Have every peer looked at again when some did something."""
        if self._heard != self._health.generation:
            self._heard = self._health.generation
            self._outdated |= dict.fromkeys(self._peers.get(GLOBAL, ()))
            self._encoded = b""

    def _is_long(self) -> bool:
        """Whether to describe the peers that are outdated takes too long for doing it at once."""
        if len(self._outdated) > AT_ONCE:
            return True
        changed = (peer for key in self._outdated if (peer := self._changed(key)) is not None)
        return sum(1 + len(peer.listed) + len(peer.added) for peer in changed) > 2 * AT_ONCE

    def _changed(self, key: bytes) -> Peer | None:
        """A peer whose text is not known, for its row is another one than was shown."""
        peer, shown = self._peers[GLOBAL][key], self._shown.get(key)
        return None if shown is not None and shown.peer is peer else peer

    def _describe(self, key: bytes) -> None:
        """Describe a peer again that has changed, or may have done something."""
        del self._outdated[key]
        peer = self._peers[GLOBAL][key]
        activity = self._health.activity(GLOBAL, key)
        heard = (activity.endpoint, activity.last_handshake) if activity and activity.last_handshake else (None, 0)
        did = (*heard, self._health.condition(GLOBAL, key))
        shown = self._shown.get(key)
        same = shown is not None and shown.peer is peer
        if shown is None or not same or shown.did != did:
            allowed_ips = shown.allowed_ips if shown is not None and same else _text(peer)
            self._shown[key] = _Shown(peer, did, wire.encode_part(_peer(peer, did, allowed_ips)), allowed_ips)

    def _dedicated(self, service: Service) -> wire.DedicatedService:
        return wire.DedicatedService(
            service=service.name,
            interface=service.device,
            public_key=keys.text(keys.public(service.private_key)),
            listen_port=service.wg_port,
            overlay_ip=str(first_usable(service.subnet)),
            subnet=str(service.subnet),
            peer_count=len(self._peers.get(service.name, ())),
        )


def _service(service: Service) -> wire.StatusService:
    return wire.StatusService(
        service=service.name,
        mode=service.mode,
        bridge=service.bridge,
        subnet=str(service.subnet),
        gateway=str(first_usable(service.subnet)),
    )


def _put(table: dict[K, V], key: K, value: V | None) -> None:
    if value is None:
        table.pop(key, None)
    else:
        table[key] = value


def _text(peer: Peer) -> str:
    return ",".join(map(str, dict.fromkeys((*peer.listed, *peer.added))))


def _peer(peer: Peer, did: _Did, allowed_ips: str) -> wire.StatusPeer:
    roamed, last_handshake, condition = did
    return wire.StatusPeer(
        public_key=keys.text(peer.public_key),
        endpoint=endpoint_text(roamed) if roamed is not None else peer.endpoint,
        allowed_ips=allowed_ips,
        last_handshake_unix_secs=last_handshake,
        health="silent" if condition == "silent" else "idle" if condition == "idle" and last_handshake else None,
        name=peer.name or None,
    )
