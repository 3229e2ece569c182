"""A state made of what a host still carries, when the one that it was made of is lost.

Owns: which rows the kernel's objects imply, and the words for what they do not tell.  Must not know: how the objects
are read (`daemon.adopt`), or whether the state is wanted.

What is not kept here is removed by the start that follows, as everything that no row implies.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_network

from msgspec.structs import replace

from overlayd import keys
from overlayd.errors import StateError
from overlayd.model import attachments, labels, set_members
from overlayd.model.attachments import ADOPTED
from overlayd.model.layout import Layout, endpoint_text, mac
from overlayd.model.names import PREFIX, pid_of
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
    Route,
    Veth,
)
from overlayd.model.rows import Attachment, Host, Isolation, Lease, Node, Overlay, Peer, Row, Service
from overlayd.model.subnets import first_usable

NOT_SEEN = NetnsPath("", 0, 0)  # a namespace that is there, since its links are, but whose file is out of sight


@dataclass
class Adoption:
    """The rows of a host.  lost: what could not be kept, a line each."""

    rows: list[Row] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = ((Service, "services"), (Attachment, "containers"), (Peer, "peers"))
        return ", ".join(f"{sum(isinstance(row, kind) for row in self.rows)} {words}" for kind, words in kinds)

    def put(self, *rows: Row) -> None:
        self.rows += rows


def adopt(found: Layout, boot_id: str, key: bytes) -> Adoption:
    """What the objects on a host imply.  boot_id: of now.  key: this node's private one, if its device is gone.

    StateError when a device does not tell its key, or the host not even its cluster CIDR.
    """
    result = Adoption()
    if not any(isinstance(thing, Device | Bridge | Veth) for thing in found.values()):
        return result
    devices = {thing.scope: thing for thing in found.values() if isinstance(thing, Device)}
    bridges = {thing.service: thing for thing in found.values() if isinstance(thing, Bridge)}
    veths = {thing.name: thing for thing in found.values() if isinstance(thing, Veth)}
    for device in devices.values():
        if not any(device.private_key):
            raise StateError(f"device {device.name} does not tell its key now: try again, or end what serves it")
    overlay = _overlay(result, devices.get(GLOBAL), found.values(), key)
    overlay = _with_slice_service(overlay, bridges.values(), found.values())
    result.put(overlay)
    result.put(_host(found, boot_id))
    services = list(_services(result, bridges.values(), devices, overlay.cluster))
    result.put(*services)
    _attachments(result, {each.name: each for each in services}, veths, found, boot_id)
    for thing in found.values():
        if isinstance(thing, Alias):
            _host_container(result, thing.address)
    _peers(result, [thing for thing in found.values() if isinstance(thing, DevicePeer)], overlay, services)
    result.lost.append("registered names, and addresses of allocate_ip: register and allocate them again")
    return result


def _overlay(result: Adoption, device: Device | None, things: Collection[Object], key: bytes) -> Overlay:
    address: Address | None
    own = next((each for each in device.addresses if each.network.num_addresses > 1), None) if device else None
    known = labels.parse(device.label) if device is not None else None
    way = _way_to_the_cluster(things)
    if own is not None:
        cluster, address = own.network, own.ip
    elif way is not None:
        cluster, address = way.destination, way.source
    else:
        fences = _cluster_first(things)
        if not fences:
            raise StateError(
                "this host's links cannot be adopted: neither a device nor an unreachable route tells the cluster "
                "CIDR. To remove them: overlayd --teardown"
            )
        legs = (each.gateway for each in things if isinstance(each, Veth) and each.service is None and each.mac)
        cluster, address = fences[0], next(legs, None)
    slice = known.slice if known is not None else _guess_slice(cluster, address, things)
    if known is None:
        what = "deployment, instance and node id" + ("" if slice is None else f", and that the slice is {slice}")
        result.lost.append(f"{what}: not told by the global device; set the overlay up again to say so")
    if device is None:
        result.lost.append("this node's key: its device is gone, so all peers have to be told of the new one")
    result.lost.append("the NAT configuration: traversal is off until the overlay is set up again")
    overlay = Overlay(
        deployment=known.deployment if known is not None else ADOPTED,
        instance_id=known.instance_id if known is not None else ADOPTED,
        interface=device.name if device is not None else "",
        cluster=cluster,
        slice=slice,
        wg_port=device.listen_port if device is not None else 0,
        nat={"enabled": False},
        up=device is not None and (own is not None or known is not None),
    )
    private_key = device.private_key if device is not None else key
    result.put(Node(private_key=private_key, node_id=known.node_id if known is not None else 0))
    return overlay


def _way_to_the_cluster(things: Iterable[Object]) -> Route | None:
    """The route that stands in for the prefix of the global device, where the bridge of the slice has that."""
    routes = (each for each in things if isinstance(each, Route) and each.scope == GLOBAL)
    return next((each for each in routes if each.source is not None), None)


def _with_slice_service(overlay: Overlay, bridges: Iterable[Bridge], things: Iterable[Object]) -> Overlay:
    """The service whose bridge has the node's address has its slice."""
    way = _way_to_the_cluster(things)
    shared = next((each for each in bridges if way is not None and each.address.ip == way.source), None)
    if shared is None:
        return overlay
    return replace(overlay, slice=shared.address.network, slice_service=shared.service)


def _host(found: Layout, boot_id: str) -> Host:
    """What the host was before it got an overlay."""
    closed, bridged = set_members.remembered_host(found.values())
    return Host(boot_id=boot_id, closed=tuple(closed), bridged=tuple(bridged))


def _cluster_first(things: Iterable[Object]) -> list[Network]:
    """The networks with a fence: those around a bridge before those of allowed IPs elsewhere, wide before narrow."""
    bridges = [thing.address.ip for thing in things if isinstance(thing, Bridge)]
    fences = [thing.destination for thing in things if isinstance(thing, Fence)]
    return sorted(fences, key=lambda fence: (not any(each in fence for each in bridges), fence.prefixlen))


def _guess_slice(cluster: Network, address: Address | None, things: Iterable[Object]) -> Network | None:
    """The widest network within the cluster of which `address` is the first that can be used, and no peer's."""
    if address is None or address == first_usable(cluster):
        return None
    others = [net for each in things if isinstance(each, DevicePeer) for net in each.allowed_ips]
    others = [each for each in others if each.version == cluster.version and each.prefixlen > cluster.prefixlen]
    for length in range(cluster.prefixlen + 1, cluster.max_prefixlen - 1):
        network = ip_network(f"{address}/{length}", strict=False)
        if first_usable(network) == address and not any(network.overlaps(other) for other in others):
            return network
    return ip_network(address)


def _services(
    result: Adoption, bridges: Iterable[Bridge], devices: dict[str, Device], cluster: Network
) -> Iterator[Service]:
    for bridge in bridges:
        subnet, device = bridge.address.network, devices.get(bridge.service)
        if subnet.version != cluster.version or not subnet.subnet_of(cluster):  # type: ignore[arg-type]
            result.lost.append(f"service {bridge.service}: {bridge.name} has no address of the cluster {cluster}")
            continue
        yield Service(
            name=bridge.service,
            subnet=subnet,
            bridge=bridge.name,
            lasting=True,
            device=device.name if device is not None else "",
            private_key=device.private_key if device is not None else b"",
            wg_port=device.listen_port if device is not None else 0,
        )
    for scope, device in devices.items():
        if scope != GLOBAL and all(bridge.service != scope for bridge in bridges):
            result.lost.append(f"service {scope}: {device.name} is without its bridge")


def _attachments(
    result: Adoption, services: dict[str, Service], veths: dict[str, Veth], found: Layout, boot_id: str
) -> None:
    numbers: dict[str, int] = {}
    shared = next((each.slice_service for each in result.rows if isinstance(each, Overlay)), "")
    senders = _senders(found.values())
    for name, veth in veths.items():
        who = _who(veth)
        if who is None:
            continue
        leg = veths.get(who.host_end("g")) if who.handle else None
        service = services.get(veth.service or "")
        address = _address(veth, service.subnet.network_address) if service is not None else None
        joined = _address(leg, leg.gateway) if leg is not None else None
        if service is not None and who.file is not None:  # its MAC may be any, and its end out of sight
            address = next((each for each in senders.get(name, ()) if each in service.subnet), None)
            joined = next((each for each in senders.get(name, ()) if leg is not None and each != address), None)
        if not who.handle or service is None or address is None or address not in service.subnet:
            result.lost.append(f"{name}: its container has ended, or is on no bridge of a service")
            continue
        number = _network_number(found, address)
        if number:
            numbers[f"{ADOPTED}-{number}"] = number
            result.lost.append(
                f"the name of the isolation network of {who.handle}: it is {ADOPTED}-{number} until the attach is "
                "repeated"
            )
        attachment = replace(
            who,
            service=service.name,
            address=address,
            boot_id=boot_id,
            global_address=joined,
            mac=who.mac if who.mac != mac(address) else b"",
            isolation_network=f"{ADOPTED}-{number}" if number else "",
        )
        pool = GLOBAL if service.name == shared else service.name
        result.put(attachment, Lease(address=address, pool=pool, holder=who.handle))
        if joined is not None:
            result.put(Lease(address=joined, pool=GLOBAL, holder=who.handle))
    result.put(*(Isolation(name=name, number=number) for name, number in numbers.items()))


def _who(veth: Veth) -> Attachment | None:
    """Whose first link this is, as far as that tells; None for a second one."""
    unknown = Attachment(handle="", service="", address=veth.address.ip)
    if pid_of(veth.name) and isinstance(veth.netns, Netns):
        who = replace(unknown, handle=attachments.container(pid_of(veth.name)), netns=veth.netns)
        return who if who.host_end() == veth.name else None
    told = labels.parse_container(veth.label)
    if told is None:
        return unknown if veth.name.startswith(f"{PREFIX}c") else None
    where = veth.netns if isinstance(veth.netns, NetnsPath) else NOT_SEEN
    who = replace(
        unknown,
        handle=told.handle,
        file=where,
        interface=told.interface,
        network=told.network,
        mac=veth.mac,
        default_route=not veth.mac or any(not each.prefixlen for each in veth.routes),
        joined=any(each.prefixlen for each in veth.routes),
    )
    return who if who.host_end() == veth.name else None


def _address(veth: Veth, near: Address) -> Address | None:
    """What a container was given, whatever it has made of its interface: the MAC ends in the address's last four bytes
    (`layout.mac`), and the others are those of an address `near` it.  None when the container's end is not there.
    """
    return type(near)(near.packed[:-4] + veth.mac[2:]) if veth.mac else None


def _senders(things: Iterable[Object]) -> dict[str, list[Address]]:
    """What containers may send from, by the names of their host ends (`set_members.port`)."""
    found: dict[str, list[Address]] = {}
    for each in things:
        if isinstance(each, Element) and each.set in ("port4", "port6"):
            name, _mac, address = each.member.split(" . ")
            value = IPv4Address(address) if each.set == "port4" else IPv6Address(int(address, 0))
            found.setdefault(name.strip('"'), []).append(value)
    return found


def _network_number(found: Layout, address: Address) -> int:
    element = found.get(("element", "inet", f"network{address.version}", str(address)))
    return int(element.value.rpartition(":")[2], 16) if isinstance(element, Element) else 0


def _host_container(result: Adoption, address: Address) -> None:
    handle = attachments.host(f"{ADOPTED}-{address}")
    result.put(
        Attachment(handle=handle, service="", address=address), Lease(address=address, pool=GLOBAL, holder=handle)
    )
    result.lost.append(f"the id of the host_shared container with {address}: it is {ADOPTED}-{address} now")


def _peers(result: Adoption, peers: Iterable[DevicePeer], overlay: Overlay, services: Collection[Service]) -> None:
    scopes = {GLOBAL, *(service.name for service in services if service.device)}
    own = [service.subnet for service in services] + ([overlay.slice] if overlay.slice is not None else [])
    for peer in peers:
        if peer.scope not in scopes:
            continue
        allowed = tuple(sorted(peer.allowed_ips, key=lambda it: (it.version, it)))
        if peer.scope == GLOBAL and allowed and all(_is_host_of(each, own) for each in allowed):
            shown = ", ".join(map(str, allowed))
            result.lost.append(f"guest or edge peer {keys.text(peer.public_key)} with {shown}: attach or mint it again")
            continue
        result.put(
            Peer(
                scope=peer.scope,
                public_key=peer.public_key,
                endpoint=endpoint_text(peer.endpoint) if peer.endpoint is not None else "",
                keepalive=peer.keepalive,
                added=allowed,  # which the next add_peer does not take away
            )
        )


def _is_host_of(network: Network, own: Iterable[Network]) -> bool:
    return network.num_addresses == 1 and any(network.network_address in each for each in own)
