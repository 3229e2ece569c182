"""A container's own routes, set aside while ours stand in their place.

Owns: which of its routes ours would replace, where they are kept meanwhile, and the way back.  Must not know: what our
routes are for, or which namespace is acted in (that of the netlink socket).

A route to the same destination and of the same or a better metric would win over ours, or be lost to it
(NLM_F_REPLACE).  Such a route is moved, as the kernel shows it, to a table that no rule leads to; it is moved back when
our route goes.  So the kernel keeps it, inside the container, whatever becomes of the daemon.  A narrower route of the
container's, or one of a worse metric, stays where it is.
"""

import errno
import logging
from collections.abc import Collection, Sequence
from typing import NamedTuple

from overlayd.errors import MechanismError
from overlayd.linux import rtnetlink as rt
from overlayd.linux.netlink import Netlink, Request
from overlayd.linux.route_messages import KernelRoute, moved_route_body, parse_route, table_filter
from overlayd.model.objects import ROUTE_PROTOCOL, Network
from overlayd.proto.netlink import NLM_F_APPEND, NLM_F_CREATE

_log = logging.getLogger(__name__)

# Our own: the number of the table, in the way of our link groups.
TABLE = 0x6F760010

# What the kernel gives to a route that names no metric, as ours do (linux/ipv6_route.h).
_OUR_METRIC = {4: 0, 6: rt.IP6_RT_PRIO_USER}


class Shown(NamedTuple):
    """A route, and the message by which the kernel showed it."""

    route: KernelRoute
    body: memoryview


def in_the_way(netlink: Netlink, destinations: Collection[Network]) -> list[Shown]:
    """The routes that are not ours and keep ours to these destinations from counting."""
    return [
        shown
        for shown in _routes(netlink, rt.RT_TABLE_MAIN)
        if shown.route.protocol != ROUTE_PROTOCOL
        and shown.route.destination in destinations
        and shown.route.metric <= _OUR_METRIC[shown.route.destination.version]
    ]


def are_aside(netlink: Netlink, destinations: Collection[Network]) -> bool:
    """Whether routes to these destinations are set aside."""
    return any(shown.route.destination in destinations for shown in _routes(netlink, TABLE))


def set_aside(netlink: Netlink, routes: Sequence[Shown]) -> None:
    """Move routes out of the way.  Each is in both tables before it is in one, so that none is lost."""
    _move(netlink, routes, rt.RT_TABLE_MAIN, TABLE)
    for shown in routes:
        _log.info("a container's own route to %s is set aside while it is attached", shown.route.destination)


def put_back(netlink: Netlink, leaving: int = 0) -> None:
    """Move back what was set aside for routes of ours that are gone, or go with the link of index `leaving`.

    What cannot go back, because its own link is down meanwhile, is logged and stays set aside.
    """
    aside = _routes(netlink, TABLE)
    if not aside:
        return
    taken = {
        shown.route.destination
        for shown in _routes(netlink, rt.RT_TABLE_MAIN)
        if shown.route.protocol == ROUTE_PROTOCOL and all(index != leaving for index, _ in shown.route.hops)
    }
    for shown in aside:
        if shown.route.destination not in taken:
            try:
                _move(netlink, [shown], TABLE, rt.RT_TABLE_MAIN)
            except MechanismError as error:
                _log.warning("a container does not get its own route to %s back: %s", shown.route.destination, error)


def _move(netlink: Netlink, routes: Sequence[Shown], source: int, target: int) -> None:
    add, remove = NLM_F_CREATE | NLM_F_APPEND, 0
    netlink.transact([_request(shown, rt.RTM_NEWROUTE, add, target, errno.EEXIST) for shown in routes])
    netlink.transact([_request(shown, rt.RTM_DELROUTE, remove, source, errno.ESRCH) for shown in routes])


def _request(shown: Shown, kind: int, flags: int, table: int, tolerated: int) -> Request:
    body = moved_route_body(shown.body, table)
    return Request("move the container's own route", str(shown.route.destination), kind, flags, body, (tolerated,))


def _routes(netlink: Netlink, table: int) -> list[Shown]:
    try:
        bodies = netlink.dump("list routes", rt.RTM_GETROUTE, table_filter(table))
    except MechanismError as error:
        if error.errno != errno.ENOENT:
            raise
        return []  # a table that nobody has used
    found = ((parse_route(body), body) for body in bodies)
    return [Shown(route, body) for route, body in found if route is not None and route.table == table]
