"""Routes of ours on the host, and those of others that they must leave alone.

Owns: how a route is added beside others, and how one is told to a person.  Must not know: why a route is wanted.

Source: rtnetlink(7), RTM_NEWROUTE and RTM_GETROUTE.
"""

import errno
import socket
from collections.abc import Collection, Mapping

from overlayd.errors import MechanismError
from overlayd.linux import rtnetlink as rt
from overlayd.linux.link import NO_WAY, route_request
from overlayd.linux.netlink import Netlink, Request
from overlayd.linux.route_messages import KernelRoute, lookup_body, parse_route, prefix_length
from overlayd.model.objects import ROUTE_PROTOCOL, Address, Network
from overlayd.proto.netlink import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE


def add(netlink: Netlink, index: int, ways: Mapping[Network, Address | None]) -> None:
    """Lead destinations through the link of that index.  Those of ours to the same ones are replaced.  ways: by each
    destination the address that the host sends from by it, None for what the kernel chooses.

    Raises MechanismError with errno EEXIST, and the route in the detail, when the host has a route to exactly one of
    these destinations that is not ours: it stays, whatever its metric, and the others may have been added.  Costs a
    look-up each.
    """
    present = _present(netlink, ways)
    for destination, found in present.items():
        if found.protocol != ROUTE_PROTOCOL:
            raise _taken(str(destination), describe(found))
    # Ours are replaced without a moment in which there is none.
    flags = {each: NLM_F_CREATE | (NLM_F_REPLACE if each in present else NLM_F_EXCL) for each in ways}
    try:
        netlink.transact([route_request(index, each, source=ways[each], flags=flags[each]) for each in ways])
    except MechanismError as error:
        if error.errno != errno.EEXIST:
            raise
        raise _taken(error.object, "one that leads nowhere, or that another one hides") from error


def _present(netlink: Netlink, destinations: Collection[Network]) -> dict[Network, KernelRoute]:
    """The routes of the main table to exactly these destinations, as far as no other one hides them."""
    asked = []
    for each in destinations:
        # The first address of IPv6 is one that routers share (RFC 4291 section 2.6.1), and may be an address of ours.
        address = each.network_address if each.version == 4 else each.broadcast_address
        body = lookup_body(address, rt.RTM_F_FIB_MATCH)
        asked.append(Request("look up route", str(address), rt.RTM_GETROUTE, 0, body, NO_WAY))
    lengths = {each.prefixlen for each in destinations}
    # Nearly all are a wider route, which counts for nothing and need not be read.
    found = (parse_route(body) for body in netlink.transact(asked) if prefix_length(body) in lengths)
    return {
        each.destination: each
        for each in found
        if each is not None and each.table == rt.RT_TABLE_MAIN and each.destination in destinations
    }


def describe(route: KernelRoute) -> str:
    """As ip-route(8) writes it: "10.0.0.0/8 via 192.0.2.1 dev eth0"."""
    words = [str(route.destination)]
    if route.gateway is not None:
        other = route.gateway.version != route.destination.version
        words.append(f"via inet6 {route.gateway}" if other else f"via {route.gateway}")
    for index, _flags in route.hops[:1]:
        try:
            words.append(f"dev {socket.if_indextoname(index)}")
        except OSError:
            continue  # it has just gone
    return " ".join(words)


def _taken(destination: str, present: str) -> MechanismError:
    detail = (
        f"the host has a route of its own to it, which stays: {present}; remove that route, or announce another CIDR"
    )
    return MechanismError("add route", destination, errno.EEXIST, detail)
