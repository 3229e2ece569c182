"""Reading thousands of routes of which nearly all have one form: those to allowed IPs, and the fences behind them.

Owns: that form, and where their destinations come from.  Must not know: what else a route may have
(`route_messages`), or whose it is.
"""

import socket
import struct

from overlayd._fast import addresses
from overlayd.linux import route_messages
from overlayd.linux import rtnetlink as rt
from overlayd.linux.route_messages import KernelRoute

# linux/rtnetlink.h: rtmsg, of which some is not looked at, and of IPv4 three attributes, each with its head: RTA_TABLE,
# RTA_DST, and RTA_OIF or RTA_PRIORITY.
_PLAIN = struct.Struct("=xBxxxBBBI4sI4s4s4sI")
_HEAD = struct.Struct("=HH")
_TABLE, _DESTINATION, _LINK, _METRIC = (
    _HEAD.pack(8, each) for each in (rt.RTA_TABLE, rt.RTA_DST, rt.RTA_OIF, rt.RTA_PRIORITY)
)


def parse_route(body: memoryview) -> KernelRoute | None:
    """As `route_messages.parse_route`, in a third of the time for a route of the one form."""
    if len(body) != _PLAIN.size or body[0] != socket.AF_INET:
        return route_messages.parse_route(body)
    prefix, protocol, scope, kind, flags, first, table, second, packed, third, value = _PLAIN.unpack(body)
    if first != _TABLE or second != _DESTINATION or third not in (_LINK, _METRIC):
        return route_messages.parse_route(body)
    destination = addresses.of_bytes(packed, prefix)
    if third == _LINK:
        return KernelRoute(destination, table, protocol, scope, kind, None, None, 0, 0, ((value, flags),), (None,))
    return KernelRoute(destination, table, protocol, scope, kind, None, None, value, 0, ())
