"""What the kernel has in a network namespace: links, addresses, routes, neighbours, by rtnetlink(7).

Owns: asking for each table, and reading the answers, in the words of ip(8) and bridge(8).  Must not know: what of it
matters.  `test_network` compares it with those programs, in whose place it is: a look at a machine would start some
thirty of them.

Constants and structures: linux/netlink.h, rtnetlink.h, if_link.h, if_addr.h, neighbour.h.
"""

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab import netns

OWN = Path("/proc/thread-self/ns/net")

RTM_GETLINK, RTM_GETADDR, RTM_GETROUTE, RTM_GETNEIGH = 18, 22, 26, 30
NLM_F_REQUEST, NLM_F_DUMP, NLM_F_DUMP_INTR = 1, 0x300, 0x10
NLMSG_ERROR, NLMSG_DONE = 2, 3
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_LINKINFO = 1, 3, 4, 10, 18
IFLA_IFALIAS, IFLA_GROUP, IFLA_PROP_LIST, IFLA_ALT_IFNAME = 20, 27, 52, 53
IFLA_INFO_KIND, IFLA_INFO_SLAVE_DATA, IFLA_BRPORT_LOCKED = 1, 5, 39
IFA_ADDRESS, IFA_LOCAL = 1, 2
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_TABLE = 1, 4, 5, 6, 7, 15
NDA_DST, NDA_LLADDR = 1, 2
IFF_UP, RTM_F_CLONED, NTF_PROXY, NUD_NOARP, NUD_PERMANENT = 1, 0x200, 8, 0x40, 0x80
AF_BRIDGE, RTN_UNICAST, RTPROT_BOOT, RT_TABLE_MAIN = 7, 1, 3, 254
TYPE_MASK = 0x3FFF  # of an attribute's type, without two flags

TABLES = {253: "default", 254: "main", 255: "local"}  # /etc/iproute2/rt_tables
PROTOCOLS = {1: "redirect", 2: "kernel", 4: "static", 9: "ra"}  # /etc/iproute2/rt_protos
TYPES = {2: "local", 3: "broadcast", 4: "anycast", 5: "multicast", 6: "blackhole", 7: "unreachable", 8: "prohibit"}

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # nlattr: length, type
_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg: family, length of dst and src, tos, table, protocol, scope, type, flags
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # ndmsg: family, index, state, flags, type
_NUMBER, _ERROR = struct.Struct("=I"), struct.Struct("=i")

Attributes = dict[int, bytes]


class Network:
    """What is in a namespace, in the words of `ip -json` and `bridge -json`.  A context manager.

    namespace: the file that stands for it; OSError when it is gone.
    """

    def __init__(self, namespace: Path = OWN) -> None:
        self._socket = netns.open_socket(namespace, socket.AF_NETLINK, socket.SOCK_RAW)
        self._links = self._table(RTM_GETLINK, _LINK)
        self._names = {fixed[2]: _text(found[IFLA_IFNAME]) for fixed, found in self._links}

    def __enter__(self) -> "Network":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def links(self) -> list[dict[str, Any]]:
        """As `ip -json -details address show`."""
        addresses: dict[int, list[dict[str, Any]]] = {}
        for (family, prefix, *_, index), found in self._table(RTM_GETADDR, _ADDRESS):
            local = _address(family, found.get(IFA_LOCAL) or found[IFA_ADDRESS])
            addresses.setdefault(index, []).append({"local": local, "prefixlen": prefix})
        return [
            self._link(fixed[3], found) | {"addr_info": addresses.get(fixed[2], [])} for fixed, found in self._links
        ]

    def routes(self) -> list[dict[str, Any]]:
        """As `ip -json route show table all`, of IPv4 and then of IPv6."""
        return [
            self._route(fixed, found)
            for version in (socket.AF_INET, socket.AF_INET6)
            for fixed, found in self._table(RTM_GETROUTE, _ROUTE, version)
            if not fixed[-1] & RTM_F_CLONED
        ]

    def proxies(self) -> list[tuple[str, str]]:
        """Addresses for which a link answers, and its name: `ip neighbour show proxy`, of IPv4 and then of IPv6."""
        return [
            (_address(version, found[NDA_DST]), self._name(fixed[1]))
            for version in (socket.AF_INET, socket.AF_INET6)
            for fixed, found in self._table(RTM_GETNEIGH, _NEIGHBOUR, version, 0, 0, NTF_PROXY)
        ]

    def static_entries(self) -> list[tuple[str, str]]:
        """MAC addresses that a port is held to, and its name: those of `bridge fdb show` whose state is `static`."""
        return [
            (found[NDA_LLADDR].hex(":"), self._name(index))
            for (_, index, state, *_), found in self._table(RTM_GETNEIGH, _NEIGHBOUR, AF_BRIDGE)
            if state & NUD_NOARP and not state & NUD_PERMANENT
        ]

    def _name(self, index: int) -> str:
        """As ip(8) names a link that has come since the links were listed, or has gone."""
        return self._names.get(index, f"if{index}")

    def _link(self, flags: int, found: Attributes) -> dict[str, Any]:
        about = _attributes(found.get(IFLA_LINKINFO, b""))
        shown: dict[str, Any] = {
            "ifname": _text(found[IFLA_IFNAME]),
            "flags": ["UP"] if flags & IFF_UP else [],
            "mtu": _number(found[IFLA_MTU]),
            "group": str(_number(found[IFLA_GROUP]) or "default"),
        }
        if IFLA_INFO_KIND in about:
            shown["linkinfo"] = {"info_kind": _text(about[IFLA_INFO_KIND])}
            port = _attributes(about.get(IFLA_INFO_SLAVE_DATA, b""))
            if IFLA_BRPORT_LOCKED in port:
                shown["linkinfo"]["info_slave_data"] = {"locked": port[IFLA_BRPORT_LOCKED] != b"\0"}
        if IFLA_IFALIAS in found:
            shown["ifalias"] = _text(found[IFLA_IFALIAS])
        if IFLA_MASTER in found:
            shown["master"] = self._name(_number(found[IFLA_MASTER]))
        if IFLA_ADDRESS in found:
            shown["address"] = found[IFLA_ADDRESS].hex(":")
        if IFLA_PROP_LIST in found:
            shown["altnames"] = [_text(name) for type, name in _pairs(found[IFLA_PROP_LIST]) if type == IFLA_ALT_IFNAME]
        return shown

    def _route(self, fixed: tuple[int, ...], found: Attributes) -> dict[str, Any]:
        version, length, _, _, table, protocol, _, type, _ = fixed
        shown: dict[str, Any] = {"dst": "default"}
        if RTA_DST in found:
            destination = _address(version, found[RTA_DST])
            shown["dst"] = destination if length == 8 * len(found[RTA_DST]) else f"{destination}/{length}"
        if protocol != RTPROT_BOOT:
            shown["protocol"] = PROTOCOLS.get(protocol, str(protocol))
        if type != RTN_UNICAST:
            shown["type"] = TYPES[type]
        if (number := _number(found[RTA_TABLE]) if RTA_TABLE in found else table) != RT_TABLE_MAIN:
            shown["table"] = TABLES.get(number, str(number))
        if RTA_OIF in found:
            shown["dev"] = self._name(_number(found[RTA_OIF]))
        for key, attribute in (("gateway", RTA_GATEWAY), ("prefsrc", RTA_PREFSRC)):
            if attribute in found:
                shown[key] = _address(version, found[attribute])
        if RTA_PRIORITY in found:
            shown["metric"] = _number(found[RTA_PRIORITY])
        return shown

    def _table(self, type: int, fixed: struct.Struct, *asked: int) -> list[tuple[tuple[int, ...], Attributes]]:
        """The messages of a dump: the structure that each begins with, and its attributes.  asked: what the request's
        structure begins with; the rest of it is 0.
        """
        while True:
            body = fixed.pack(*asked, *[0] * (len(fixed.unpack(bytes(fixed.size))) - len(asked)))
            request = _HEADER.pack(_HEADER.size + len(body), type, NLM_F_REQUEST | NLM_F_DUMP, 0, 0)
            self._socket.send(request + body)
            table: list[tuple[tuple[int, ...], Attributes]] = []
            if self._receive(table, fixed):
                return table

    def _receive(self, table: list[tuple[tuple[int, ...], Attributes]], fixed: struct.Struct) -> bool:
        """Whether nothing has changed meanwhile."""
        steady = True
        while True:
            data, at = self._socket.recv(1 << 17), 0
            while at < len(data):
                length, type, flags, _, _ = _HEADER.unpack_from(data, at)
                steady = steady and not flags & NLM_F_DUMP_INTR
                start = at + _HEADER.size
                if type == NLMSG_DONE:
                    return steady
                if type == NLMSG_ERROR:
                    number = -_ERROR.unpack_from(data, start)[0]
                    raise OSError(number, os.strerror(number))
                table.append((fixed.unpack_from(data, start), _attributes(data[start + fixed.size : at + length])))
                at += (length + 3) & ~3


def _pairs(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        length, type = _ATTRIBUTE.unpack_from(data, at)
        yield type & TYPE_MASK, data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3


def _attributes(data: bytes) -> Attributes:
    return dict(_pairs(data))


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode()


def _number(value: bytes) -> int:
    number: int = _NUMBER.unpack(value)[0]
    return number


def _address(version: int, value: bytes) -> str:
    return socket.inet_ntop(version, value)
