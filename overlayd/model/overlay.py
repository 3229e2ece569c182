"""Setting up the global overlay: identity, address range, re-addressing.

Owns: the Node and Overlay rows.  Must not know: devices, requests.
"""

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_network
from typing import Any

from msgspec.structs import replace

from overlayd.errors import NotSetUp, RequestError
from overlayd.model.names import bridge_name, dedicated_name, device_name, require_legal, require_printable
from overlayd.model.objects import GLOBAL, LONGEST_SCOPE, Network
from overlayd.model.overlaps import HostNetwork, cuts_off
from overlayd.model.rows import Host, Lease, Overlay, Service
from overlayd.model.state import Draft
from overlayd.model.subnets import first_usable


def set_node_id(draft: Draft, node_id: int) -> None:
    """The number that spreads service subnets over nodes.  Subnets that were assigned stay."""
    draft.put(replace(draft.state.node, node_id=node_id))


def announce_key(draft: Draft, public_key: bytes) -> None:
    """Remember what the orchestrator takes our public key for."""
    draft.put(replace(draft.state.node, announced_key=public_key))


def prepare_key(draft: Draft, private_key: bytes) -> None:
    """Remember the key that this node is to have; to be on disk before anybody hears of it.  One that waits already is
    kept.
    """
    if not draft.state.node.next_key:
        draft.put(replace(draft.state.node, next_key=private_key))


def turn_key(draft: Draft) -> None:
    """This node has the key that was prepared."""
    node = draft.state.node
    draft.put(replace(node, private_key=node.next_key, next_key=b"", former_key=node.private_key))


def forget_former_key(draft: Draft) -> None:
    """The device has the new one."""
    draft.put(replace(draft.state.node, former_key=b""))


def require(draft: Draft) -> Overlay:
    """The global overlay; RequestError when it is not set up."""
    overlay = draft.get(Overlay)
    if overlay is None or not overlay.up:
        raise NotSetUp(f"global overlay not set up: {draft.state.lack}")
    return overlay


def note_host(draft: Draft, boot_id: str, closed: Iterable[int], bridged: Iterable[int]) -> None:
    """Remember what the host was in this boot before an overlay came; to be decided together with its coming."""
    known = draft.get(Host)
    if known is None or known.boot_id != boot_id:
        draft.put(Host(boot_id=boot_id, closed=tuple(sorted(closed)), bridged=tuple(sorted(bridged))))


def setup_global(
    draft: Draft,
    *,
    deployment: str,
    instance_id: str,
    cluster: Network,
    slice: Network | None,
    wg_port: int,
    nat: dict[str, Any] | None,
    host: Sequence[HostNetwork] = (),
) -> Overlay:
    """Bring the overlay up, or change it in place.  host: what the host reaches without it.  RequestError when the
    ranges make no sense, would orphan a live address, or would cut the host off.
    """
    if slice is not None and not _inside(slice, cluster):
        raise RequestError(f"slice_cidr {slice} is not inside cluster_cidr {cluster}")
    if cluster.num_addresses < 4:
        raise RequestError(f"cluster_cidr {cluster} is too small for an overlay")
    if wg_port == 0:
        raise RequestError("request.wg_port: 0 is no port that others could send to; choose one from 1 to 65535")
    for service in draft.all(Service):
        if service.dedicated and service.wg_port == wg_port:
            raise RequestError(f"wg_port {wg_port} is that of the dedicated service {service.name}: tear it down first")
    require_printable(deployment, "deployment", LONGEST_SCOPE)
    require_printable(instance_id, "instance_id", LONGEST_SCOPE)
    old = draft.get(Overlay)
    if old is None or not old.up or (old.cluster, old.slice) != (cluster, slice):
        require_range(cluster, host)  # what is up stays up: of that the overlap is told
        if slice is not None:
            _require_room("slice_cidr", slice, host)
    inside = draft.state.endpoint_in(cluster) if old is None or old.cluster != cluster else None
    if inside is not None:
        raise RequestError(
            f"cluster_cidr {cluster} holds {inside.endpoint}, the endpoint of a peer: "
            "the tunnel would be led into itself"
        )
    interface = device_name(deployment, instance_id)
    require_legal(interface, f"deployment {deployment!r} with instance_id {instance_id!r}")
    if old is not None and (old.cluster, old.slice) != (cluster, slice):
        _readdress(draft, old, cluster, slice)
    overlay = Overlay(
        deployment=deployment,
        instance_id=instance_id,
        interface=interface,
        cluster=cluster,
        slice=slice,
        wg_port=wg_port,
        nat=nat,
        slice_service=old.slice_service if old is not None else "",
    )
    draft.put(overlay)
    for service in list(draft.all(Service)):
        bridge = bridge_name(deployment, instance_id, service.name)
        device = dedicated_name(deployment, instance_id, service.name) if service.dedicated else ""
        for link in (bridge, device):
            require_legal(link, f"service {service.name!r}")
        draft.put(replace(service, bridge=bridge, device=device))
    return overlay


def teardown_global(draft: Draft) -> None:
    """Drop the device; key, peers and allocations stay.  Idempotent."""
    overlay = draft.get(Overlay)
    if overlay is not None and overlay.up:
        draft.put(replace(overlay, up=False))


def require_range(cluster: Network, host: Sequence[HostNetwork] = ()) -> None:
    """RequestError when nobody can have an overlay with these addresses, or a host that reaches these networks."""
    if cluster.prefixlen == 0:
        raise RequestError(f"cluster_cidr {cluster} would lead all of this host's traffic into the overlay")
    for network, what in _NO_HOSTS.items():
        if cluster.version == network.version and cluster.overlaps(network):
            raise RequestError(f"cluster_cidr {cluster} has {what} ({network}): choose another range")
    _require_room("cluster_cidr", cluster, host)


# What no packet between two hosts can be addressed to (RFC 6890), or be more than a link away.
_NO_HOSTS: Mapping[Network, str] = {
    ip_network("0.0.0.0/8"): "addresses of nobody",
    ip_network("127.0.0.0/8"): "addresses that each host has for itself",
    ip_network("224.0.0.0/4"): "addresses of groups, and of no host",
    ip_network("::/127"): "addresses that each host has for itself",
    ip_network("fe80::/10"): "addresses that each link has for itself",
    ip_network("ff00::/8"): "addresses of groups, and of no host",
}


def _require_room(field: str, network: Network, host: Sequence[HostNetwork]) -> None:
    lost = cuts_off(network, host)
    if lost is not None:
        raise RequestError(
            f"{field} {network} overlaps with the {lost}, and would cut this host off from it: choose another range"
        )


def _readdress(draft: Draft, around: Overlay, cluster: Network, slice: Network | None) -> None:
    """Refuse a range that would orphan a live address; forget released addresses that fall outside the new one."""
    node = first_usable(slice or cluster)
    orphans: list[str] = []
    for service in draft.all(Service):
        if not _inside(service.subnet, cluster):
            orphans.append(f"{service.subnet} (service {service.name})")
        elif around.slice_service == service.name and around.slice != slice:
            orphans.append(f"{service.subnet} (service {service.name}, which has the slice)")
        elif around.slice_service == service.name:
            continue
        elif node in service.subnet:
            orphans.append(f"{service.subnet} (service {service.name}, would hold the node address {node})")
    for lease in list(draft.all(Lease)):
        outside = lease.pool == GLOBAL and lease.address not in (slice or cluster)
        if lease.holder and (outside or lease.address == node):
            orphans.append(f"{lease.address} ({lease.holder})")
        elif outside:
            draft.drop(lease)
    if orphans:
        shown = ", ".join(orphans[:10]) + (f" and {len(orphans) - 10} more" if len(orphans) > 10 else "")
        raise RequestError(
            f"cluster_cidr {cluster} with slice_cidr {slice or 'none'} would orphan live addresses: {shown}; "
            "detach or release them first"
        )


def _inside(inner: Network, outer: Network) -> bool:
    return inner.version == outer.version and (
        outer.network_address <= inner.network_address and inner.broadcast_address <= outer.broadcast_address  # type: ignore[operator]
    )
