"""Allowed IPs of peers that are this node's own: kept with the peer, and not installed while the conflict lasts.

Owns: what of this node nobody else may announce, and what of a peer is installed.  Must not know: devices, routes, or
when a conflict begins or ends.

Two nodes may choose one subnet at the same moment, or be given one slice.  Cutting the whole peer off would be worse
than leaving out the one CIDR: this node's containers keep their addresses, and the peer its others.  A CIDR is in
conflict when something of this node holds all of it; a wider one is not, for longer prefixes lead home.
"""

from collections.abc import Iterable

from overlayd._fast.addresses import place
from overlayd.model.objects import GLOBAL, Network
from overlayd.model.rows import Peer
from overlayd.model.state import State


def holder(state: State, network: Network) -> str:
    """What of this node holds all of a network, for a person; empty when nothing does."""
    packed, length = place(network)
    if length == network.max_prefixlen:
        lease = state.lease(packed)
        if lease is not None and lease.holder:
            return _words(lease.holder)
    covering = state.own_networks().covering(packed, length)
    return covering[-1][2] if covering else ""


def withheld(state: State, peer: Peer) -> dict[Network, str]:
    """The allowed IPs of a peer that are not installed, each with its holder."""
    return _held(state, peer, (*peer.listed, *peer.added))


def installed(state: State, peer: Peer) -> frozenset[Network]:
    """The allowed IPs of a peer that its device gets."""
    announced = peer.allowed_ips
    conflicting = _held(state, peer, announced)
    return announced - conflicting.keys() if conflicting else announced


def _held(state: State, peer: Peer, announced: Iterable[Network]) -> dict[Network, str]:
    """A guest has its own address."""
    if peer.scope == GLOBAL and state.guest(peer.public_key) is not None:
        return {}
    own, lease, held = state.own_networks().covering, state.lease, {}
    for network in announced:  # of which nearly all are nobody's: `holder` is for the others
        packed, length = place(network)
        if (own(packed, length) or lease(packed) is not None) and (by := holder(state, network)):
            held[network] = by
    return held


def _words(holder: str) -> str:
    kind, _, name = holder.partition(":")
    kinds = {"pid": "container pid", "guest": "guest", "edge": "edge peer", "host": "host_shared container"}
    return f"{kinds[kind]} {name}" if kind in kinds else "handed out by allocate_ip"
