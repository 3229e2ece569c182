"""Services on this node: their subnet, bridge, and for dedicated ones the device.

Owns: Service rows.  Must not know: how bridges are made, or why a container is attached.
"""

from collections.abc import Callable, Sequence

from msgspec.structs import replace

from overlayd.errors import RequestError
from overlayd.model import attachments, ipam, overlay, records, subnets
from overlayd.model.names import bridge_name, dedicated_name, require_legal, require_printable
from overlayd.model.objects import GLOBAL, LONGEST_SCOPE, Address, Network
from overlayd.model.overlaps import HostNetwork, occupant
from overlayd.model.rows import Attachment, Lease, Membership, Overlay, Service
from overlayd.model.state import Draft, State, further_blocks

# Our own constant, from the contract: dedicated devices listen on one of this many ports above the global one.
DEDICATED_PORTS = 256


def setup_service(
    draft: Draft,
    name: str,
    *,
    subnet: Network | None,
    dedicated_key: bytes | None,
    isolated: bool = False,
    port_is_free: Callable[[int], bool] = lambda _port: True,
    host: Sequence[HostNetwork] = (),
    now: int = 0,
    ranges: Sequence[Network] | None = None,
) -> Service:
    """Set a service up, or return it as it is.

    subnet: exactly this one, None for the one its name and node give; the node's slice for a service whose containers
    share the node's addresses, of which a node has one.  dedicated_key: the private key of a dedicated
    service's device, used if it is new; None for a service without one.  isolated: its containers are to come with an
    isolation network; a service without a device may change that.  port_is_free: whether no other program of the host
    has that UDP port.  host: what the host reaches without the overlay.  now: Unix seconds.  ranges: the parts of the
    cluster CIDR that this node's services get their subnets from, None for all of it.
    """
    if not name:
        raise RequestError("request.service: a service needs a name")
    around = overlay.require(draft)
    present = draft.get(Service, name)
    if present is not None:
        service = _as_asked(present, subnet, dedicated=dedicated_key is not None, isolated=isolated)
        draft.put(service)
        return service
    require_printable(name, "service", LONGEST_SCOPE)
    bridge = bridge_name(around.deployment, around.instance_id, name)
    require_legal(bridge, f"service {name!r}")
    if subnet is None:
        subnet = _find_subnet(draft, around, name, host, ranges)
    elif subnet == around.slice:
        _check_slice(around, subnet, name, dedicated_key is not None, host)
    else:
        _check_wanted(draft, around, subnet, host, ranges)
    service = Service(name=name, subnet=subnet, bridge=bridge, isolated=isolated, since=now)
    if dedicated_key is not None:
        service = replace(
            service,
            device=dedicated_name(around.deployment, around.instance_id, name),
            private_key=dedicated_key,
            wg_port=_free_port(draft, around, port_is_free),
        )
    if subnet == around.slice:
        service = replace(service, lasting=True)
        draft.put(replace(around, slice_service=name))
    else:
        for lease in list(draft.state.leases(GLOBAL).values()):
            if lease.address in subnet:
                draft.drop(lease)  # released long ago from the node's pool; the address is the service's from now on
    draft.put(service)
    return service


def _as_asked(present: Service, subnet: Network | None, *, dedicated: bool, isolated: bool) -> Service:
    """A service that is there, set up once more.  RequestError: as another one than it is."""
    if present.dedicated != dedicated:
        raise RequestError(f"service {present.name} is set up as {present.mode}: tear it down first to change its mode")
    if subnet is not None and subnet != present.subnet:
        raise RequestError(
            f"service {present.name} has the subnet {present.subnet}: tear it down first to give it {subnet}"
        )
    # It is wanted from now on, even if those who used it before have left.
    return replace(present, left=False, isolated=isolated)


def _find_subnet(
    draft: Draft, around: Overlay, name: str, host: Sequence[HostNetwork], ranges: Sequence[Network] | None
) -> Network:
    """The subnet of a new service for which none was asked.  RequestError: there is no free one."""
    if ranges is None:
        number = draft.state.node.node_id
        return subnets.choose(around.cluster, name, number, lambda slot: _taken(draft, around, slot, host))
    subnet = find_subnet(draft, around, ranges, name, host)
    if subnet is None:
        raise RequestError(
            f"no free subnet for service {name!r} in this node's part of the cluster "
            f"({', '.join(map(str, ranges)) or 'none is for services'}): tear a service down, or try again when "
            "the node has claimed another block (overlayctl cluster status)"
        )
    return subnet


def find_subnet(
    draft: Draft, around: Overlay, ranges: Sequence[Network], name: str, host: Sequence[HostNetwork]
) -> Network | None:
    """A subnet for a service in one of the ranges; None when they are full."""
    first = subnets.spread(name, str(draft.state.node.node_id))
    for within in ranges:
        prefix = subnets.service_prefix(within)
        start = first % (1 << prefix - within.prefixlen)
        found = subnets.first_free(within, prefix, start, lambda slot: _taken(draft, around, slot, host))
        if found is not None:
            return found
    return None


def teardown_service(draft: Draft, name: str) -> None:
    """Detach what is attached, forget the subnet, the port and the peers of its scope.  Idempotent."""
    service = draft.get(Service, name)
    if service is None:
        return
    for attachment in list(draft.all(Attachment)):
        if attachment.service == name:
            attachments.detach(draft, attachment)
    for lease in list(draft.state.leases(name).values()):
        records.withdraw(draft, lease.address)
        draft.drop(lease)
    for peer in list(draft.state.peers(name).values()):
        draft.drop(peer)
    draft.drop(service)
    around = draft.get(Overlay)
    if around is not None and around.slice_service == name:
        draft.put(replace(around, slice_service=""))


def release_ip(draft: Draft, address: Address, *, closing: str = "") -> bool:
    """Give back an address of allocate_ip; False when it is none.  closing: the service that goes with it, if all that
    were attached to it have left and no other address keeps it.
    """
    if not ipam.release(draft, address, ipam.REQUEST):
        return False
    service = draft.get(Service, closing)
    if service is not None and service.left and not service.lasting:
        attachments.drop_if_empty(draft, service)
    return True


def _taken(draft: Draft, around: Overlay, slot: Network, host: Sequence[HostNetwork]) -> Network | None:
    """A network that keeps `slot` from being a service's subnet."""
    state = draft.state
    for service in (*draft.all(Service), *draft.departing(Service)):
        if service.subnet.version == slot.version and service.subnet.overlaps(slot):
            return service.subnet
    if around.slice is not None and around.slice.overlaps(slot):
        return around.slice
    scattered = around.slice is None or further_blocks(state.get(Membership))
    if scattered and _inhabited(draft, slot):
        return slot
    lived_in = occupant(slot, around.cluster, host)
    return lived_in.network if lived_in is not None else _routed_elsewhere(state, around, slot)


def _inhabited(draft: Draft, slot: Network) -> bool:
    """Without a slice the node's own addresses come from the whole cluster CIDR; in a cluster of a store also from
    further blocks.
    """
    state = draft.state
    leaving = (lease.address for lease in draft.departing(Lease) if lease.holder and lease.pool == GLOBAL)
    return (
        state.node_address in slot
        or any(pool.is_inhabited(slot) for pool in state.pools(GLOBAL))
        or any(address in slot for address in leaving)
    )


def _routed_elsewhere(state: State, around: Overlay, slot: Network) -> Network | None:
    """An allowed IP of a known peer, narrower than the cluster, that overlaps the slot."""
    packed, length = slot.network_address.packed, slot.prefixlen
    for scope in state.scopes():
        allowed = state.allowed_ips(scope)
        for address, prefix_len, _ in (*allowed.covering(packed, length), *allowed.within(packed, length)):
            if prefix_len > around.cluster.prefixlen:
                return type(slot)((address, prefix_len))
    return None


def _check_slice(around: Overlay, slice: Network, name: str, dedicated: bool, host: Sequence[HostNetwork]) -> None:
    if dedicated:
        raise RequestError(
            f"request.subnet: {slice} is this node's slice, and a dedicated service, whose device is its own, "
            "cannot have it"
        )
    if around.slice_service:
        raise RequestError(
            f"request.subnet: {slice} is this node's slice, which service {around.slice_service} has already: "
            f"tear that one down first to give it to {name}"
        )
    _require_place(around, slice, host)


def _require_place(around: Overlay, subnet: Network, host: Sequence[HostNetwork]) -> None:
    if subnet.num_addresses < 4:
        raise RequestError(f"request.subnet: {subnet} has no room for a gateway and a container")
    lived_in = occupant(subnet, around.cluster, host)
    if lived_in is not None:
        raise RequestError(f"request.subnet: {subnet} would cut this host off from the {lived_in}: choose another one")


def _check_wanted(
    draft: Draft, around: Overlay, subnet: Network, host: Sequence[HostNetwork], ranges: Sequence[Network] | None
) -> None:
    if subnet.version != around.cluster.version or not subnet.subnet_of(around.cluster):  # type: ignore[arg-type]
        raise RequestError(f"request.subnet: {subnet} is not inside the cluster CIDR {around.cluster}")
    _require_place(around, subnet, host)
    if ranges is not None and not any(
        subnet.version == each.version and subnet.subnet_of(each)  # type: ignore[arg-type]
        for each in ranges
    ):
        where = ", ".join(map(str, ranges)) or "none"
        raise RequestError(f"request.subnet: {subnet} is not in this node's part of the cluster for services ({where})")
    taken = _taken(draft, around, subnet, host)
    if taken is not None:
        raise RequestError(f"request.subnet: {subnet} overlaps {taken}, which is in use")


def _free_port(draft: Draft, around: Overlay, port_is_free: Callable[[int], bool]) -> int:
    used = {service.wg_port for service in (*draft.all(Service), *draft.departing(Service))}
    for port in range(around.wg_port + 1, min(around.wg_port + DEDICATED_PORTS, 65535) + 1):
        if port not in used and port_is_free(port):
            return port
    last = around.wg_port + DEDICATED_PORTS
    raise RequestError(f"no free WireGuard port in {around.wg_port + 1}-{last}: tear a dedicated service down")
