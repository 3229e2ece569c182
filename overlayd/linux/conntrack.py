"""Forgetting the connections of an address.

Owns: the few ctnetlink messages that takes.  Must not know: whose address it was, or why it is forgotten.

Rules judge the first packet of a connection, and packets of established ones pass: when an address goes to another
container, or loses a right, its old entries must go too.
"""

import re
import socket
import struct
from collections.abc import Collection, Iterator
from errno import ENOENT
from pathlib import Path

from overlayd.errors import MechanismError
from overlayd.model.objects import Address

# linux/netlink.h
_NETLINK_NETFILTER = 12
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 0x1, 0x4, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLA_F_NESTED, _NLA_TYPE_MASK = 0x8000, 0x3FFF
# linux/netfilter/nfnetlink.h: the subsystem is the high byte of the message type
_CTNETLINK = 1 << 8
# linux/netfilter/nfnetlink_conntrack.h
_CT_GET, _CT_DELETE = _CTNETLINK | 1, _CTNETLINK | 2
_CTA_TUPLE_ORIG, _CTA_TUPLE_REPLY, _CTA_ID, _CTA_ZONE = 1, 2, 12, 18
_CTA_TUPLE_IP = 1
_CTA_IP_SRC, _CTA_IP_DST = {4: 1, 6: 3}, {4: 2, 6: 4}  # CTA_IP_V4_SRC, CTA_IP_V6_SRC, ...

_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_NFGENMSG = struct.Struct(">BBH")  # family, version, resource id

_COUNT = Path("/proc/sys/net/netfilter/nf_conntrack_count")

# Our own: deletes in flight, few enough that their answers fit the socket's default receive buffer.
_BATCH = 64
# Our own: up to so many addresses are sought in an entry's bytes before it is taken apart.
_FEW = 256


def forget(addresses: Collection[Address]) -> int:
    """Delete every conntrack entry of the calling thread's namespace with one of `addresses` at either end, before or
    after NAT.

    Walks the kernel's whole table once for each IP version (11 ms for 262,144 buckets, however few are filled; a filter
    of the kernel's would need four walks, and is the wrong way round for IPv6 in 6.18), so many addresses cost as much
    as one, and nothing when the namespace tracks no connection.  Returns how many entries there were.  Raises
    MechanismError.
    """
    deleted = 0
    if not _tracked():
        return deleted
    for version in (4, 6):
        wanted = {address.packed for address in addresses if address.version == version}
        if not wanted:
            continue
        try:
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
                deleted += _delete(netlink, version, _find(netlink, version, wanted))
        except OSError as error:
            some = ", ".join(sorted(map(str, addresses))[:3])
            raise MechanismError("forget connections of", some, error.errno or 0) from error
    return deleted


def _tracked() -> int:
    """How many entries the namespace has; 1 when it does not tell."""
    try:
        return int(_COUNT.read_text())
    except OSError:
        return 1


def _find(netlink: socket.socket, version: int, wanted: set[bytes]) -> list[bytes]:
    """What names the entries with a wanted address."""
    sides = (_CTA_IP_SRC[version], _CTA_IP_DST[version])
    # Most entries need no closer look; with very many addresses the closer look is the cheaper one.
    anywhere = re.compile(b"|".join(map(re.escape, wanted)) if len(wanted) <= _FEW else b"", re.DOTALL)
    netlink.send(_message(_CT_GET, _NLM_F_DUMP, version, b""))
    found: dict[bytes, bytes] = {}
    for body in _answers(netlink, 1):
        if anywhere.search(body) is None:
            continue
        attributes = _attributes(body[_NFGENMSG.size :])
        tuples = (_attributes(attributes[type]) for type in (_CTA_TUPLE_ORIG, _CTA_TUPLE_REPLY))
        ends = [_attributes(each[_CTA_TUPLE_IP]) for each in tuples]
        if not any(end.get(side) in wanted for end in ends for side in sides):
            continue
        name = _attribute(_CTA_TUPLE_ORIG | _NLA_F_NESTED, attributes[_CTA_TUPLE_ORIG])
        name += _attribute(_CTA_ID, attributes[_CTA_ID])  # not a successor with the same tuple
        if _CTA_ZONE in attributes:
            name += _attribute(_CTA_ZONE, attributes[_CTA_ZONE])
        found[attributes[_CTA_ID]] = name
    return list(found.values())


def _delete(netlink: socket.socket, version: int, names: list[bytes]) -> int:
    """Delete the entries of these names; those that ended meanwhile do not count."""
    deleted = 0
    for start in range(0, len(names), _BATCH):
        batch = names[start : start + _BATCH]
        netlink.send(b"".join(_message(_CT_DELETE, _NLM_F_ACK, version, name) for name in batch))
        gone: list[int] = []
        for _ in _answers(netlink, len(batch), gone):
            pass
        deleted += len(batch) - len(gone)
    return deleted


def _answers(netlink: socket.socket, count: int, missing: list[int] | None = None) -> Iterator[bytes]:
    """The bodies of answers until `count` requests are settled; ENOENT goes to `missing` when given.

    Raises OSError with the errno of a request that failed.
    """
    while count:
        data = netlink.recv(1 << 17)
        offset = 0
        while offset < len(data):
            length, type, _, _, _ = _HEADER.unpack_from(data, offset)
            body = data[offset + _HEADER.size : offset + length]
            offset += _padded(length)
            if type not in (_NLMSG_ERROR, _NLMSG_DONE):
                yield body
                continue
            count -= 1
            errno = -struct.unpack_from("=i", body)[0]
            if errno == ENOENT and missing is not None:
                missing.append(errno)
            elif errno:
                raise OSError(errno, "ctnetlink")


def _message(type: int, flags: int, version: int, attributes: bytes) -> bytes:
    body = _NFGENMSG.pack(_FAMILY[version], 0, 0) + attributes
    return _HEADER.pack(_HEADER.size + len(body), type, _NLM_F_REQUEST | flags, 0, 0) + body


def _attribute(type: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), type) + value.ljust(_padded(len(value)), b"\0")


def _attributes(data: bytes) -> dict[int, bytes]:
    """Attributes by type, without the flag bits."""
    found: dict[int, bytes] = {}
    while len(data) >= 4:
        length, type = struct.unpack_from("=HH", data)
        found[type & _NLA_TYPE_MASK] = data[4:length]
        data = data[_padded(length) :]
    return found


def _padded(length: int) -> int:
    """Netlink aligns to 4 bytes."""
    return (length + 3) & ~3
