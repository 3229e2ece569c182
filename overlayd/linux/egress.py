"""The physical way out of this host, the MTU that it leaves for the overlay, and what leaves the host at all.

Owns: which default route counts, the cost of WireGuard's headers, and the look-up of one destination.  Must not know:
what is set to that MTU, or why a destination is looked up.  Source: rtnetlink(7), RTM_GETROUTE.
"""

from dataclasses import dataclass

from overlayd.errors import MechanismError
from overlayd.linux import rtnetlink as rt
from overlayd.linux.netlink import Netlink, Request
from overlayd.model.objects import Address

# What virtual interfaces are called; an orchestrator agrees on this list.
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

# WireGuard adds 32 bytes, UDP 8, and IPv4 20 or IPv6 40.
_OVERHEAD_IPV4 = 60
_OVERHEAD_IPV6 = 80
_LEAST_MTU = 1280  # RFC 8200 section 5: IPv6 needs it
_DEFAULT_MTU = 1420  # Ethernet's 1500 with an IPv6 underlay


@dataclass(frozen=True, slots=True)
class Egress:
    """A default route out: its interface, its MTU in bytes, the source address of what leaves through it.

    ipv6: whether the interface has a global IPv6 address, so that an IPv6 underlay is possible.
    """

    interface: str
    mtu: int
    address: Address
    ipv6: bool


def physical_egress() -> Egress | None:
    """The default route of lowest metric whose interface is not virtual, IPv4 before IPv6; None when there is none.

    A route counts only if its interface is up and has an address of its family.  Raises MechanismError when the kernel
    refuses.
    """
    with Netlink() as netlink:
        links = {
            link.ifindex: link
            for link in map(rt.parse_link, netlink.dump("list links", rt.RTM_GETLINK, rt.link_filter()))
        }
        bodies = netlink.dump("list routes", rt.RTM_GETROUTE, rt.route_filter())
        parsed = map(rt.parse_address, netlink.dump("list addresses", rt.RTM_GETADDR, rt.address_filter()))
        addresses = [address for address in parsed if address is not None and address.scope == rt.RT_SCOPE_UNIVERSE]
    defaults = [
        route
        for route in map(rt.parse_route, filter(rt.is_default, bodies))
        if route is not None and route.table == rt.RT_TABLE_MAIN
    ]
    for route in sorted(defaults, key=lambda route: (route.destination.version, route.metric)):
        version = route.destination.version
        for index, flags in route.hops:
            link = links.get(index)
            if link is None or flags & rt.RTNH_F_DEAD or link.name.startswith(VIRTUAL_PREFIXES):
                continue
            own = [address.interface.ip for address in addresses if address.ifindex == index]
            source = route.source or next((address for address in own if address.version == version), None)
            if source is not None:
                return Egress(link.name, route.mtu or link.mtu, source, any(address.version == 6 for address in own))
    return None


def physical_addresses() -> list[Address]:
    """The global addresses of the interfaces that are up and not virtual, IPv6 before IPv4 as RFC 6724 has it, the
    lowest interface first.  Raises MechanismError when the kernel refuses.
    """
    with Netlink() as netlink:
        links = [rt.parse_link(body) for body in netlink.dump("list links", rt.RTM_GETLINK, rt.link_filter())]
        parsed = map(rt.parse_address, netlink.dump("list addresses", rt.RTM_GETADDR, rt.address_filter()))
        addresses = [address for address in parsed if address is not None and address.scope == rt.RT_SCOPE_UNIVERSE]
    physical = {link.ifindex for link in links if link.flags & rt.IFF_UP and not link.name.startswith(VIRTUAL_PREFIXES)}
    found = [address for address in addresses if address.ifindex in physical]
    found.sort(key=lambda address: (-address.interface.version, address.ifindex))
    return list(dict.fromkeys(address.interface.ip for address in found))


def overlay_mtu(egress: Egress | None) -> int:
    """MTU of the device, the bridges and both ends of every veth, in bytes, at least 1280.

    That of the egress minus 80; minus 60 where its interface has no global IPv6 address, since then no peer can be
    reached over IPv6. Without an egress 1420.
    """
    if egress is None:
        return _DEFAULT_MTU
    return max(egress.mtu - (_OVERHEAD_IPV6 if egress.ipv6 else _OVERHEAD_IPV4), _LEAST_MTU)


def leaves_host(netlink: Netlink, address: Address) -> bool:
    """Whether packets to `address` go to another host: it is none of our own, no broadcast or multicast address, and
    there is a route.  Takes some 20 us and waits for nobody.
    """
    return _look_up(netlink, address) is not None


def source_towards(netlink: Netlink, address: Address) -> Address | None:
    """The address of this host that packets to `address` carry, None when they do not leave it.  Costs as little."""
    route = _look_up(netlink, address)
    return route.source if route is not None else None


def _look_up(netlink: Netlink, address: Address) -> rt.KernelRoute | None:
    """The route by which packets to `address` leave this host."""
    body = rt.lookup_body(address)
    try:
        replies = netlink.transact([Request("look up route", str(address), rt.RTM_GETROUTE, 0, body)])
    except MechanismError:
        return None  # unreachable, prohibited: the errno says how, which nobody asks
    routes = map(rt.parse_route, replies)
    return next((route for route in routes if route is not None and route.type == rt.RTN_UNICAST), None)
