"""Forgetting connections: those of an address, or those that break a rule.

Owns: the few ctnetlink messages that takes, and how full the table is.  Must not know: whose address it was, or what
the rules are.

Rules judge the first packet of a connection, and packets of established ones pass: when an address goes to another
container, or loses a right, its old entries must go too.
"""

import re
import socket
import struct
from collections.abc import Callable, Collection
from errno import ENOENT
from functools import partial
from pathlib import Path

from overlayd.errors import MechanismError
from overlayd.linux import sysctl
from overlayd.linux.netlink import NETLINK_NETFILTER, Netlink, Request
from overlayd.model.connections import Ends, Rules
from overlayd.model.objects import Address, Network
from overlayd.proto.netlink import NLA_F_NESTED, attribute, attributes

# linux/netfilter/nfnetlink.h: the subsystem is the high byte of the message type
_CTNETLINK = 1 << 8
# linux/netfilter/nfnetlink_conntrack.h
_CT_NEW, _CT_GET, _CT_DELETE = _CTNETLINK | 0, _CTNETLINK | 1, _CTNETLINK | 2
_CTA_TUPLE_ORIG, _CTA_TUPLE_REPLY, _CTA_ID, _CTA_ZONE = 1, 2, 12, 18
_CTA_TUPLE_IP = 1
_CTA_IP_SRC, _CTA_IP_DST = {4: 1, 6: 3}, {4: 2, 6: 4}  # CTA_IP_V4_SRC, CTA_IP_V6_SRC, ...

_HEAD = {4: struct.pack("=BBH", socket.AF_INET, 0, 0), 6: struct.pack("=BBH", socket.AF_INET6, 0, 0)}  # nfgenmsg

_COUNT = Path("/proc/sys/net/netfilter/nf_conntrack_count")
_LIMIT = "netfilter/nf_conntrack_max"

_OPERATION = "forget connections of"
# Our own: up to so many addresses are sought in an entry's bytes before it is taken apart.
_FEW = 256


def load() -> tuple[int, int] | None:
    """How many connections the calling thread's namespace tracks, and how many it may; None when it tracks none."""
    limit = sysctl.read_if_there(_LIMIT)
    return (int(_COUNT.read_text()), int(limit)) if limit else None


def forget(addresses: Collection[Address]) -> int:
    """Delete every conntrack entry of the calling thread's namespace with one of `addresses` at either end, before or
    after NAT.

    Walks the kernel's whole table once for each IP version (11 ms for 262,144 buckets, however few are filled; a filter
    of the kernel's would need four walks, and is the wrong way round for IPv6 in 6.18), so many addresses cost as much
    as one, and nothing when the namespace tracks no connection.  Returns how many entries it found.  Raises
    MechanismError.
    """
    forgotten = 0
    for version in (4, 6):
        wanted = {address.packed for address in addresses if address.version == version}
        if wanted:
            some = ", ".join(sorted(map(str, addresses))[:3])
            # Most entries need no closer look; with very many addresses the closer look is the cheaper one.
            hint = b"|".join(map(re.escape, wanted)) if len(wanted) <= _FEW else b""
            forgotten += _forget(version, hint, partial(_any_of, wanted), some)
    return forgotten


def forget_what_breaks(rules: Rules) -> int:
    """Delete every conntrack entry of the calling thread's namespace that the rules want broken off; return how many.
    Costs as `forget` does.  Raises MechanismError.
    """
    return sum(
        _forget(cluster.version, re.escape(_leading(cluster)), rules.break_off, str(cluster))
        for cluster in rules.clusters
    )


def _any_of(wanted: set[bytes], ends: Ends) -> bool:
    return not wanted.isdisjoint(ends)


def _leading(network: Network) -> bytes:
    """The whole bytes that every address of the network begins with."""
    return network.network_address.packed[: network.prefixlen // 8]


def _forget(version: int, hint: bytes, chosen: Callable[[Ends], bool], object: str) -> int:
    """Delete the entries of an IP version with `chosen` ends.  hint: a regular expression that the bytes of each of
    them match.  object: what they are of, for a person.
    """
    if not _tracked():
        return 0
    try:
        with Netlink(NETLINK_NETFILTER) as netlink:
            found = _find(netlink, version, re.compile(hint, re.DOTALL), chosen, object)
            netlink.transact(
                # ENOENT: it has ended meanwhile.
                [Request(_OPERATION, object, _CT_DELETE, 0, _HEAD[version] + name, (ENOENT,)) for name in found]
            )
    except OSError as error:
        raise MechanismError(_OPERATION, object, error.errno or 0) from error
    return len(found)


def _tracked() -> int:
    """How many entries the namespace has; 1 when it does not tell."""
    try:
        return int(_COUNT.read_text())
    except OSError:
        return 1


def _find(
    netlink: Netlink, version: int, hint: re.Pattern[bytes], chosen: Callable[[Ends], bool], object: str
) -> list[bytes]:
    """What names the entries that are chosen."""
    sides = (_CTA_IP_SRC[version], _CTA_IP_DST[version])
    found: dict[bytes, bytes] = {}
    for message in netlink.walk(_OPERATION, _CT_GET, _HEAD[version], object):
        if message.type != _CT_NEW or hint.search(message.body) is None:
            continue
        entry = dict(attributes(message.body[len(_HEAD[version]) :]))
        tuples = (dict(attributes(entry[kind])) for kind in (_CTA_TUPLE_ORIG, _CTA_TUPLE_REPLY))
        addresses = (dict(attributes(each[_CTA_TUPLE_IP])) for each in tuples)
        if not chosen(Ends(*(bytes(each[side]) for each in addresses for side in sides))):
            continue
        id = bytes(entry[_CTA_ID])
        name = attribute(_CTA_TUPLE_ORIG | NLA_F_NESTED, bytes(entry[_CTA_TUPLE_ORIG]))
        name += attribute(_CTA_ID, id)  # not a successor with the same tuple
        if _CTA_ZONE in entry:
            name += attribute(_CTA_ZONE, bytes(entry[_CTA_ZONE]))
        found[id] = name
    return list(found.values())
