"""The physical way out of this host, the MTU that it leaves for the overlay, and what leaves the host at all.

Owns: which default route counts, the cost of WireGuard's headers, and the look-up of one destination.  Must not know:
what is set to that MTU, or why a destination is looked up.  Source: rtnetlink(7), RTM_GETROUTE.
"""

import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import Literal

from overlayd.errors import MechanismError
from overlayd.linux import rtnetlink as rt
from overlayd.linux import sysctl
from overlayd.linux.link import link_index
from overlayd.linux.netlink import Netlink, Request
from overlayd.linux.route_messages import KernelRoute, lookup_body, parse_route, prefix_length, route_filter
from overlayd.model.objects import GROUP_BRIDGE, GROUP_DEVICE, GROUP_DOOMED, GROUP_VETH, Address, Network
from overlayd.model.parameters import OVERHEAD, Uplink

# What virtual interfaces are called; an orchestrator agrees on this list.  It is about what a name makes likely: a link
# of such a name is the uplink all the same if it carries the only default route and can be one (`can_be_uplink`).
VIRTUAL_PREFIXES = (
    "lo",
    "wt",
    "wg",
    "zl-",
    "utun",
    "tun",
    "tap",
    "docker",
    "br-",
    "veth",
    "nb",
    "tailscale",
    "cni",
    "virbr",
    "flannel",
    "cali",
    "podman",
)

_LEAST_MTU = 1280  # RFC 8200 section 5: IPv6 needs it
_DEFAULT_MTU = 1420  # Ethernet's 1500 with an IPv6 underlay

# Of those, a bridge of the host (br-lan, br-ex) and what is hardware or made of it, whatever it is called, may be the
# uplink; tunnels and the bridges of container engines never are.
_HARDWARE_KINDS = ("", "bond", "team", "vlan")
_OUR_GROUPS = (GROUP_DEVICE, GROUP_BRIDGE, GROUP_VETH, GROUP_DOOMED)


OUTSIDE = IPv4Address("192.0.2.1")  # nobody's (RFC 5737): the way to it is looked up, nothing is sent there


@dataclass(frozen=True, slots=True)
class Egress:
    """A default route out: its interface, its MTU in bytes, the source address of what leaves through it.

    ipv6: whether the interface has a global IPv6 address, so that an IPv6 underlay is possible.  alone: no other
    interface that can be an uplink has a default route.
    """

    interface: str
    mtu: int
    address: Address
    ipv6: bool
    alone: bool = True


def is_virtual(link: rt.Link) -> bool:
    """Whether the link is ours, or called as virtual ones are."""
    return link.group in _OUR_GROUPS or link.name.startswith(VIRTUAL_PREFIXES)


def can_be_uplink(link: rt.Link) -> bool:
    """Whether the link is the uplink if no other carries a default route."""
    if link.group in _OUR_GROUPS or link.ifindex == rt.LOOPBACK:
        return False
    return link.kind in _HARDWARE_KINDS or link.name.startswith("br-") or not is_virtual(link)


def possible_uplinks() -> list[str]:
    """The names of the links that may be the uplink."""
    with Netlink() as netlink:
        links = [rt.parse_link(body) for body in netlink.dump("list links", rt.RTM_GETLINK, rt.link_filter())]
    return [link.name for link in links if can_be_uplink(link)]


def physical_egress() -> Egress | None:
    """The default route of lowest metric whose interface is not virtual, IPv4 before IPv6; if all are, that of an
    interface that can be an uplink all the same; None when there is none.

    A route counts only if its interface is up and has an address of its family.  Raises MechanismError when the kernel
    refuses.
    """
    with Netlink() as netlink:
        links = {
            link.ifindex: link
            for link in map(rt.parse_link, netlink.dump("list links", rt.RTM_GETLINK, rt.link_filter()))
        }
        bodies = netlink.dump("list routes", rt.RTM_GETROUTE, route_filter())
        parsed = map(rt.parse_address, netlink.dump("list addresses", rt.RTM_GETADDR, rt.address_filter()))
        addresses = [address for address in parsed if address is not None and address.scope == rt.RT_SCOPE_UNIVERSE]
    defaults = [
        route
        for route in (parse_route(body) for body in bodies if not prefix_length(body))
        if route is not None and route.table == rt.RT_TABLE_MAIN
    ]
    defaults.sort(key=lambda route: (route.destination.version, route.metric))
    ways = [
        (link, way)
        for route in defaults
        for index, flags in route.hops
        if not flags & rt.RTNH_F_DEAD and (link := links.get(index)) is not None and can_be_uplink(link)
        if (way := _way(route, link, [each.interface.ip for each in addresses if each.ifindex == index])) is not None
    ]
    physical = (way for link, way in ways if not is_virtual(link))
    way = next(physical, ways[0][1] if ways else None)
    return replace(way, alone=len({each.interface for _, each in ways}) == 1) if way is not None else None


def _way(route: KernelRoute, link: rt.Link, own: Sequence[Address]) -> Egress | None:
    """The way out by a default route through a link with these addresses; None when none is of its family."""
    source = route.source or next((each for each in own if each.version == route.destination.version), None)
    if source is None:
        return None
    return Egress(link.name, route.mtu or link.mtu, source, any(each.version == 6 for each in own))


def uplink(way: Egress) -> Uplink:
    """The parameters of the interface of a way out.  MechanismError when it has just gone."""
    name, has_ipv6 = way.interface, sysctl.has_ipv6()
    filters = [sysctl.read(f"ipv4/conf/{each}/rp_filter") for each in ("all", name)]
    return Uplink(
        name=name,
        forwards=sysctl.read(f"ipv4/conf/{name}/forwarding") == "1",
        strict=max(filters) == "1",  # the kernel takes the greater one
        alone=way.alone,
        ipv6=has_ipv6 and sysctl.read(f"ipv6/conf/{name}/disable_ipv6") == "0",
        has_ipv6=has_ipv6,
        unused=_unused(name) if has_ipv6 else (),
    )


def _unused(name: str) -> tuple[tuple[str, Literal["deprecated", "duplicate"]], ...]:
    """The global IPv6 addresses of a link, and why the kernel does without them; none while it uses one."""
    index = link_index(name)
    with Netlink() as netlink:
        bodies = netlink.dump("list addresses", rt.RTM_GETADDR, rt.address_filter(index, socket.AF_INET6))
        parsed = [*map(rt.parse_address, bodies)]
    own = [each for each in parsed if each is not None and each.ifindex == index and each.scope == rt.RT_SCOPE_UNIVERSE]
    if not all(each.flags & (rt.IFA_F_DADFAILED | rt.IFA_F_DEPRECATED) for each in own):
        return ()
    return tuple(
        (str(each.interface), "duplicate" if each.flags & rt.IFA_F_DADFAILED else "deprecated") for each in own
    )


def physical_addresses() -> list[Address]:
    """The global addresses of the interfaces that are up and not virtual, and of the way out, IPv6 before IPv4 as
    RFC 6724 has it, the lowest interface first.  Raises MechanismError when the kernel refuses.
    """
    way = physical_egress()
    with Netlink() as netlink:
        links = [rt.parse_link(body) for body in netlink.dump("list links", rt.RTM_GETLINK, rt.link_filter())]
        parsed = map(rt.parse_address, netlink.dump("list addresses", rt.RTM_GETADDR, rt.address_filter()))
        addresses = [address for address in parsed if address is not None and address.scope == rt.RT_SCOPE_UNIVERSE]
    physical = {
        link.ifindex
        for link in links
        if link.flags & rt.IFF_UP and (not is_virtual(link) or (way is not None and link.name == way.interface))
    }
    found = [address for address in addresses if address.ifindex in physical]
    found.sort(key=lambda address: (-address.interface.version, address.ifindex))
    return list(dict.fromkeys(address.interface.ip for address in found))


def addressed_links() -> frozenset[str]:
    """The names of the links with a global address."""
    with Netlink() as netlink:
        links = {
            link.ifindex: link.name
            for link in map(rt.parse_link, netlink.dump("list links", rt.RTM_GETLINK, rt.link_filter()))
        }
        parsed = map(rt.parse_address, netlink.dump("list addresses", rt.RTM_GETADDR, rt.address_filter()))
        found = [each.ifindex for each in parsed if each is not None and each.scope == rt.RT_SCOPE_UNIVERSE]
    return frozenset(links[each] for each in found if each in links)


def router() -> IPv4Address | None:
    """Whom this host sends to what is for the outside, over IPv4; None when there is nobody."""
    with Netlink() as netlink:
        route = look_up(netlink, OUTSIDE)
    gateway = route.gateway if route is not None else None
    return gateway if isinstance(gateway, IPv4Address) else None


def leads_out(outside: Address) -> bool:
    """Whether a route leads to an address that is nobody's."""
    with Netlink() as netlink:
        return next_link(netlink, outside) is not None


def overlay_mtu(egress: Egress | None) -> int:
    """MTU of the device, the bridges and both ends of every veth, in bytes, at least 1280.

    That of the egress minus 80; minus 60 where its interface has no global IPv6 address, since then no peer can be
    reached over IPv6. Without an egress 1420.
    """
    if egress is None:
        return _DEFAULT_MTU
    return max(egress.mtu - OVERHEAD[6 if egress.ipv6 else 4], _LEAST_MTU)


def source_towards(netlink: Netlink, address: Address) -> Address | None:
    """The address of this host that packets to `address` carry, None when they do not leave it.  Takes some 20 us and
    waits for nobody.
    """
    route = look_up(netlink, address)
    return route.source if route is not None else None


def next_link(netlink: Netlink, address: Address) -> int | None:
    """The index of the link by which packets to `address` go to another host; None when it is one of our own, a
    broadcast or multicast address, or there is no route.  Costs as little.
    """
    route = look_up(netlink, address)
    return route.hops[0][0] if route is not None and route.hops else None


def attachment(netlink: Netlink, own: Address) -> tuple[int, list[Network]] | None:
    """The index of the link that has an address of this host, and the networks that the link is on; None when no link
    has it.
    """
    parsed = map(rt.parse_address, netlink.dump("list addresses", rt.RTM_GETADDR, rt.address_filter()))
    addresses = [address for address in parsed if address is not None]
    index = next((each.ifindex for each in addresses if each.interface.ip == own), None)
    if index is None:
        return None
    networks = [
        each.interface.network for each in addresses if each.ifindex == index and each.scope == rt.RT_SCOPE_UNIVERSE
    ]
    return index, list(dict.fromkeys(networks))


def look_up(netlink: Netlink, address: Address, flags: int = 0) -> KernelRoute | None:
    """The route by which packets to `address` leave this host.  flags: as of `lookup_body`."""
    body = lookup_body(address, flags)
    try:
        replies = netlink.transact([Request("look up route", str(address), rt.RTM_GETROUTE, 0, body)])
    except MechanismError:
        return None  # unreachable, prohibited: the errno says how, which nobody asks
    routes = map(parse_route, replies)
    return next((route for route in routes if route is not None and route.type == rt.RTN_UNICAST), None)
