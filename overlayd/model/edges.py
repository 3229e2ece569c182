"""Edge peers: devices outside the cluster that are let in for a while, to a part of it.

Owns: Edge rows.  Must not know: the clock (`now` is an argument, Unix seconds), key generation, how a grant is enforced
(`ruleset`).

The private key is in the answer to the mint and nowhere else, so a lost one is not handed out again: the peer is
revoked and minted again.

A service is granted by its name: the grant ends with the service, whose subnet may be another service's next, and is
there again with the next service of that name.
"""

from collections.abc import Sequence

from overlayd.errors import RequestError
from overlayd.model import ipam, overlay
from overlayd.model.objects import GLOBAL, Address, Network
from overlayd.model.rows import Edge, Overlay, Service
from overlayd.model.state import Draft, State

# Our own constants.
LONGEST_NAME = 64  # characters: it is shown in tables and is in the first line of a configuration
LONGEST_TTL = 10 * 366 * 86400  # seconds; nobody remembers a credential for longer


def holder(name: str) -> str:
    """Who holds an edge peer's address."""
    return f"edge:{name}"


def mint(
    draft: Draft,
    name: str,
    *,
    public_key: bytes,
    now: int,
    ttl: int,
    allowed: Sequence[Network] = (),
    services: Sequence[str] = (),
) -> Edge:
    """Let a device in until `now + ttl`, to `allowed` and the subnets of `services`, to the whole cluster if both are
    empty; it gets an address of the node's pool.  RequestError says what is wrong; a name that is in use is not minted
    again.
    """
    around = overlay.require(draft)
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise RequestError(f"request.name: an edge peer needs a name of 1 to {LONGEST_NAME} printable characters")
    if not 0 < ttl <= LONGEST_TTL:
        raise RequestError(f"request.ttl_secs: 1 to {LONGEST_TTL} seconds, got {ttl}")
    for service in services:
        if draft.get(Service, service) is None:
            there = ", ".join(sorted(each.name for each in draft.all(Service))) or "none"
            raise RequestError(
                f"request.allow: {service!r} is neither a CIDR nor a service of this node; its services: {there}"
            )
    for network in allowed:
        if network.version != around.cluster.version:
            raise RequestError(
                f"request.allow: {network} cannot be reached from an IPv{around.cluster.version} overlay address"
            )
    present = draft.get(Edge, name)
    if present is not None and present.expires > now:
        raise RequestError(
            f"edge peer {name} exists, with the address {present.address}; its private key was given out once: "
            "revoke it to mint a new one"
        )
    if present is not None:
        revoke(draft, name)
    edge = Edge(
        name=name,
        address=ipam.allocate(draft, GLOBAL, holder(name)),
        public_key=public_key,
        minted=now,
        expires=now + ttl,
        allowed=tuple(dict.fromkeys(allowed)) if allowed or services else (around.cluster,),
        services=tuple(dict.fromkeys(services)),
    )
    draft.put(edge)
    return edge


def require_dialable(draft: Draft, address: Address) -> None:
    """RequestError when no device outside the cluster could send to this address of the node."""
    if address.is_unspecified or address.is_multicast:
        raise RequestError(f"request.node_endpoint: nobody can dial {address}; name an address of this node")
    around = draft.get(Overlay)
    if around is not None and address in around.cluster:
        raise RequestError(
            f"request.node_endpoint: {address} is in the cluster CIDR {around.cluster}, which is behind the tunnel "
            "that leads there; name an address outside of it"
        )


def subnets(state: State, edge: Edge) -> tuple[Network, ...]:
    """The subnets of those services of an edge peer that are on this node now."""
    services = (state.get(Service, name) for name in edge.services)
    return tuple(service.subnet for service in services if service is not None)


def reach(state: State, edge: Edge) -> tuple[Network, ...]:
    """All that an edge peer may reach now."""
    return tuple(dict.fromkeys((*edge.allowed, *subnets(state, edge))))


def revoke(draft: Draft, name: str) -> None:
    """Shut a device out; an unknown one is no error."""
    edge = draft.get(Edge, name)
    if edge is not None:
        ipam.release(draft, edge.address, holder(name))
        draft.drop(edge)


def expire(draft: Draft, now: float) -> list[str]:
    """Shut out all whose time is over, and return their names."""
    over = [edge.name for edge in draft.all(Edge) if edge.expires <= now]
    for name in over:
        revoke(draft, name)
    return over
