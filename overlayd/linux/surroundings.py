"""The networks that this host reaches without us.

Owns: reading them: addresses of links that are not ours, routes, default gateways.  Must not know: what overlaps, or
who asks.

Routes of a routing daemon (BGP and the like) are not read: there may be a million, and they are its affair.
"""

import sys
from collections.abc import Collection, Iterable
from errno import ENODEV
from functools import partial
from ipaddress import IPv4Interface, IPv6Interface, ip_network

from overlayd.linux import rtnetlink as rt
from overlayd.linux.egress import VIRTUAL_PREFIXES
from overlayd.linux.netlink import Netlink, Request
from overlayd.linux.route_messages import parse_route, route_filter
from overlayd.model.objects import GROUP_BRIDGE, GROUP_DEVICE, GROUP_DOOMED, GROUP_VETH, Address, Network
from overlayd.model.overlaps import HostNetwork
from overlayd.proto.netlink import attributes, number, u32

_OURS = (GROUP_DEVICE, GROUP_BRIDGE, GROUP_VETH, GROUP_DOOMED)


def host_networks(ours: set[int] | None = None, here: dict[Address, str] | None = None) -> tuple[HostNetwork, ...]:
    """Every network, route and default gateway of the calling thread's network namespace that is not ours.

    Reads addresses and the routes of people and of the kernel once, and of the links only those that have some.  Raises
    MechanismError when the kernel refuses.

    ours: the indexes of links that the last call found to be ours, which this one has to look at no more, and those of
    this one afterwards.  The kernel does not give an index to another link.

    here: filled with this host's addresses, and with the broadcast addresses of its networks and what these are.
    """
    ours = set() if ours is None else ours
    with Netlink() as netlink:
        bodies = [*netlink.dump("list addresses", rt.RTM_GETADDR, rt.address_filter())]
        seen = {_link_of_address(body) for body in bodies}
        ours &= seen  # of the others some are gone
        addresses = [
            each
            for body in bodies
            if _link_of_address(body) not in ours
            and (each := rt.parse_address(body)) is not None
            and each.scope == rt.RT_SCOPE_UNIVERSE
        ]
        routes = [
            route
            for protocol in rt.HOST_PROTOCOLS
            for body in netlink.dump("list routes", rt.RTM_GETROUTE, route_filter(protocol, rt.RTN_UNSPEC))
            if _link_of_route(body) not in ours
            and (route := parse_route(body)) is not None
            and route.table == rt.RT_TABLE_MAIN
        ]
        ways = {index for route in routes for index, _flags in route.hops[:1]}
        names = _names(netlink, {address.ifindex for address in addresses} | ways, ours)
    found: dict[HostNetwork, None] = {}
    for address in addresses:
        if address.ifindex in names:
            _add(found, address.interface.network, names[address.ifindex])
    if here is not None:
        here |= _here([address.interface for address in addresses])
    for route in routes:
        if route.type in rt.REFUSING:
            if route.destination.prefixlen:
                found[HostNetwork(route.destination, "", "route")] = None
            continue
        for index, _flags in route.hops[:1]:
            name = names.get(index)
            if name is None:
                continue
            if route.destination.prefixlen == 0:
                if route.gateway is not None and not route.gateway.is_link_local:
                    found[HostNetwork(ip_network(route.gateway), name, "gateway")] = None
            elif route.gateway is None:
                _add(found, route.destination, name)
            else:
                found[HostNetwork(route.destination, name, "route", route.gateway)] = None
    return tuple(found)


def _here(interfaces: Collection[IPv4Interface | IPv6Interface]) -> dict[Address, str]:
    found: dict[Address, str] = {}
    for each in interfaces:
        if each.version == 4 and each.network.prefixlen < 31:  # RFC 3021
            found.setdefault(each.network.broadcast_address, str(each.network))
    return found | {each.ip: "" for each in interfaces}


def _link_of_address(body: memoryview) -> int:
    """Cheaper than all of `parse_address`."""
    return int.from_bytes(body[4:8], sys.byteorder)  # in ifaddrmsg


def _link_of_route(body: memoryview) -> int:
    """0 for a route through several or none; cheaper than all of `parse_route`."""
    return number(dict(attributes(body[12:])).get(rt.RTA_OIF))  # behind rtmsg


def _names(netlink: Netlink, indices: Iterable[int], ours: set[int]) -> dict[int, str]:
    """The links with these indices that are not ours; the others are added to `ours`."""
    body = partial(rt.link_body, u32(rt.IFLA_EXT_MASK, rt.RTEXT_FILTER_SKIP_STATS))
    asked = [Request("look up link", str(each), rt.RTM_GETLINK, 0, body(index=each), (ENODEV,)) for each in indices]
    links = [*map(rt.parse_link, netlink.transact(asked))]
    ours.update(link.ifindex for link in links if link.group in _OURS)
    return {link.ifindex: link.name for link in links if link.group not in _OURS}


def _add(found: dict[HostNetwork, None], network: Network, link: str) -> None:
    if not (network.is_loopback or network.is_link_local or network.is_multicast):
        found[HostNetwork(network, link, "connected", None, link.startswith(VIRTUAL_PREFIXES))] = None
