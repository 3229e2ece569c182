"""What `status` answers, encoded once for as long as nothing changes.

Owns: the Status response and its cache.  Must not know: devices; what a peer did lately comes from `health`.
"""

from collections.abc import Iterable
from typing import NamedTuple

from overlayd import wire
from overlayd.daemon.health import Health
from overlayd.daemon.node import Node
from overlayd.linux.wireguard import public_key
from overlayd.model.layout import endpoint_text
from overlayd.model.objects import GLOBAL, Address
from overlayd.model.peers import text
from overlayd.model.rows import Peer, Service
from overlayd.model.subnets import first_usable

# The endpoint and the last handshake of a peer that has been heard of: before that its endpoint cannot roam.
_Did = tuple[tuple[Address, int] | None, int]


class _Shown(NamedTuple):
    """A peer as it was shown, and what of."""

    peer: Peer
    did: _Did | None
    status: wire.StatusPeer


class StatusView:
    """The status of a node."""

    def __init__(self, node: Node, health: Health) -> None:
        self._node = node
        self._health = health
        self._encoded = b""
        self._seen: tuple[int, int] = (-1, -1)
        self._shown: dict[bytes, _Shown] = {}  # the peers of the last answer

    def encoded(self) -> bytes:
        """The status response as JSON."""
        seen = (self._node.state.generation, self._health.generation)
        if seen != self._seen:
            self._encoded = wire.encode_response_object(self.response())
            self._seen = seen
        return self._encoded

    def response(self) -> wire.Status:
        state = self._node.state
        overlay = state.overlay
        node_key = public_key(state.node.private_key)
        peers = state.peers(GLOBAL) if overlay else {}
        return wire.Status(
            interface=overlay.interface if overlay and self._node.facts.devices else None,
            node_ip=str(state.node_address) if overlay else None,
            public_key=text(node_key),
            overlay_cidr=str(overlay.cluster) if overlay else None,
            slice_cidr=str(overlay.slice) if overlay and overlay.slice else None,
            peer_count=len(peers),
            service_count=len(state.table(Service)),
            peers=self._peers(peers.values()),
            dedicated_services=tuple(
                self._dedicated(service) for service in state.table(Service).values() if service.dedicated
            ),
        )

    def _peers(self, peers: Iterable[Peer]) -> tuple[wire.StatusPeer, ...]:
        """Put together anew are only those that changed: the others cost a tenth."""
        before, self._shown = self._shown, {}
        for peer in peers:
            activity = self._health.activity(GLOBAL, peer.public_key)
            did = (activity.endpoint, activity.last_handshake) if activity and activity.last_handshake else None
            shown = before.get(peer.public_key)
            if shown is None or shown.peer is not peer or shown.did != did:
                shown = _Shown(peer, did, _peer(peer, did))
            self._shown[peer.public_key] = shown
        return tuple(shown.status for shown in self._shown.values())

    def _dedicated(self, service: Service) -> wire.DedicatedService:
        return wire.DedicatedService(
            service=service.name,
            interface=service.device,
            public_key=text(public_key(service.private_key)),
            listen_port=service.wg_port,
            overlay_ip=str(first_usable(service.subnet)),
            subnet=str(service.subnet),
            peer_count=len(self._node.state.peers(service.name)),
        )


def _peer(peer: Peer, did: _Did | None) -> wire.StatusPeer:
    roamed, last_handshake = did if did is not None else (None, 0)
    return wire.StatusPeer(
        public_key=text(peer.public_key),
        endpoint=endpoint_text(roamed) if roamed is not None else peer.endpoint,
        allowed_ips=",".join(map(str, dict.fromkeys((*peer.listed, *peer.added)))),
        last_handshake_unix_secs=last_handshake,
    )
