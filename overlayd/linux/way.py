"""What a packet's way looks like in a namespace: some links, their addresses, and the route to one address.

Owns: the reading of that as `path` needs it, each at the cost of what is asked for.  Must not know: what should be
there.  Blocks: for worker threads.
"""

import os
from collections.abc import Collection

from overlayd.errors import MechanismError
from overlayd.linux import egress, netns
from overlayd.linux import rtnetlink as rt
from overlayd.linux.link import find_link
from overlayd.linux.netlink import Netlink
from overlayd.linux.view import read_addresses, read_links
from overlayd.model.objects import Address, Netns, NetnsPath
from overlayd.model.seen import Link, Namespace, Way


def host(names: Collection[str], to: Address) -> Namespace:
    """These links of the host, by the names that they are asked for by, and the route to an address."""
    with Netlink() as netlink:
        found = {name: link for name in names if (link := find_link(netlink, name)) is not None}
        return _shown(netlink, found, to)


def inside(namespace: Netns | NetnsPath, to: Address) -> Namespace:
    """All links of a container, and its route to an address."""
    try:
        descriptor = netns.open_namespace(namespace)
        try:
            with netns.socket_in(descriptor) as netlink:
                return _shown(netlink, {link.name: link for link in read_links(netlink).values()}, to)
        finally:
            os.close(descriptor)
    except MechanismError as error:
        return Namespace({}, {}, Way(), os.strerror(error.errno) if error.errno else str(error))


def _shown(netlink: Netlink, found: dict[str, rt.Link], to: Address) -> Namespace:
    names = {link.ifindex: name for name, link in found.items()}
    links = {
        name: Link(bool(link.flags & rt.IFF_UP), link.mtu, link.mac.hex(":"), names.get(link.master, ""))
        for name, link in found.items()
    }
    addresses = {
        name: tuple(map(str, read_addresses(netlink, link.ifindex)[0][link.ifindex])) for name, link in found.items()
    }
    route = egress.look_up(netlink, to)
    if route is None or not route.hops:
        return Namespace(links, addresses, Way(problem="no route"))
    index = route.hops[0][0]
    return Namespace(links, addresses, Way(names.get(index, f"link {index}"), str(route.gateway or "")))
