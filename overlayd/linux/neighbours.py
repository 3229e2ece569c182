"""The kernel's neighbour tables: how full they are, and what they were told for good.

Owns: reading their limits and their permanent entries.  Must not know: whose neighbours they are, or which MAC is the
right one.  Source: linux/neighbour.h, RTM_GETNEIGHTBL, RTM_GETNEIGH; arp(7), gc_thresh3.
"""

import errno
import socket
import struct
from ipaddress import ip_address
from typing import NamedTuple

from overlayd.linux import rtnetlink as rt
from overlayd.linux.link import link_index
from overlayd.linux.netlink import Netlink, Request
from overlayd.model.objects import Address
from overlayd.proto.netlink import attributes, number, string, u32

# linux/neighbour.h
_NDTA_NAME, _NDTA_THRESH3, _NDTA_CONFIG = 1, 4, 5
_NAMES = ("arp_cache", "ndisc_cache")
_HEADER = 4  # ndtmsg: family, padded
_NEIGHBOUR = struct.Struct("=B3xiHBB")  # ndmsg: family, link, state, flags, type
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


def told(netlink: Netlink, index: int = 0) -> dict[tuple[int, Address], bytes]:
    """The MACs that somebody told, which the kernel does not ask for, by link index and address; of all links, or one.
    Raises MechanismError when the kernel refuses.
    """
    found = {}
    for family in (socket.AF_INET, socket.AF_INET6):
        body = _NEIGHBOUR.pack(family, 0, 0, 0, 0) + (u32(rt.NDA_IFINDEX, index) if index else b"")
        for entry in netlink.dump("list neighbours", rt.RTM_GETNEIGH, body):
            _family, link, state, _flags, _type = _NEIGHBOUR.unpack_from(entry)
            if state in (rt.NUD_NOARP, rt.NUD_PERMANENT):
                about = dict(attributes(entry[_NEIGHBOUR.size :]))
                found[link, ip_address(bytes(about[rt.NDA_DST]))] = bytes(about.get(rt.NDA_LLADDR, b""))
    return found


def parse_told(body: memoryview) -> tuple[int, bytes] | None:
    """Decode the body of an RTM_NEWNEIGH message about a neighbour: its link and the MAC that somebody told; None for
    any other, a proxy or what has no MAC.
    """
    _family, link, _state, flags, _type = _NEIGHBOUR.unpack_from(body)
    mac = dict(attributes(body[_NEIGHBOUR.size :])).get(rt.NDA_LLADDR)
    return None if flags & rt.NTF_PROXY or mac is None else (link, bytes(mac))


def forget_request(link: str, address: Address) -> Request:
    """Have the kernel ask anew for the MAC of an address on a link; fine when it knows none."""
    body = rt.neighbour_body(link_index(link), address, b"")
    return Request("delete neighbour", str(address), rt.RTM_DELNEIGH, 0, body, (errno.ENOENT,))
