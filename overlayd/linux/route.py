"""Routes of ours on the host, and those of others that they must leave alone.

Owns: how a route is added beside others, and how one is told to a person.  Must not know: why a route is wanted.

Source: rtnetlink(7), RTM_NEWROUTE and RTM_GETROUTE.
"""

import errno
import socket

from overlayd.errors import MechanismError
from overlayd.linux import rtnetlink as rt
from overlayd.linux.link import route_request
from overlayd.linux.netlink import Netlink, Request
from overlayd.model.objects import ROUTE_PROTOCOL, Address, Network
from overlayd.proto.netlink import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE


def add(netlink: Netlink, index: int, destination: Network, source: Address | None = None) -> None:
    """Lead a destination through the link of that index.  One of ours to the same destination is replaced.  source:
    that the host sends from by it.

    Raises MechanismError with errno EEXIST, and the route in the detail, when the host has a route to exactly this
    destination that is not ours: it stays, whatever its metric.  Costs one look-up.
    """
    # Of IPv6 the first address is one that routers share (RFC 4291 section 2.6.1), and may be an address of ours.
    first, last = destination.network_address, destination.broadcast_address
    present = matching(netlink, first if destination.version == 4 else last)
    exact = present is not None and present.destination == destination and present.table == rt.RT_TABLE_MAIN
    if present is not None and exact and present.protocol != ROUTE_PROTOCOL:
        raise _taken(destination, describe(present))
    # Ours is replaced without a moment in which there is none.
    flags = NLM_F_CREATE | (NLM_F_REPLACE if exact else NLM_F_EXCL)
    try:
        netlink.transact([route_request(index, destination, source=source, flags=flags)])
    except MechanismError as error:
        if error.errno != errno.EEXIST:
            raise
        raise _taken(destination, "one that leads nowhere, or that another one hides") from error


def matching(netlink: Netlink, address: Address) -> rt.KernelRoute | None:
    """The route that the kernel uses for an address, as it stands in its table; None when none leads anywhere.  Takes
    some 20 us and waits for nobody.
    """
    body = rt.lookup_body(address, rt.RTM_F_FIB_MATCH)
    try:
        replies = netlink.transact([Request("look up route", str(address), rt.RTM_GETROUTE, 0, body)])
    except MechanismError:
        return None  # unreachable, prohibited: the errno says how, which nobody asks
    return rt.parse_route(replies[0]) if replies else None


def describe(route: rt.KernelRoute) -> str:
    """As ip-route(8) writes it: "10.0.0.0/8 via 192.0.2.1 dev eth0"."""
    words = [str(route.destination)]
    if route.gateway is not None:
        words.append(f"via {route.gateway}")
    for index, _flags in route.hops[:1]:
        try:
            words.append(f"dev {socket.if_indextoname(index)}")
        except OSError:
            continue  # it has just gone
    return " ".join(words)


def _taken(destination: Network, present: str) -> MechanismError:
    detail = (
        f"the host has a route of its own to it, which stays: {present}; remove that route, or announce another CIDR"
    )
    return MechanismError("add route", str(destination), errno.EEXIST, detail)
