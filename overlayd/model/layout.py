"""Which kernel objects the state implies.

Owns: the mapping from rows to objects.  Must not know: what the kernel has (`linux.observe`), or in which order it
changes (`plan`).

`layout(state, facts)` is everything; `layout(state, facts, touched)` only what depends on the touched rows, so that
a request costs what it changes.  The rows that everything depends on (the node, the global overlay) count as all rows,
and a service counts as its peers, its attachments and what edge peers may reach: they depend on its device, its bridge
and its subnet.
"""

from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_interface, ip_network
from itertools import chain
from typing import NamedTuple

from overlayd._fast.addresses import is_inside, place
from overlayd.model import conflicts, edges, set_members
from overlayd.model.attachments import OWN_MACS
from overlayd.model.labels import container, label
from overlayd.model.names import LONGEST
from overlayd.model.objects import (
    GLOBAL,
    Address,
    Alias,
    Bridge,
    Device,
    DevicePeer,
    Element,
    Fence,
    Netns,
    NetnsPath,
    Network,
    Object,
    Proxy,
    Route,
    Veth,
)
from overlayd.model.routing import has_route
from overlayd.model.rows import (
    Attachment,
    Change,
    Edge,
    Host,
    Isolation,
    Overlay,
    Peer,
    RowId,
    Service,
    numeric_endpoint,
)
from overlayd.model.state import State
from overlayd.model.subnets import first_usable

Layout = dict[Hashable, Object]
Networks = frozenset[Network]

_NONE: Networks = frozenset()
_NOTHING: Mapping[RowId, Networks] = {}

_ANYWHERE = {4: frozenset({ip_network("0.0.0.0/0")}), 6: frozenset({ip_network("::/0")})}


class Selected(NamedTuple):
    """Where NAT traversal found a peer, or looks for it.  keepalive: seconds, where its endpoint was given without."""

    endpoint: tuple[Address, int]
    keepalive: int


@dataclass(frozen=True, slots=True)
class Facts:
    """What a layout depends on beside the state.

    mtu: of the overlay, bytes.  devices: a WireGuard backend is there (without one the node is guest-only).
    resolved: where the host names in endpoints point; selected: what traversal has in place of an endpoint; both by
    the key of the peer's row and the endpoint in it, so that another endpoint ends them.
    """

    mtu: int
    devices: bool = True
    resolved: Mapping[tuple[str, str], tuple[Address, int]] = field(default_factory=dict)
    selected: Mapping[tuple[str, str], Selected] = field(default_factory=dict)


def layout(
    state: State, facts: Facts, touched: Collection[RowId] | None = None, besides: Mapping[RowId, Networks] = _NOTHING
) -> Layout:
    """The objects that the rows `touched` imply, or all rows (None), by key.  besides: see `implied`."""
    return by_key(implied(state, facts, touched, besides))


def by_key(objects: Iterable[Object]) -> Layout:
    """Objects by key; the later ones of a key count."""
    return {thing.key: thing for thing in objects}


def implied(
    state: State, facts: Facts, touched: Collection[RowId] | None = None, besides: Mapping[RowId, Networks] = _NOTHING
) -> Iterator[Object]:
    """As `layout`, one object after the other; the later ones of a key count.  What depends on a service is made of the
    rows that there are when it is its turn, whatever comes or goes meanwhile.  besides: by the rows
    of peers, allowed IPs whose routes are left out.
    """
    if touched is None or ("overlay", "") in touched or ("node", "") in touched:
        return _everything(state, facts)
    things = (thing for id in touched for thing in _of_row(state, facts, id, besides))
    # While the overlay is up, the fence around the cluster depends on its row alone, and that is not touched.
    return things if state.overlay is not None else chain(_fence(state), things)


def leave_out(
    state: State, facts: Facts, rows: Change, touched: Collection[RowId], besides: dict[RowId, Networks]
) -> Layout:
    """Put into `besides` the allowed IPs whose routes stay as they are while `rows` replace those of the state: seldom
    do all of a peer's thousand change, and nothing else does if the rows are of peers alone.  touched: those that rows
    before these have replaced.  Returns the routes that were left out for these, and may not be any more.
    """
    found = Layout()
    peers = [table for table, _ in rows].count(Peer.table)
    if not peers:
        return found
    only_peers = peers == len(rows)
    for id, row in rows.items():
        before = state.get(Peer, id[1]) if id[0] == Peer.table else None
        same = _NONE
        if only_peers and before is not None and isinstance(row, Peer):
            same = before.allowed_ips & row.allowed_ips
        if id in besides and before is not None:
            same &= besides[id]
            if lost := besides[id] - same:
                found |= layout(state, facts, [id], {id: before.allowed_ips - lost})
        if id in besides or (same and id not in touched):
            besides[id] = same
    return found


# Parts of the layout, as they are made, for who compares them with the kernel.  As of `implied`.


def of_service(state: State, facts: Facts, name: str) -> Iterator[Object]:
    """The bridge of a service, the veths of its containers, and the proxies on it."""
    for thing in implied(state, facts, [(Service.table, name)]):
        if isinstance(thing, Bridge | Veth | Proxy):
            yield thing


def of_device(state: State, facts: Facts, scope: str) -> Iterator[Object]:
    """The device of a scope with its peers, and the routes and aliases on it."""
    for thing in implied(state, facts):
        if (isinstance(thing, Device | DevicePeer | Route) and thing.scope == scope) or (
            isinstance(thing, Alias) and scope == GLOBAL
        ):
            yield thing


def of_peers(state: State, facts: Facts, scope: str) -> Iterator[Object]:
    """The device of a scope with its peers, without what else is on it."""
    rows: list[RowId] = [peer.id for peer in state.peers(scope).values()]
    if scope == GLOBAL:
        rows += [edge.id for edge in state.table(Edge).values()]
        device = _overlay(state, facts)
    else:
        service = state.get(Service, scope)
        device = _service(facts, service) if service is not None else iter(())
    for thing in chain(device, implied(state, facts, rows)):
        if isinstance(thing, Device | DevicePeer):
            yield thing


def fences(state: State, facts: Facts) -> Iterator[Object]:
    """The unreachable routes behind ours."""
    if state.overlay is not None:
        yield from _fence(state)
    for thing in implied(state, facts, [peer.id for peer in state.table(Peer).values()]):
        if isinstance(thing, Fence):
            yield thing


def elements(state: State, facts: Facts) -> Iterator[Object]:
    """All members of our nftables sets."""
    rows = [row.id for table in (Service, Attachment, Edge) for row in state.table(table).values()]
    for thing in chain(_overlay(state, facts), implied(state, facts, rows)):
        if isinstance(thing, Element):
            yield thing


def has_fence(state: State, network: Network) -> bool:
    """Whether there should be a fence around exactly this network; cheap."""
    if Fence(network) in _fence(state):
        return True
    packed, length = place(network)
    return any(state.allowed_ips(scope).exact(packed, length) is not None for scope in state.scopes())


def has_way(state: State, network: Network) -> bool:
    """Whether the global device should have a route to exactly this network that none of its peers announces; cheap."""
    overlay, own = state.overlay, state.slice_service
    if overlay is None or own is None:
        return False
    lease = state.lease(network.network_address.packed) if network.num_addresses == 1 else None
    return network == overlay.cluster or (lease is not None and lease.holder.startswith(edges.holder("")))


def _everything(state: State, facts: Facts) -> Iterator[Object]:
    yield from _fence(state)
    yield from _overlay(state, facts)
    for service in state.table(Service).values():
        yield from _service(facts, service)
    for peer in state.table(Peer).values():
        yield from _peer(state, facts, peer)
    for attachment in state.table(Attachment).values():
        yield from _attachment(state, facts, attachment)
    for edge in state.table(Edge).values():
        yield from _edge(state, facts, edge)


def _of_row(state: State, facts: Facts, id: RowId, besides: Mapping[RowId, Networks]) -> Iterator[Object]:
    table, key = id
    if table == Service.table:
        if service := state.get(Service, key):
            yield from _service(facts, service)
            yield from _on_service(state, facts, service)
        for granted in [*state.table(Edge).values()]:
            if key in granted.services:  # also without the service: what else they may reach stays
                yield from set_members.edge(granted.address, granted.allowed, edges.subnets(state, granted))
    elif table == Peer.table and (peer := state.get(Peer, key)):
        yield from _peer(state, facts, peer, besides.get(id, _NONE))
    elif table == Attachment.table and (attachment := state.get(Attachment, key)):
        yield from _attachment(state, facts, attachment)
    elif table == Edge.table and (edge := state.get(Edge, key)):
        yield from _edge(state, facts, edge)


def _fence(state: State) -> Iterator[Fence]:
    """The fence around the cluster CIDR.  Without the global overlay it stays while anybody may still send there, and
    so do those around what lay behind its peers.
    """
    overlay = state.get(Overlay)
    if overlay is None:
        return
    if overlay.up:
        yield Fence(overlay.cluster)
    elif state.table(Service) or state.table(Attachment):  # type: ignore[arg-type]
        yield Fence(overlay.cluster)
        for peer in state.peers(GLOBAL).values():
            outside = (each for each in conflicts.installed(state, peer) if has_route(GLOBAL, each, overlay.cluster))
            yield from map(Fence, outside)


def _overlay(state: State, facts: Facts) -> Iterator[Object]:
    overlay = state.get(Overlay)
    node = state.node_address
    if overlay is None or node is None:
        return
    yield from set_members.cluster(overlay.cluster)
    yield from set_members.node(node)
    if (host := state.get(Host)) is not None:
        yield from set_members.host(host.closed, host.bridged)
    if overlay.up and facts.devices:
        yield from set_members.tunnel(overlay.wg_port)
        # The bridge of the slice carries the node's address with a prefix; the device then carries it without.
        wide = state.slice_service is None
        yield Device(
            scope=GLOBAL,
            name=overlay.interface,
            private_key=state.node.private_key,
            listen_port=overlay.wg_port,
            mtu=facts.mtu,
            addresses=frozenset({ip_interface(f"{node}/{overlay.cluster.prefixlen}") if wide else ip_interface(node)}),
            label=label(overlay, state.node.node_id),
        )
        if not wide:
            yield Route(scope=GLOBAL, device=overlay.interface, destination=overlay.cluster, source=node)


def _service(facts: Facts, service: Service) -> Iterator[Object]:
    gateway = first_usable(service.subnet)
    yield from set_members.node(gateway)
    yield bridge(service, facts)
    if service.dedicated and facts.devices:
        yield from set_members.tunnel(service.wg_port)
        yield Device(
            scope=service.name,
            name=service.device,
            private_key=service.private_key,
            listen_port=service.wg_port,
            mtu=facts.mtu,
            addresses=frozenset({ip_interface(gateway)}),
        )


def bridge(service: Service, facts: Facts) -> Bridge:
    """The bridge of a service."""
    return Bridge(
        service=service.name,
        name=service.bridge,
        address=ip_interface((first_usable(service.subnet).packed, service.subnet.prefixlen)),
        mtu=facts.mtu,
    )


def _on_service(state: State, facts: Facts, service: Service) -> Iterator[Object]:
    """What depends on a service's device and bridge: not guests that were there before it, with the node's
    addresses.
    """
    for peer in [*state.peers(service.name).values()]:
        yield from _peer(state, facts, peer)
    own = service is state.slice_service
    for attachment in [*state.table(Attachment).values()]:
        here = attachment.address in service.subnet and (own or attachment.service == service.name)
        if here or (own and attachment.global_address is not None):
            yield from _attachment(state, facts, attachment)
    if own:
        for edge in [*state.table(Edge).values()]:
            yield from _edge(state, facts, edge)


def _peer(state: State, facts: Facts, peer: Peer, besides: Networks = _NONE) -> Iterator[Object]:
    if not facts.devices:
        return
    overlay = state.overlay if peer.scope == GLOBAL else state.get(Overlay)
    if overlay is None:
        return
    if peer.scope == GLOBAL:
        device = overlay.interface
    else:
        service = state.get(Service, peer.scope)
        if service is None:
            return
        device = service.device
    allowed_ips = conflicts.installed(state, peer)
    for network in allowed_ips - besides if besides else allowed_ips:
        if has_route(peer.scope, network, overlay.cluster):
            yield from _way(peer.scope, device, network, overlay.cluster)
    selected = _selected(peer, facts)
    yield DevicePeer(
        scope=peer.scope,
        device=device,
        public_key=peer.public_key,
        endpoint=selected.endpoint if selected else configured_address(peer, facts),
        keepalive=peer.keepalive or (selected.keepalive if selected else 0),
        allowed_ips=allowed_ips,
    )


def _way(scope: str, device: str, network: Network, cluster: Network) -> Iterator[Route | Fence]:
    """The route to an allowed IP, and a fence of its own where the cluster's is not around it."""
    yield Route(scope, device, network)
    if scope == GLOBAL or not is_inside(network, cluster):  # there none of the cluster has a route
        yield Fence(network)


def _attachment(state: State, facts: Facts, attachment: Attachment) -> Iterator[Object]:
    number = state.get(Isolation, attachment.isolation_network)
    network = number.number if number else None
    if attachment.namespace is None:
        yield from set_members.member(attachment.address, network)
        if state.overlay and facts.devices:
            service = state.get(Service, attachment.service)
            yield from _on_device(state, attachment, service, state.overlay.interface)
        return
    # What reaches the container through one of its interfaces may be answered through the other.
    sources = [address for address in (attachment.address, attachment.global_address) if address is not None]
    for leg, address in zip(veths(state, facts, attachment), sources, strict=False):  # none of what is not set up
        if leg.bridge is not None:
            yield from set_members.member(address, network, leg.name)
            yield from set_members.port(leg.name, leg.mac, sources)
        else:
            yield from set_members.leg(leg.name, sources)
            yield from set_members.member(address, network)
            yield from _stand_in(state, address)
        yield leg


def veths(state: State, facts: Facts, attachment: Attachment) -> Iterator[Veth]:
    """The links of a container: to its service, and to the global overlay if that is another one."""
    service, overlay, node = state.get(Service, attachment.service), state.get(Overlay), state.node_address
    namespace = attachment.namespace
    if namespace is None or service is None or overlay is None or node is None:
        return
    yield _service_leg(attachment, namespace, service, overlay, facts)
    if attachment.global_address is not None:
        yield Veth(
            name=attachment.host_end("g"),
            netns=namespace,
            interface=second_interface(attachment),
            service=None,
            bridge=None,
            address=ip_interface(attachment.global_address),
            gateway=node,
            routes=frozenset({overlay.cluster}),
            mac=mac(attachment.global_address),
            mtu=facts.mtu,
            label=container(attachment),
        )


def _stand_in(state: State, address: Address) -> Iterator[Proxy]:
    """The bridge of the slice answers for an address of it that is not on that bridge."""
    own = state.slice_service
    if own is not None and address in own.subnet:
        yield Proxy(service=own.name, bridge=own.bridge, address=address)


def _on_device(state: State, attachment: Attachment, service: Service | None, device: str) -> Iterator[Object]:
    """A host_shared container's address, or the way to a guest: the global device's own route covers it, unless its
    address is of a subnet that is on-link elsewhere.
    """
    yield from _stand_in(state, attachment.address)
    if not attachment.public_key:
        yield Alias(device=device, address=attachment.address)
    elif state.slice_service is not None and attachment.address in state.slice_service.subnet:
        yield Route(scope=GLOBAL, device=device, destination=ip_network(attachment.address))
    elif service is not None and attachment.address in service.subnet:
        yield Route(scope=GLOBAL, device=device, destination=ip_network(attachment.address))
        yield Proxy(service=service.name, bridge=service.bridge, address=attachment.address)


def second_interface(attachment: Attachment) -> str:
    """The name of a container's interface to the global overlay, if it has one of its own."""
    first = attachment.interface
    return f"{first[: LONGEST - 2]}-g" if first else "eth1"


def _service_leg(
    attachment: Attachment, namespace: Netns | NetnsPath, service: Service, overlay: Overlay, facts: Facts
) -> Veth:
    routes = _ANYWHERE[service.subnet.version] if attachment.default_route else frozenset()
    if attachment.joined:
        routes |= {overlay.cluster}
    return Veth(
        name=attachment.host_end(),
        netns=namespace,
        interface=attachment.interface or "eth0",
        service=service.name,
        bridge=service.bridge,
        address=ip_interface((attachment.address.packed, service.subnet.prefixlen)),
        gateway=first_usable(service.subnet),
        routes=routes,
        mac=mac_of(attachment),
        mtu=facts.mtu,
        label=container(attachment),
    )


def _edge(state: State, facts: Facts, edge: Edge) -> Iterator[Object]:
    yield from set_members.edge(edge.address, edge.allowed, edges.subnets(state, edge))
    if state.overlay and facts.devices:
        yield DevicePeer(
            scope=GLOBAL,
            device=state.overlay.interface,
            public_key=edge.public_key,
            endpoint=None,
            keepalive=0,
            allowed_ips=frozenset({ip_network(edge.address)}),
        )
        for proxy in _stand_in(state, edge.address):
            yield proxy
            yield Route(scope=GLOBAL, device=state.overlay.interface, destination=ip_network(edge.address))


def endpoint_address(peer: Peer, facts: Facts) -> tuple[Address, int] | None:
    """Where a peer's device was told to send: what traversal selected, else what is configured."""
    selected = _selected(peer, facts)
    return selected.endpoint if selected else configured_address(peer, facts)


def _selected(peer: Peer, facts: Facts) -> Selected | None:
    return facts.selected.get((peer.key, peer.endpoint)) if facts.selected else None


def configured_address(peer: Peer, facts: Facts) -> tuple[Address, int] | None:
    """The numeric form of a peer's `host:port`: written so, or resolved; None while it is neither."""
    if not peer.endpoint:
        return None
    return numeric_endpoint(peer.endpoint) or facts.resolved.get((peer.key, peer.endpoint))


def endpoint_text(endpoint: tuple[Address, int]) -> str:
    """`1.2.3.4:5`, `[fd00::1]:5`."""
    host, port = endpoint
    return f"[{host}]:{port}" if host.version == 6 else f"{host}:{port}"


def mac_of(attachment: Attachment) -> bytes:
    """The MAC of a container's interface to its service."""
    return attachment.mac or mac(attachment.address)


def mac(address: Address) -> bytes:
    """A locally administered MAC that follows from the address, so that a new attach does not outdate neighbour
    caches.
    """
    return OWN_MACS + address.packed[-4:]
