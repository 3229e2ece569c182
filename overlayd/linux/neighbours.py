"""How full the kernel's neighbour tables are.

Owns: reading their limits and what is in them.  Must not know: whose neighbours they are.  Source: linux/neighbour.h,
RTM_GETNEIGHTBL; arp(7), gc_thresh3.
"""

import socket
import struct
from typing import NamedTuple

from overlayd.linux import rtnetlink as rt
from overlayd.linux.netlink import Netlink
from overlayd.proto.netlink import attributes, number, string

# linux/neighbour.h
_NDTA_NAME, _NDTA_THRESH3, _NDTA_CONFIG = 1, 4, 5
_NAMES = ("arp_cache", "ndisc_cache")
_HEADER = 4  # ndtmsg: family, padded
_CONFIG = struct.Struct("=HHI")  # ndt_config: key length, entry size, entries


class NeighbourTable(NamedTuple):
    """One table of the kernel, which all network namespaces share.  limit: gc_thresh3, beyond which none is added."""

    version: int
    entries: int
    limit: int


def tables() -> list[NeighbourTable]:
    """Those of IPv4 and IPv6.  Raises MechanismError when the kernel refuses."""
    found = []
    with Netlink() as netlink:
        for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
            for body in netlink.dump("list neighbour tables", rt.RTM_GETNEIGHTBL, bytes([family, 0, 0, 0])):
                about = dict(attributes(body[_HEADER:]))
                # A link's own parameters come as messages of the same kind, without the table's configuration.
                if _NDTA_CONFIG in about and string(about[_NDTA_NAME]) in _NAMES:
                    entries = _CONFIG.unpack_from(about[_NDTA_CONFIG])[2]
                    found.append(NeighbourTable(version, entries, number(about.get(_NDTA_THRESH3))))
    return found
