"""The networks that this host reaches without us.

Owns: reading them: addresses of links that are not ours, routes, default gateways.  Must not know: what overlaps, or
who asks.

Routes of a routing daemon (BGP and the like) are not read: there may be a million, and they are its affair.
"""

from ipaddress import ip_network

from overlayd.linux import rtnetlink as rt
from overlayd.linux.egress import VIRTUAL_PREFIXES
from overlayd.linux.netlink import Netlink
from overlayd.model.objects import GROUP_BRIDGE, GROUP_DEVICE, GROUP_DOOMED, GROUP_VETH, Network
from overlayd.model.overlaps import HostNetwork

_OURS = (GROUP_DEVICE, GROUP_BRIDGE, GROUP_VETH, GROUP_DOOMED)


def host_networks() -> tuple[HostNetwork, ...]:
    """Every network, route and default gateway of the calling thread's network namespace that is not ours.

    Reads links, addresses and the routes of people and of the kernel once.  Raises MechanismError when the kernel
    refuses.
    """
    with Netlink() as netlink:
        links = map(rt.parse_link, netlink.dump("list links", rt.RTM_GETLINK, rt.link_filter()))
        names = {link.ifindex: link.name for link in links if link.group not in _OURS}
        addresses = netlink.dump("list addresses", rt.RTM_GETADDR, rt.address_filter())
        routes = [
            body
            for protocol in rt.HOST_PROTOCOLS
            for body in netlink.dump("list routes", rt.RTM_GETROUTE, rt.route_filter(protocol))
        ]
    found: dict[HostNetwork, None] = {}
    for address in map(rt.parse_address, addresses):
        if address is not None and address.ifindex in names and address.scope == rt.RT_SCOPE_UNIVERSE:
            _add(found, address.interface.network, names[address.ifindex])
    for route in map(rt.parse_route, routes):
        if route is None or route.table != rt.RT_TABLE_MAIN:
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


def _add(found: dict[HostNetwork, None], network: Network, link: str) -> None:
    if not (network.is_loopback or network.is_link_local or network.is_multicast):
        found[HostNetwork(network, link, "connected", None, link.startswith(VIRTUAL_PREFIXES))] = None
