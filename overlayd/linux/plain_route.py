"""Reading thousands of routes of which nearly all have one form: those to allowed IPs, and the fences behind them.

Owns: that form, and where their destinations come from.  Must not know: what else a route may have (`rtnetlink`), or
whose it is.
"""

import socket
import struct
from collections.abc import Mapping
from ipaddress import IPv4Network
from types import MappingProxyType

from overlayd.linux import rtnetlink as rt
from overlayd.model.objects import Network

# linux/rtnetlink.h: rtmsg, and of IPv4 three attributes of four bytes: RTA_TABLE, RTA_DST, and RTA_OIF or RTA_PRIORITY.
_PLAIN = struct.Struct("=BBBBBBBBIHHIHH4sHHI")
_SIZE = 8  # of each of the attributes

# Values that may be the destination of a route, by their first address and their length.
Known = Mapping[tuple[bytes, int], Network]
NOTHING_KNOWN: Known = MappingProxyType({})


def parse_route(body: memoryview, known: Known = NOTHING_KNOWN) -> rt.KernelRoute | None:
    """As `rtnetlink.parse_route`, in a third of the time for a route of the one form.  known: is where its destination
    is taken from if it is there, for to make that takes as long as all else.
    """
    if len(body) != _PLAIN.size or body[0] != socket.AF_INET:
        return rt.parse_route(body)
    head, told = (values := _PLAIN.unpack(body))[:9], values[9:]
    _family, prefix, _source, _tos, _table, protocol, scope, kind, flags = head
    first, table_type, table, second, destination_type, packed, third, type, value = told
    if (first, second, third) != (_SIZE, _SIZE, _SIZE) or (table_type, destination_type) != (rt.RTA_TABLE, rt.RTA_DST):
        return rt.parse_route(body)
    if type not in (rt.RTA_OIF, rt.RTA_PRIORITY):
        return rt.parse_route(body)
    through = type == rt.RTA_OIF
    return rt.KernelRoute(
        destination=known.get((packed, prefix)) or IPv4Network((packed, prefix)),
        table=table,
        protocol=protocol,
        scope=scope,
        type=kind,
        gateway=None,
        source=None,
        metric=0 if through else value,
        mtu=0,
        hops=((value, flags),) if through else (),
    )
