"""The policy rules of this host, as far as they name packets by more than the links that these come and go by.

Owns: reading them.  Must not know: what they do to the overlay (`model.diversions`).
Source: linux/fib_rules.h.

Acts in the network namespace that the calling thread is in.
"""

import socket
import struct
import sys
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network

from overlayd.linux.netlink import Netlink
from overlayd.model.diversions import Rule
from overlayd.model.objects import Network
from overlayd.proto.netlink import attributes

_RTM_GETRULE = 34  # linux/rtnetlink.h
_FRA_DST, _FRA_SRC, _FRA_PRIORITY, _FRA_FWMARK, _FRA_FWMASK = 1, 2, 6, 10, 16
_FRA_IP_PROTO, _FRA_SPORT_RANGE, _FRA_DPORT_RANGE = 22, 23, 24
_SELECTORS = (_FRA_DST, _FRA_SRC, _FRA_FWMARK, _FRA_IP_PROTO, _FRA_SPORT_RANGE, _FRA_DPORT_RANGE)
_INVERT = 2  # FIB_RULE_INVERT, of the flags
_RULE = struct.Struct(
    "=BBBBBBBBI"
)  # fib_rule_hdr: family, lengths of dst and src, tos, table, two unused, action, flags
_PORTS = struct.Struct("=HH")  # fib_rule_port_range, in the order of bytes of this host


def policy_rules(version: int) -> list[Rule]:
    """Those of an IP version that are for some addresses, marks, protocols or ports only, in their order."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with Netlink() as netlink:
        bodies = netlink.dump("list policy rules", _RTM_GETRULE, _RULE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0))
    return list(_parsed(bodies, family))


def _parsed(bodies: list[memoryview], family: int) -> Iterator[Rule]:
    for body in bodies:
        found, header = dict(attributes(body[_RULE.size :])), _RULE.unpack_from(body)
        if header[0] != family or found.keys().isdisjoint(_SELECTORS):
            continue
        mark = _number(found.get(_FRA_FWMARK))
        yield Rule(
            destination=_network(found.get(_FRA_DST), header[1]),
            source=_network(found.get(_FRA_SRC), header[2]),
            mark=(mark, _number(found.get(_FRA_FWMASK))) if mark else None,
            protocol=_number(found.get(_FRA_IP_PROTO)),
            source_ports=_ports(found.get(_FRA_SPORT_RANGE)),
            ports=_ports(found.get(_FRA_DPORT_RANGE)),
            inverted=bool(header[-1] & _INVERT),
            version=4 if family == socket.AF_INET else 6,
            priority=_number(found.get(_FRA_PRIORITY)),
        )


def _number(packed: memoryview | None) -> int:
    return int.from_bytes(packed, sys.byteorder) if packed is not None else 0


def _ports(packed: memoryview | None) -> tuple[int, int] | None:
    return _PORTS.unpack(packed) if packed is not None else None


def _network(packed: memoryview | None, length: int) -> Network | None:
    if packed is None:
        return None
    return IPv4Network((bytes(packed), length)) if len(packed) == 4 else IPv6Network((bytes(packed), length))
