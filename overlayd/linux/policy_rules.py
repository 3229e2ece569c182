"""The policy rules of this host, as far as they name packets by their addresses.

Owns: reading them.  Must not know: what they do to the overlay (`model.diversions`).
Source: linux/fib_rules.h.

Acts in the network namespace that the calling thread is in.
"""

import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network

from overlayd.linux.netlink import Netlink
from overlayd.model.diversions import Rule
from overlayd.model.objects import Network
from overlayd.proto.netlink import attributes

_RTM_GETRULE = 34  # linux/rtnetlink.h
_FRA_DST, _FRA_SRC = 1, 2
_RULE = struct.Struct("=BBBBBBBBI")  # fib_rule_hdr: family, lengths of dst and src, more


def policy_rules(version: int) -> list[Rule]:
    """Those of an IP version that are for some destinations or sources only, in their order."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with Netlink() as netlink:
        bodies = netlink.dump("list policy rules", _RTM_GETRULE, _RULE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0))
    return list(_parsed(bodies, family))


def _parsed(bodies: list[memoryview], family: int) -> Iterator[Rule]:
    for body in bodies:
        found, (kind, destination, source, *_) = dict(attributes(body[_RULE.size :])), _RULE.unpack_from(body)
        if kind == family and (_FRA_DST in found or _FRA_SRC in found):
            yield Rule(_network(found.get(_FRA_DST), destination), _network(found.get(_FRA_SRC), source))


def _network(packed: memoryview | None, length: int) -> Network | None:
    if packed is None:
        return None
    return IPv4Network((bytes(packed), length)) if len(packed) == 4 else IPv6Network((bytes(packed), length))
