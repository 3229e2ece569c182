"""The kernel's neighbour tables: how full they are, what they were told for good, and who does not answer.

Owns: reading their limits and their entries.  Must not know: whose neighbours they are, or which MAC is the right one.
Source: linux/neighbour.h, RTM_GETNEIGHTBL, RTM_GETNEIGH; arp(7), gc_thresh3.
"""

import errno
import socket
import struct
from collections.abc import Iterable
from ipaddress import ip_address
from typing import NamedTuple

from overlayd.errors import MechanismError
from overlayd.linux import rtnetlink as rt
from overlayd.linux.egress import look_up
from overlayd.linux.link import find_link, link_index, read_link
from overlayd.linux.netlink import Netlink, Request
from overlayd.model.next_hops import NextHop
from overlayd.model.objects import Address
from overlayd.proto.netlink import attribute, attributes, nested, number, string, text, u32

# linux/neighbour.h
_NDTA_NAME, _NDTA_THRESH3, _NDTA_CONFIG, _NDTA_PARMS = 1, 4, 5, 6
_NDTPA_IFINDEX, _NDTPA_PROXY_DELAY = 1, 13
_NAMES: dict[int, str] = {socket.AF_INET: "arp_cache", socket.AF_INET6: "ndisc_cache"}
_HEADER = 4  # ndtmsg: family, padded
_NEIGHBOUR = struct.Struct("=B3xiHBB")  # ndmsg: family, link, state, flags, type
_CONFIG = struct.Struct("=HHI")  # ndt_config: key length, entry size, entries
_INCOMPLETE, _FAILED = 0x01, 0x20
_USE = 0x01  # NTF_USE: ask for it, as a packet would

# Kinds of links on which a neighbour has a MAC of its own; of others (ipvlan, a tunnel) the kernel may have ours.
_ETHERNET = ("", "veth", "bond", "team", "vlan", "bridge", "macvlan")


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
                if _NDTA_CONFIG in about and string(about[_NDTA_NAME]) in _NAMES.values():
                    entries = _CONFIG.unpack_from(about[_NDTA_CONFIG])[2]
                    found.append(NeighbourTable(version, entries, number(about.get(_NDTA_THRESH3))))
    return found


def no_proxy_delay_body(index: int, kind: int) -> bytes:
    """Body of an RTM_SETNEIGHTBL message: as a proxy for others of the family, a link answers at once."""
    delay = attribute(_NDTPA_PROXY_DELAY, bytes(8))  # milliseconds
    parameters = nested(_NDTA_PARMS, u32(_NDTPA_IFINDEX, index) + delay)
    return bytes([kind, 0, 0, 0]) + text(_NDTA_NAME, _NAMES[kind]) + parameters


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
    """Have the kernel ask again for the MAC of an address on a link; fine when it knows none."""
    body = rt.neighbour_body(link_index(link), address, b"")
    return Request("delete neighbour", str(address), rt.RTM_DELNEIGH, 0, body, (errno.ENOENT,))


def next_hops(addresses: Iterable[Address]) -> dict[Address, list[NextHop]]:
    """Whom this host hands packets to each address to, one of several where its route has those, and what it knows of
    these neighbours; without addresses whose packets do not leave it.  Takes some 40 us each.  MechanismError when the
    kernel refuses.
    """
    found: dict[Address, list[NextHop]] = {}
    known: dict[tuple[int, Address], NextHop] = {}
    with Netlink() as netlink:
        for address in addresses:
            route = look_up(netlink, address, rt.RTM_F_FIB_MATCH)
            if route is None:
                continue
            for (index, flags), gateway in zip(route.hops, route.gateways, strict=True):
                key = index, gateway or address
                if flags & rt.RTNH_F_DEAD:  # the kernel uses the others
                    continue
                if key not in known:
                    known[key] = _asked(netlink, *key, routes=gateway is not None)
                found.setdefault(address, []).append(known[key])
    return found


def ask(hops: Iterable[NextHop]) -> None:
    """Have the kernel ask these neighbours again for their MACs."""
    with Netlink() as netlink:
        for hop in hops:
            try:
                index = socket.if_nametoindex(hop.link)
            except OSError:  # it has just gone
                continue
            body = _NEIGHBOUR.pack(rt.family(hop.address), index, 0, _USE, 0)
            body += attribute(rt.NDA_DST, hop.address.packed)
            netlink.transact([Request("ask neighbour", str(hop.address), rt.RTM_NEWNEIGH, 0, body, (errno.ENOENT,))])


def _asked(netlink: Netlink, index: int, address: Address, *, routes: bool) -> NextHop:
    try:
        name = socket.if_indextoname(index)
    except OSError:  # it has just gone
        return NextHop(f"link {index}", address, routes)
    body = _NEIGHBOUR.pack(rt.family(address), index, 0, 0, 0) + attribute(rt.NDA_DST, address.packed)
    tolerated = (errno.ENOENT, errno.EOPNOTSUPP)  # nobody sent anything there; a kernel before 5.0
    hop = NextHop(name, address, routes)
    for entry in netlink.transact([Request("look up neighbour", str(address), rt.RTM_GETNEIGH, 0, body, tolerated)]):
        state = _NEIGHBOUR.unpack_from(entry)[2]
        about = dict(attributes(entry[_NEIGHBOUR.size :]))
        if state == _INCOMPLETE:
            hop = hop._replace(entry="asked", port_of=_bridge_of(netlink, name))
        elif state == _FAILED:
            hop = hop._replace(entry="silent", port_of=_bridge_of(netlink, name))
        elif state in (rt.NUD_NOARP, rt.NUD_PERMANENT) and (mac := bytes(about.get(rt.NDA_LLADDR, b""))):
            link = find_link(netlink, name)
            asks = link is None or not link.flags & rt.IFF_NOARP
            ours = link is not None and mac == link.mac and link.kind in _ETHERNET
            hop = hop._replace(entry="ours" if ours else "told", mac=mac.hex(":"), arp=asks)
    return hop


def _bridge_of(netlink: Netlink, name: str) -> str:
    """The bridge, bond or the like that takes all that arrives at a link; empty when none does."""
    link = find_link(netlink, name)
    if link is None or not link.master:
        return ""
    try:
        master = read_link(netlink, link.master)
    except MechanismError:  # it has just gone
        return ""
    return master.name if master.kind != "vrf" else ""
