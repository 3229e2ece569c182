"""Peers and their allowed IPs, per scope.

Owns: Peer rows, and the rule that an allowed IP belongs to one peer.  Must not know: devices, or where a peer has
roamed to.
"""

from ipaddress import ip_network

from msgspec.structs import replace

from overlayd import keys
from overlayd.errors import RequestError
from overlayd.model import overlay
from overlayd.model.objects import GLOBAL, Network
from overlayd.model.rows import Edge, Overlay, Peer, Service
from overlayd.model.state import Draft


def add_peer(
    draft: Draft,
    scope: str,
    public_key: bytes,
    *,
    own_key: bytes,
    endpoint: str,
    keepalive: int,
    allowed_ips: tuple[Network, ...],
    candidates: tuple[tuple[str, str, int], ...],
) -> list[str]:
    """Upsert a peer.  own_key: the public key of the scope's device.  Returns what moved, in words, for the log."""
    require_scope(draft, scope)
    if public_key == own_key:
        raise RequestError(f"request.public_key: {keys.text(public_key)} is this node's own key, not a peer")
    for edge in draft.all(Edge):
        if edge.public_key == public_key:
            raise RequestError(f"request.public_key: {keys.text(public_key)} is edge peer {edge.name}: revoke it first")
    _require_no_guest(draft, scope, public_key, "public_key")
    for network in allowed_ips:
        _require_no_other_route(draft, scope, network)
    old = draft.peer(scope, public_key)
    moved = [_move(draft, scope, network, public_key) for network in allowed_ips]
    draft.put(
        Peer(
            scope=scope,
            public_key=public_key,
            endpoint=endpoint,
            keepalive=keepalive,
            listed=tuple(dict.fromkeys(allowed_ips)),
            added=old.added if old else (),
            candidates=candidates,
        )
    )
    return [line for line in moved if line]


def remove_peer(draft: Draft, scope: str, public_key: bytes) -> None:
    """Forget a peer; of an unknown one that is no error."""
    require_scope(draft, scope)
    _require_no_guest(draft, scope, public_key, "pubkey")
    peer = draft.peer(scope, public_key)
    if peer is not None:
        draft.drop(peer)


def add_allowed_ip(draft: Draft, scope: str, public_key: bytes, network: Network) -> list[str]:
    """Route a network to a peer, taking it from the peer that had it.  Returns what moved, in words, for the log."""
    require_scope(draft, scope)
    peer = draft.peer(scope, public_key)
    if peer is None:
        raise RequestError(f"no peer {keys.text(public_key)} in {scope_name(scope)}: send add_peer first")
    _require_no_guest(draft, scope, public_key, "pubkey")
    if network in peer.added:
        return []
    _require_no_other_route(draft, scope, network)
    moved = _move(draft, scope, network, public_key)
    draft.put(replace(peer, added=(*peer.added, network)))
    return [moved] if moved else []


def remove_allowed_ip(draft: Draft, scope: str, public_key: bytes, network: Network) -> None:
    """No longer route a network to a peer; if it is not routed there, that is no error."""
    require_scope(draft, scope)
    peer = draft.peer(scope, public_key)
    if peer is not None and network in peer.allowed_ips:
        _require_no_guest(draft, scope, public_key, "pubkey")
        draft.put(_without(peer, network))


def require_scope(draft: Draft, scope: str) -> None:
    """RequestError when the scope has no device."""
    if scope == GLOBAL:
        overlay.require(draft)
        return
    service = draft.get(Service, scope)
    if service is None or not service.dedicated:
        raise RequestError(f"no dedicated overlay for service {scope}")


def has_route(allowed: Network, cluster: Network) -> bool:
    """Whether an allowed IP of a dedicated device's peer gets a route of its own.

    One that holds the whole cluster, or everything, gets none: it would take the traffic of the global overlay, or the
    host's own, along.
    """
    holds_cluster = allowed.version == cluster.version and cluster.subnet_of(allowed)  # type: ignore[arg-type]
    return allowed.prefixlen > 0 and not holds_cluster


def scope_name(scope: str) -> str:
    return f"service {scope}" if scope else "the global overlay"


def _require_no_guest(draft: Draft, scope: str, public_key: bytes, field: str) -> None:
    """RequestError when a peer is a guest's, which comes with its attach, has its one address, and goes with its
    detach.
    """
    guest = draft.state.guest(public_key) if scope == GLOBAL else None
    if guest is not None:
        name = guest.handle.partition(":")[2]
        raise RequestError(f"request.{field}: {keys.text(public_key)} is guest {name}: detach it first")


def _require_no_other_route(draft: Draft, scope: str, network: Network) -> None:
    """RequestError when an allowed IP would take a destination from an edge peer, or the route of a dedicated device
    from somebody else: this host has one route to each.
    """
    for edge in draft.all(Edge):
        if scope == GLOBAL and network == ip_network(edge.address):
            raise RequestError(f"allowed IP {network} is edge peer {edge.name}: revoke it first")
    around = draft.get(Overlay)
    if scope == GLOBAL or around is None or not has_route(network, around.cluster):
        return
    for service in draft.all(Service):
        if network.version == service.subnet.version and network.subnet_of(service.subnet):  # type: ignore[arg-type]
            raise RequestError(f"allowed IP {network} is of the subnet of service {service.name} on this node")
        if service.name != scope and draft.owner(service.name, network) is not None:
            raise RequestError(
                f"allowed IP {network} leads to the dedicated overlay of service {service.name} already: "
                "remove it there first"
            )


def _move(draft: Draft, scope: str, network: Network, to: bytes) -> str:
    owner = draft.owner(scope, network)
    if owner is None or owner.public_key == to:
        return ""
    draft.put(_without(owner, network))
    return f"allowed IP {network} moved from peer {keys.text(owner.public_key)} to {keys.text(to)}"


def _without(peer: Peer, network: Network) -> Peer:
    return replace(
        peer,
        listed=tuple(other for other in peer.listed if other != network),
        added=tuple(other for other in peer.added if other != network),
    )
