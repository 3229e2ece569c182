"""What of ours is in the kernel: bridges, veths, routes, fences, proxies, aliases and the link side of devices.

Owns: the reading of our marks (link group, alias, route protocol) back into the objects of the model.  Must not know:
what should be there, WireGuard keys and peers, nftables.

An object that is there but broken (a link that is down, does not forward or lacks a connected route, a veth whose
inner end is gone, unseen or half configured) comes out with a `fault` that says so, which no wanted object has: so it
differs, and is repaired or made again.
"""

import logging
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface
from typing import NamedTuple

import msgspec

from overlayd.linux import bridge as bridges
from overlayd.linux import bridge_options, link_faults, veth, veth_removal
from overlayd.linux import rtnetlink as rt
from overlayd.linux.link import find_link, is_wide, read_link
from overlayd.linux.netlink import Netlink
from overlayd.linux.view import (
    NO_NAMESPACE,
    Hop,
    View,
    look_inside,
    read_addresses,
    read_forwarding,
    read_host,
    read_links,
    read_routes,
    read_service,
)
from overlayd.model import labels
from overlayd.model.objects import (
    GLOBAL,
    GROUP_BRIDGE,
    GROUP_DEVICE,
    GROUP_DOOMED,
    GROUP_VETH,
    Alias,
    Bridge,
    Fence,
    Interface,
    Netns,
    NetnsPath,
    Proxy,
    Route,
    Veth,
    label_of_alias,
    label_of_veth,
    scope_of_alias,
)
from overlayd.model.subnets import first_usable

_log = logging.getLogger(__name__)

# Our own: stand for what a broken object does not have.
_NO_ADDRESS = IPv4Interface("0.0.0.0/0")
_NO_GATEWAY = IPv4Address("0.0.0.0")


@dataclass(frozen=True, slots=True)
class DeviceLink:
    """The network side of a WireGuard device: what its link shows; the rest of a `Device` is known by its backend.

    addresses: without aliases.  mtu: bytes.
    """

    scope: str
    name: str
    mtu: int
    addresses: frozenset[Interface]
    fault: str = ""
    label: str = ""

    @property
    def key(self) -> Hashable:
        """That of the `Device`."""
        return ("device", self.scope)


class MarkedLink(NamedTuple):
    """A link with our mark.  device: the scope whose WireGuard device it is, None for a bridge or a veth."""

    name: str
    device: str | None


class NamedBridge(msgspec.Struct, frozen=True):
    """A bridge found by its name alone.  names: its name and its alternative names.  service: whose bridge it is by our
    mark, None without one.  ports: names of the veths enslaved to it.  namespaces: the ids of the other namespaces in
    which their other ends are (see `netns.inhabited`).  carrier: a port of another kind has one: the tap of a machine
    that runs, a network card.
    """

    names: tuple[str, ...]
    service: str | None
    ports: tuple[str, ...]
    namespaces: frozenset[int]
    carrier: bool


Observed = Bridge | Veth | Route | Fence | Proxy | Alias | DeviceLink


def observe(veths: Iterable[Veth], others: Mapping[str, Netns | NetnsPath] | None = None) -> dict[Hashable, Observed]:
    """Everything with our mark in the namespace of the calling thread, by key.

    veths: those that should be there; one whose inner end is not in its namespace, or was never configured, is
    broken.  What the container has made of an inner end since then is its own affair, but for routes of ours that lead
    elsewhere than they should.  others: in which namespaces the inner ends of other veths are looked for, by the names
    of their host ends.  Reads each kind of thing once, and once more inside each namespace.  Raises
    MechanismError when the kernel refuses.
    """
    with Netlink() as netlink:
        host = read_host(netlink)
    found = _without_veths(host)
    wanted = {each.name: each for each in veths}
    by_namespace: defaultdict[Netns | NetnsPath, list[rt.Link]] = defaultdict(list)
    for link in host.links.values():
        if link.kind == "veth" and link.group in (GROUP_VETH, GROUP_DOOMED):
            expected = wanted[link.name].netns if link.name in wanted else (others or {}).get(link.name, NO_NAMESPACE)
            by_namespace[expected].append(link)
    for namespace, links in by_namespace.items():
        inside = look_inside(namespace)
        for link in links:
            want = wanted.get(link.name)
            if want is not None and inside is None and isinstance(namespace, NetnsPath):
                found.append(_outer_end(link, want, host))  # as it lives, but is out of sight, it is believed
                continue
            seen = _veth(link, namespace, host, inside)
            found.append(seen if want is None or inside is None else _as_left(seen, want, link, host, inside))
    return {thing.key: thing for thing in found}


def observe_host(veths: Iterable[Veth]) -> dict[Hashable, Observed]:
    """As `observe`, without a look into the namespaces: of `veths`, which should be there, the inner ends are believed
    to be as wanted.  What a container does to its own end is its own affair.
    """
    with Netlink() as netlink:
        return _from_outside(read_host(netlink), veths)


def observe_service(bridge: str, veths: Collection[Veth]) -> dict[Hashable, Observed] | None:
    """As `observe_host`, of what is on the bridge of that name or alternative name, and of these host ends; None when
    there is no such link.
    """
    with Netlink() as netlink:
        link = find_link(netlink, bridge)
        if link is None:
            return None
        return _from_outside(read_service(netlink, link, {each.name for each in veths}), veths)


def _from_outside(host: View, veths: Iterable[Veth]) -> dict[Hashable, Observed]:
    found = _without_veths(host)
    wanted = {each.name: each for each in veths}
    for link in host.links.values():
        if link.kind == "veth":
            if link.name in wanted:
                found.append(_outer_end(link, wanted[link.name], host))
            elif link.group in (GROUP_VETH, GROUP_DOOMED):
                found.append(_veth(link, NO_NAMESPACE, host, None))
    return {thing.key: thing for thing in found}


def all_links() -> list[rt.Link]:
    """Every link of the namespace, whoever made it."""
    with Netlink() as netlink:
        return list(read_links(netlink).values())


def marked_links() -> list[MarkedLink]:
    """The links with our mark; nothing else of them is looked at."""
    with Netlink() as netlink:
        links = read_links(netlink).values()
    found = []
    for link in links:
        device = _scope(link, "device") if link.group == GROUP_DEVICE else None
        bridge = _scope(link, "bridge") if link.group == GROUP_BRIDGE else None
        if device is not None or bridge is not None or veth_removal.is_marked(link):
            found.append(MarkedLink(link.name, device))
    return found


def observe_bridge(name: str) -> Bridge | None:
    """The bridge of that name or alternative name, None when there is none of ours; costs nothing for other links, for
    its connected routes are believed to be there.
    """
    with Netlink() as netlink:
        link = find_link(netlink, name)
        service = None if link is None else _scope(link, "bridge")
        if link is None or service is None or link.group != GROUP_BRIDGE:
            return None
        addresses, _ = read_addresses(netlink, link.ifindex)
        return _bridge(link, service, addresses[link.ifindex], None)


def observe_veth(name: str, namespace: Netns | NetnsPath) -> Veth | None:
    """The veth with that host end, its inner end looked for in `namespace`; None when there is no host end of ours."""
    with Netlink() as netlink:
        link = find_link(netlink, name)
        if link is None or not veth_removal.is_ours(link):
            return None
        links = {link.ifindex: link}
        routes: set[Hop] = set()
        forwarding_entries: frozenset[tuple[int, bytes]] = frozenset()
        if link.master:
            links[link.master] = read_link(netlink, link.master)
            forwarding_entries = read_forwarding(netlink)
        else:
            routes, _ = read_routes(netlink)
        addresses, near = read_addresses(netlink, link.master or link.ifindex)
    host = View(links, addresses, routes, near=near, forwarding=forwarding_entries)
    return _veth(link, namespace, host, look_inside(namespace))


def bridges_named(prefix: str, suffix: str) -> list[NamedBridge]:
    """All bridges one of whose names starts with `prefix` and ends with `suffix`, ours or not."""
    with Netlink() as netlink:
        links = read_links(netlink)
    ports: defaultdict[int, list[rt.Link]] = defaultdict(list)
    with_carrier = set()
    for link in links.values():
        if link.kind == "veth":
            ports[link.master].append(link)
        elif link.flags & rt.IFF_LOWER_UP:
            with_carrier.add(link.master)
    return [
        NamedBridge(
            names,
            _scope(link, "bridge") if link.group == GROUP_BRIDGE else None,
            tuple(sorted(port.name for port in ports[link.ifindex])),
            frozenset(port.peer_namespace for port in ports[link.ifindex]) - {rt.NO_NAMESPACE_ID},
            link.ifindex in with_carrier,
        )
        for link in links.values()
        if link.kind == "bridge"
        for names in [(link.name, *link.alternative_names)]
        if any(name.startswith(prefix) and name.endswith(suffix) for name in names)
    ]


def _without_veths(host: View) -> list[Observed]:
    found: list[Observed] = []
    for link in host.links.values():
        addresses = host.addresses[link.ifindex]
        if link.group == GROUP_BRIDGE and (service := _scope(link, "bridge")) is not None:
            found.append(_bridge(link, service, addresses, host))
        elif link.group == GROUP_DEVICE and (scope := _scope(link, "device")) is not None:
            found += _device(link, scope, addresses, host)
    found += _routes(host)
    found += _proxies(host)
    found += map(Fence, host.fences)
    return found


def _scope(link: rt.Link, kind: str) -> str | None:
    """The scope in the alias of a bridge or device of ours, None when it has no such alias."""
    return scope_of_alias(link.alias, kind)


def _bridge(link: rt.Link, service: str, addresses: list[Interface], host: View | None) -> Bridge:
    """host: where its connected routes are looked for, None to believe that they are there."""
    faults = []
    if link.kind != "bridge":
        faults.append(f"it is a link of kind {link.kind or 'unknown'}")
    faults += link_faults.down(link)
    if len(addresses) == 1:
        address = addresses[0]
        faults += link_faults.other_mac(link, bridges.mac(address.ip))
        carried = [address] if address.version == 4 else [address, bridges.LINK_LOCAL]
        faults += [*link_faults.lost_routes(link, carried, host), *link_faults.lost_mac(link, host)]
    else:
        address = _NO_ADDRESS
    faults += [
        *link_faults.taken(link),
        *link_faults.parameter(link),
        *link_faults.takes_advertisements(link),
        *bridge_options.bridge_faults(link),
    ]
    return Bridge(service, link.name, address, link.mtu, ", ".join(faults))


def _device(link: rt.Link, scope: str, addresses: list[Interface], host: View) -> Iterable[DeviceLink | Alias]:
    """A device, and the aliases on it: the host addresses on the global one, whose own has the cluster's prefix, or is
    the first one of the slice that the link names, or the source of a route through it.
    """
    own = {source for (index, _), source in host.sources.items() if index == link.ifindex}
    if (known := labels.parse(label_of_alias(link.alias))) is not None and known.slice is not None:
        own.add(first_usable(known.slice))
    aliases = {each for each in addresses if scope == GLOBAL and not is_wide(each) and each.ip not in own}
    faults = [*link_faults.down(link), *link_faults.taken(link), *link_faults.lost_routes(link, addresses, host)]
    faults += [*link_faults.parameter(link), *link_faults.takes_advertisements(link), *link_faults.no_queue(link)]
    label = label_of_alias(link.alias)
    yield DeviceLink(scope, link.name, link.mtu, frozenset(addresses) - aliases, ", ".join(faults), label)
    yield from (Alias(link.name, address.ip) for address in aliases)


def _routes(host: View) -> Iterable[Route]:
    for index, destination, _gateway in host.routes:
        link = host.links.get(index)
        scope = None if link is None or link.group != GROUP_DEVICE else _scope(link, "device")
        if link is not None and scope is not None:
            source = host.sources.get((index, destination)) if host.sources else None
            yield Route(scope, link.name, destination, source)


def _proxies(host: View) -> Iterable[Proxy]:
    for index, address in host.proxies:
        link = host.links.get(index)
        service = None if link is None or link.group != GROUP_BRIDGE else _scope(link, "bridge")
        if link is not None and service is not None:
            yield Proxy(service, link.name, address)


def _outer_end(link: rt.Link, want: Veth, host: View) -> Veth:
    bridge = host.links.get(link.master)
    service = None if bridge is None else _scope(bridge, "bridge")
    faults = [
        *link_faults.down(link),
        *link_faults.other_group(link),
        *link_faults.other_mac(link, veth.host_mac(want.mac)),
    ]
    faults += link_faults.takes_advertisements(link)
    if bridge is not None:
        faults += [
            *link_faults.port(link, want.mac, bridge, host),
            *link_faults.misled(bridge, want.address, want.mac, host),
        ]
    elif want.service is None:
        faults += [
            *link_faults.lost_host_route(link, want.address, host),
            *link_faults.lost_address(link, want.gateway, host),
        ]
        faults += link_faults.misled(link, want.address, want.mac, host)
        faults += link_faults.parameter(link)
    return replace(
        want,
        service=service,
        bridge=None if bridge is None else bridge.name,
        mtu=link.mtu,
        fault=", ".join(faults),
        label=label_of_veth(link.alias),
    )


def _as_left(seen: Veth, want: Veth, link: rt.Link, host: View, inside: View) -> Veth:
    """A veth whose container may have made of its end what it likes."""
    inner = inside.links.get(link.peer)
    if not seen.mac or inner is None or veth.is_blank(inner, inside.addresses[inner.ifindex]):
        return seen
    outer = _outer_end(link, want, host)
    if seen.routes <= want.routes and (not seen.routes or seen.gateway == want.gateway):
        return outer
    return replace(outer, routes=seen.routes, gateway=seen.gateway)


def _veth(link: rt.Link, namespace: Netns | NetnsPath, host: View, inside: View | None) -> Veth:
    bridge = host.links.get(link.master)
    name = None if bridge is None else bridge.name
    service = None if bridge is None else _scope(bridge, "bridge")
    inner = None if inside is None else inside.links.get(link.peer)
    if inside is None or inner is None or inner.peer != link.ifindex:
        fault = "its other end is not in the container" if inside is not None else "its other end cannot be seen"
        return _half_veth(link, namespace, service, name, fault)
    addresses = inside.addresses[inner.ifindex]
    address = addresses[0] if len(addresses) == 1 else _NO_ADDRESS
    routes = [(destination, via) for index, destination, via in inside.routes if index == inner.ifindex]
    gateways = {via for _destination, via in routes if via is not None}
    faults = [
        *link_faults.down(link),
        *link_faults.down(inner, inner.name),
        *link_faults.down(inside.links[rt.LOOPBACK], "the container's lo"),
        *link_faults.other_group(link),
        *link_faults.other_mac(link, veth.host_mac(inner.mac)),
        *link_faults.takes_advertisements(link),
    ]
    if bridge is None:
        faults += link_faults.parameter(link)
        gateways |= {destination.network_address for destination, via in routes if via is None}
        faults += [clause for gateway in gateways for clause in link_faults.lost_address(link, gateway, host)]
        if address != _NO_ADDRESS:
            faults += link_faults.lost_host_route(link, address, host)
    else:
        gateways = gateways or {address.ip for address in host.addresses[bridge.ifindex]}
        faults += link_faults.port(link, inner.mac, bridge, host)
    if len(gateways) != 1:
        faults.append(f"{inner.name} has {len(gateways)} gateways")
    if link.mtu != inner.mtu:
        faults.append(f"its ends have MTU {link.mtu} and {inner.mtu}")
    return Veth(
        name=link.name,
        netns=namespace,
        interface=inner.name,
        service=service,
        bridge=name,
        address=address,
        gateway=min(gateways, default=_NO_GATEWAY),
        routes=frozenset(destination for destination, via in routes if via is not None),
        mac=inner.mac,
        mtu=inner.mtu,
        fault=", ".join(faults),
        label=label_of_veth(link.alias),
    )


def _half_veth(
    link: rt.Link, namespace: Netns | NetnsPath, service: str | None, bridge: str | None, fault: str
) -> Veth:
    """A veth of which the host end alone is seen."""
    return Veth(
        name=link.name,
        netns=namespace,
        interface="",
        service=service,
        bridge=bridge,
        address=_NO_ADDRESS,
        gateway=_NO_GATEWAY,
        routes=frozenset(),
        mac=b"",
        mtu=link.mtu,
        fault=fault,
        label=label_of_veth(link.alias),
    )
