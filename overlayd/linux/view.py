"""What one network namespace shows of links, and of what is on them.

Owns: how each kind of thing is read, once, and all of it together.  Must not know: which of it is ours but by the
protocol of routes, or what it means (`observe`).
"""

import logging
import os
import socket
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from overlayd.errors import MechanismError
from overlayd.linux import neighbours, netns
from overlayd.linux import rtnetlink as rt
from overlayd.linux.link import find_link, read_link
from overlayd.linux.netlink import Netlink
from overlayd.linux.plain_route import parse_route
from overlayd.linux.route_messages import route_filter
from overlayd.model.objects import FENCE_METRIC, ROUTE_PROTOCOL, Address, Interface, Netns, NetnsPath, Network

_log = logging.getLogger(__name__)

NO_NAMESPACE = Netns(0, 0, 0)  # our own: of which nothing is known


Addresses = defaultdict[int, list[Interface]]  # by link index, IPv6 link-local ones left out
Hop = tuple[int, Network, Address | None]  # of a route: link index, destination, gateway
_Sources = dict[tuple[int, Network], Address]  # by link index and destination


@dataclass(frozen=True, slots=True)
class View:
    """What one namespace shows: links by index, addresses, and the routes and neighbour proxies of our protocol.

    sources: of routes that name one.  near: addresses of link scope.  connected: the routes that the kernel made of
    addresses, by link index and network.  fences: where our unreachable routes are.  forwarding: static entries of the
    bridges' forwarding databases, by port and MAC, and their own MACs, by bridge.  neighbours: the MACs that somebody
    told, by link index and address.
    """

    links: dict[int, rt.Link]
    addresses: Addresses
    routes: set[Hop]
    sources: _Sources = field(default_factory=dict)
    near: frozenset[tuple[int, Address]] = frozenset()  # link index, address
    proxies: frozenset[tuple[int, Address]] = frozenset()  # link index, address
    connected: frozenset[tuple[int, Network]] = frozenset()
    forwarding: frozenset[tuple[int, bytes]] = frozenset()
    fences: frozenset[Network] = frozenset()
    neighbours: Mapping[tuple[int, Address], bytes] = field(default_factory=dict)


def read_host(netlink: Netlink) -> View:
    made_of_addresses, _ = read_routes(netlink, rt.RTPROT_KERNEL)
    connected = frozenset((index, destination) for index, destination, _ in made_of_addresses)
    return replace(
        _read(netlink),
        proxies=_read_proxies(netlink),
        connected=connected,
        fences=_read_fences(netlink),
        forwarding=read_forwarding(netlink),
        neighbours=neighbours.told(netlink),
    )


def read_service(netlink: Netlink, bridge: rt.Link, ends: Collection[str]) -> View:
    """As `read_host`, of one bridge, its ports, and the host ends of these names that are elsewhere: it costs what the
    service has, whatever else is on the host.
    """
    links = {bridge.ifindex: bridge} | read_links(netlink, bridge.ifindex)
    strays = _read_strays(netlink, set(ends) - {link.name for link in links.values()})
    addresses: Addresses = defaultdict(list)
    view = View(links | strays, addresses, set())
    for index in (bridge.ifindex, *strays):
        view = _with_addresses(netlink, view, index)
    return replace(
        view,
        proxies=_read_proxies(netlink, bridge.ifindex),
        forwarding=read_forwarding(netlink, bridge.ifindex),
    )


def _read_strays(netlink: Netlink, names: Collection[str]) -> dict[int, rt.Link]:
    """The links of these names, and those that they are on."""
    found = [link for name in sorted(names) if (link := find_link(netlink, name)) is not None]
    links = {link.ifindex: link for link in found}
    return links | {link.master: read_link(netlink, link.master) for link in found if link.master}


def _with_addresses(netlink: Netlink, view: View, index: int) -> View:
    """And what is on one more link: its addresses and routes."""
    addresses, near = read_addresses(netlink, index)
    routes, _ = read_routes(netlink, index=index)
    kernels, _ = read_routes(netlink, rt.RTPROT_KERNEL, index)
    connected = ((at, destination) for at, destination, _ in kernels)
    return replace(
        view,
        addresses=defaultdict(list, view.addresses | addresses),
        near=view.near | near,
        routes=view.routes | routes,
        connected=view.connected.union(connected),
        neighbours={**view.neighbours, **neighbours.told(netlink, index)},
    )


def _read(netlink: Netlink) -> View:
    links = read_links(netlink)
    addresses, near = read_addresses(netlink)
    routes, sources = read_routes(netlink)
    return View(links, addresses, routes, sources, near)


def read_links(netlink: Netlink, master: int = 0) -> dict[int, rt.Link]:
    """All links, or those on one."""
    links = map(rt.parse_link, netlink.dump("list links", rt.RTM_GETLINK, rt.link_filter(master)))
    return {link.ifindex: link for link in links}


def read_addresses(netlink: Netlink, index: int = 0) -> tuple[Addresses, frozenset[tuple[int, Address]]]:
    """The addresses of all links, or of one; and those of link scope."""
    found: Addresses = defaultdict(list)
    near = set()
    for address in map(rt.parse_address, netlink.dump("list addresses", rt.RTM_GETADDR, rt.address_filter(index))):
        if address is not None and address.scope == rt.RT_SCOPE_UNIVERSE:
            found[address.ifindex].append(address.interface)
        elif address is not None and address.scope == rt.RT_SCOPE_LINK:
            near.add((address.ifindex, address.interface.ip))
    return found, frozenset(near)


def read_routes(netlink: Netlink, protocol: int = ROUTE_PROTOCOL, index: int = 0) -> tuple[set[Hop], _Sources]:
    """The routes of a protocol, through all links or one."""
    found: set[Hop] = set()
    sources: _Sources = {}
    asked = route_filter(protocol, index=index)
    for body in netlink.dump("list routes", rt.RTM_GETROUTE, asked):
        route = parse_route(body)
        if route is not None and route.table == rt.RT_TABLE_MAIN and route.protocol == protocol:
            for hop, _flags in route.hops:
                found.add((hop, route.destination, route.gateway))
                if route.source is not None:
                    sources[hop, route.destination] = route.source
    return found, sources


def _read_fences(netlink: Netlink) -> frozenset[Network]:
    bodies = netlink.dump("list routes", rt.RTM_GETROUTE, route_filter(ROUTE_PROTOCOL, rt.RTN_UNREACHABLE))
    return frozenset(
        route.destination
        for body in bodies
        if (route := parse_route(body)) is not None and route.table == rt.RT_TABLE_MAIN and route.metric == FENCE_METRIC
    )


def read_forwarding(netlink: Netlink, bridge: int = 0) -> frozenset[tuple[int, bytes]]:
    bodies = netlink.dump("list forwarding entries", rt.RTM_GETNEIGH, rt.forwarding_filter(bridge))
    return frozenset(entry for entry in map(rt.parse_forwarding, bodies) if entry is not None)


def _read_proxies(netlink: Netlink, index: int = 0) -> frozenset[tuple[int, Address]]:
    families = (socket.AF_INET, socket.AF_INET6)
    bodies = (
        body
        for each in families
        for body in netlink.dump("list proxies", rt.RTM_GETNEIGH, rt.proxy_filter(each, index))
    )
    return frozenset(
        (index, address) for index, address, protocol in map(rt.parse_proxy, bodies) if protocol == ROUTE_PROTOCOL
    )


def look_inside(namespace: Netns | NetnsPath) -> View | None:
    """What the namespace shows, None when it cannot be looked at: its process has exited, or we may not."""
    if namespace == NO_NAMESPACE:
        return None
    try:
        descriptor = netns.open_namespace(namespace)
        try:
            with netns.socket_in(descriptor) as netlink:
                return _read(netlink)
        finally:
            os.close(descriptor)
    except MechanismError as error:
        _log.warning("a container's end of its veth cannot be seen: %s", error)
        return None
