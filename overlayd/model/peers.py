"""Peers and their allowed IPs, per scope.

Owns: Peer rows, and the rules that an allowed IP belongs to one peer and that no tunnel is led into itself.  Must not
know: devices, or where a peer has roamed to.
"""

from collections.abc import Collection, Sequence

from msgspec.structs import replace

from overlayd import keys
from overlayd.errors import NotSetUp, RequestError
from overlayd.model import conflicts, overlay
from overlayd.model.endpoints import nobodys
from overlayd.model.objects import GLOBAL, Address, Network
from overlayd.model.overlaps import HostNetwork, cuts_off
from overlayd.model.routing import has_route, routed_into_overlay
from overlayd.model.rows import Edge, Overlay, Peer, Service, numeric_endpoint, peer_key
from overlayd.model.state import Draft, State

# Our own constant: of one peer.  What is done for each of them is done beside the requests of others.
MOST_ALLOWED_IPS = 1024
SHORT_KEY = 8  # characters; as many as WireGuard's own logs need to tell peers apart


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
    host: Sequence[HostNetwork] = (),
    name: str | None = None,
) -> list[str]:
    """Upsert a peer.  own_key: the public key of the scope's device; host: what the host reaches without the overlay;
    name: what people call it, None for what they called it before.  Returns what moved, in words, for the log.
    """
    require_scope(draft, scope)
    if public_key == own_key:
        raise RequestError(f"request.public_key: {keys.text(public_key)} is this node's own key, not a peer")
    for edge in draft.all(Edge):
        if edge.public_key == public_key:
            raise RequestError(f"request.public_key: {keys.text(public_key)} is edge peer {edge.name}: revoke it first")
    _require_no_guest(draft, scope, public_key, "public_key")
    at = numeric_endpoint(endpoint)
    if at is not None:
        _require_underlay(draft, endpoint, at[0])
    _require_ways(draft, scope, public_key, allowed_ips, endpoint=at[0] if at is not None else None, host=host)
    _require_installable(draft, allowed_ips)
    old = draft.peer(scope, public_key)
    _require_few(allowed_ips, old.added if old else (), "allowed_ips")
    moved = take_networks(draft, scope, allowed_ips, public_key)
    draft.put(
        Peer(
            scope=scope,
            public_key=public_key,
            endpoint=endpoint,
            keepalive=keepalive,
            listed=tuple(dict.fromkeys(allowed_ips)),
            added=old.added if old else (),
            candidates=candidates,
            name=name if name is not None else old.name if old else "",
        )
    )
    return moved


def remove_peer(draft: Draft, scope: str, public_key: bytes) -> None:
    """Forget a peer; an unknown one is no error."""
    require_scope(draft, scope)
    _require_no_guest(draft, scope, public_key, "pubkey")
    peer = draft.peer(scope, public_key)
    if peer is not None:
        draft.drop(peer)


def add_allowed_ip(
    draft: Draft,
    scope: str,
    public_key: bytes,
    network: Network,
    *,
    resolved: Address | None = None,
    host: Sequence[HostNetwork] = (),
) -> list[str]:
    """Route a network to a peer, taking it from the peer that had it.  resolved: where the peer's host name points;
    host: what the host reaches without the overlay.  Returns what moved, in words, for the log.
    """
    require_scope(draft, scope)
    peer = draft.peer(scope, public_key)
    if peer is None:
        raise NotSetUp(f"no peer {keys.text(public_key)} in {scope_name(scope)}: send add_peer first")
    _require_no_guest(draft, scope, public_key, "pubkey")
    if network in peer.added:
        return []
    _require_few(peer.listed, (*peer.added, network), "cidr")
    at = numeric_endpoint(peer.endpoint)
    _require_ways(draft, scope, public_key, [network], endpoint=at[0] if at is not None else resolved, host=host)
    _require_installable(draft, [network])
    moved = take_networks(draft, scope, [network], public_key)
    draft.put(replace(peer, added=(*peer.added, network)))
    return moved


def remove_allowed_ip(draft: Draft, scope: str, public_key: bytes, network: Network) -> None:
    """No longer route a network to a peer; one that is not routed there is no error."""
    require_scope(draft, scope)
    peer = draft.peer(scope, public_key)
    if peer is not None and network in peer.allowed_ips:
        _require_no_guest(draft, scope, public_key, "pubkey")
        draft.put(_without(peer, {network}))


def require_scope(draft: Draft, scope: str) -> None:
    """RequestError when the scope has no device."""
    if scope == GLOBAL:
        overlay.require(draft)
        return
    service = draft.get(Service, scope)
    if service is None or not service.dedicated:
        raise NotSetUp(f"no dedicated overlay for service {scope}")


def called(state: State, scope: str, public_key: bytes) -> str:
    """What people call a peer: the name that it was given, else the beginning of its key."""
    peer = state.peers(scope).get(public_key)
    return peer.name if peer is not None and peer.name else f"{keys.text(public_key)[:SHORT_KEY]}..."


def scope_name(scope: str) -> str:
    return f"service {scope}" if scope else "the global overlay"


def _require_few(listed: tuple[Network, ...], added: tuple[Network, ...], field: str) -> None:
    """RequestError when a peer would have more allowed IPs than one may have."""
    if len(listed) + len(added) > MOST_ALLOWED_IPS and len({*listed, *added}) > MOST_ALLOWED_IPS:
        raise RequestError(
            f"request.{field}: at most {MOST_ALLOWED_IPS} allowed IPs a peer, with those of add_allowed_ip"
        )


def _require_no_guest(draft: Draft, scope: str, public_key: bytes, field: str) -> None:
    """RequestError when a peer is a guest's, which comes with its attach, has its one address, and goes with its
    detach.
    """
    guest = draft.state.guest(public_key) if scope == GLOBAL else None
    if guest is not None:
        name = guest.handle.partition(":")[2]
        raise RequestError(f"request.{field}: {keys.text(public_key)} is guest {name}: detach it first")


def _require_underlay(draft: Draft, endpoint: str, address: Address) -> None:
    """RequestError when nobody can be at an endpoint, or the tunnel to it would be led into the overlay."""
    if nobody := nobodys(address):
        raise RequestError(f"request.endpoint: {endpoint}: {address} {nobody}; give the peer's address, or none")
    inside = routed_into_overlay(draft.state, address)
    if inside:
        raise RequestError(
            f"request.endpoint: {endpoint} is in {inside}: the tunnel would be led into itself; give the peer's "
            "address outside of the overlay"
        )


def _require_ways(
    draft: Draft,
    scope: str,
    public_key: bytes,
    networks: Collection[Network],
    *,
    endpoint: Address | None,
    host: Sequence[HostNetwork],
) -> None:
    """RequestError when the route of an allowed IP would lead a tunnel into the overlay, cut the host off from a
    network of its own, or take a destination from another device: this host has one route to each.  endpoint: where
    the peer that announces them is, if it is known.
    """
    around = draft.get(Overlay)
    routed = [each for each in networks if around is not None and has_route(scope, each, around.cluster)]
    if around is None or not routed:
        return
    # The kernel itself tells of its routes when ours is added: nobody hears of their coming and going.
    host = [each for each in host if each.kind != "route"]
    scopes = (GLOBAL, *(service.name for service in draft.all(Service) if service.dedicated))
    others = [each for each in scopes if each != scope]
    peer = peer_key(scope, public_key)
    for network in routed:
        own = endpoint is not None and endpoint in network
        other = draft.state.endpoint_in(network, other_than=peer)
        if own or other is not None:
            at = f"its own endpoint {endpoint}" if other is None else f"{other.endpoint}, the endpoint of a peer"
            raise RequestError(
                f"allowed IP {network} holds {at}: the tunnel would be led into itself; announce less, or give the "
                "peer another endpoint"
            )
        lost = cuts_off(network, host)
        if lost is not None:
            raise RequestError(f"allowed IP {network} would cut this host off from the {lost}: announce less")
        for other_scope in others:
            taken = draft.owner(other_scope, network) is not None
            if taken and has_route(other_scope, network, around.cluster):
                where = f"the dedicated overlay of service {other_scope}" if other_scope else "the global overlay"
                raise RequestError(f"allowed IP {network} leads to {where} already: remove it there first")


def _require_installable(draft: Draft, networks: Collection[Network]) -> None:
    """RequestError when this node has all of the networks itself.  When it has some, the others are installed."""
    if networks and all(conflicts.holder(draft.state, network) for network in networks):
        named = ", ".join(
            f"{network} is {conflicts.holder(draft.state, network)}" for network in dict.fromkeys(networks)
        )
        raise RequestError(f"allowed IP {named}: no peer can have it; announce what is the peer's own")


def take_networks(draft: Draft, scope: str, networks: Collection[Network], to: bytes) -> list[str]:
    """Take networks from the peers that have them, once from each.  Returns what moved, in words."""
    lost: dict[bytes, dict[Network, None]] = {}
    for network in networks:
        owner = draft.owner(scope, network)
        if owner is None or owner.public_key == to or (scope == GLOBAL and draft.state.guest(owner.public_key)):
            continue
        lost.setdefault(owner.public_key, {})[network] = None
    for key, taken in lost.items():
        if (owner := draft.peer(scope, key)) is not None:
            draft.put(_without(owner, taken))
    return [
        f"allowed IP {network} moved from peer {keys.text(key)} to {keys.text(to)}"
        for key, taken in lost.items()
        for network in taken
    ]


def _without(peer: Peer, networks: Collection[Network]) -> Peer:
    return replace(
        peer,
        listed=tuple(other for other in peer.listed if other not in networks),
        added=tuple(other for other in peer.added if other not in networks),
    )
