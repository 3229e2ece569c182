"""What this node's membership in a cluster means for requests.

Owns: what an orchestrator may not change beside the cluster, and where subnets of services come from.  Must not know:
how a node joins, or how news of the cluster become rows (`joining`).
"""

from ipaddress import ip_network

from overlayd import keys
from overlayd.errors import RequestError
from overlayd.model import blocks, services
from overlayd.model.findings import Finding
from overlayd.model.objects import GLOBAL, Network
from overlayd.model.rows import Attachment, Edge, Lease, Membership, Overlay, Service
from overlayd.model.state import Draft, State


def holders(state: State) -> list[str]:
    """Who holds an address of this node's blocks, in words; while there is one, they stay what they are."""
    found = [f"service {service.name}" for service in state.table(Service).values()]
    found += [lease.holder for lease in state.table(Lease).values() if lease.holder]
    found += [each.handle for each in state.table(Attachment).values() if each.global_address is None]
    return list(dict.fromkeys(found))


def lived_in(state: State) -> list[Network]:
    """The blocks in which this node's overlay is from before it left the cluster, or was removed from it; the first is
    that of its slice.  Empty when the overlay is no node's of this cluster.
    """
    known, around = state.get(Membership), state.get(Overlay)
    if known is None or around is None or around.slice is None or around.cluster != known.cidr:
        return []
    prefix = known.block_prefix
    inside = [around.slice, *(service.subnet for service in state.table(Service).values())]
    inside += [ip_network(lease.address) for lease in state.table(Lease).values() if lease.holder]
    found = [each.supernet(new_prefix=prefix) for each in inside if _is_within(each, known.cidr, prefix)]
    if not found or blocks.carve(found[0], known.service_share).slice != around.slice:
        return []
    return list(dict.fromkeys(found))


def _is_within(network: Network, cluster: Network, prefix: int) -> bool:
    """Whether a network is in one block of the cluster."""
    return (
        network.version == cluster.version and network.prefixlen >= prefix and network.subnet_of(cluster)  # type: ignore[arg-type]
    )


def knowing_our_key(state: State) -> list[str]:
    """Who has this node's key from elsewhere than the cluster, in words."""
    found = [f"guest {each.handle}" for each in state.table(Attachment).values() if each.public_key]
    found += [f"edge peer {name}" for name in state.table(Edge)]
    return found + [
        f"peer {each.name or keys.text(each.public_key)}"
        for each in state.peers(GLOBAL).values()
        if not each.member and state.guest(each.public_key) is None
    ]


def unfollowed(state: State) -> list[Finding]:
    """What a daemon that was given no etcd tells of a node that is of a cluster."""
    known = state.get(Membership)
    if known is None or not known.blocks:
        return []
    return [
        Finding(
            code="cluster-disconnected",
            severity="warning",
            object=f"cluster {known.cluster}",
            problem="is not followed, though this node is of it: overlayd was started without --etcd",
            symptom="news of other nodes, and of this one to them, do not come, and where node_ttl_secs is set the "
            "others remove this node, and give its addresses away",
            remedy=f"start it with --etcd and --cluster {known.cluster}; to be of it no longer, overlayctl cluster "
            "leave after that",
        )
    ]


def require_own_range(draft: Draft, cluster: Network, slice: Network | None) -> None:
    """RequestError when a setup of the overlay asks for another range than the cluster gave this node."""
    known = draft.get(Membership)
    if known is None or not known.blocks or known.cidr is None:
        return
    ours = blocks.carve(known.blocks[0], known.service_share).slice
    if cluster != known.cidr or slice != ours:
        raise RequestError(
            f"this node's slice comes from cluster {known.cluster} ({ours} of {known.cidr}): set up with these, or "
            "leave the cluster first (overlayctl cluster leave)"
        )


def require_foreign(draft: Draft, scope: str, public_key: bytes, field: str) -> None:
    """RequestError when a peer is a node of the cluster, which its store alone adds and removes."""
    peer = draft.peer(scope, public_key) if scope == GLOBAL else None
    if peer is not None and peer.member:
        known = draft.get(Membership)
        cluster = f" of cluster {known.cluster}" if known is not None else ""
        raise RequestError(
            f"request.{field}: {keys.text(public_key)} is node {peer.member}{cluster}, which follows the store: to "
            f"remove it, overlayctl cluster remove-node {peer.member}"
        )


def service_ranges(draft: Draft) -> list[Network] | None:
    """Where subnets of services come from: this node's blocks; None when it is in no cluster."""
    known = draft.get(Membership)
    if known is None or not known.blocks:
        return None
    return blocks.service_ranges(known.blocks, known.service_share)


def lacking(state: State) -> str:
    """What this node's blocks have no room left for, in words; empty while there is room for all."""
    draft = Draft(state)
    around, known = draft.get(Overlay), draft.get(Membership)
    ranges = service_ranges(draft)
    if around is None or known is None or ranges is None:
        return ""
    full = []
    if all(pool.held == pool.size for pool in state.pools(GLOBAL)):
        full.append("addresses")
    if known.service_share and services.find_subnet(draft, around, ranges, "", ()) is None:
        full.append("services")
    return " and ".join(full)
