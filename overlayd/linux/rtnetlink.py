"""Rtnetlink messages: bodies of requests about links, addresses and neighbours, and what the kernel says of them.

Owns: the layouts of these, and the numbers of all, those of routes (`route_messages`) too.  Must not know: how messages
travel (`netlink`), when they are sent, the objects of the model.

Sources: linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/neighbour.h, linux/veth.h.  Addresses are in network
byte order.
"""

import socket
import struct
from collections.abc import Mapping
from ipaddress import IPv4Interface, IPv6Interface, ip_address
from types import MappingProxyType
from typing import NamedTuple

from overlayd._fast.links import LinkAttributes
from overlayd.model.objects import Address, Interface, Network
from overlayd.proto.netlink import attribute, attributes, nested, number, u32

# linux/rtnetlink.h
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_GETMULTICAST, RTM_GETNEIGHTBL, RTM_SETNEIGHTBL = 58, 66, 67
RTM_NEWNETCONF, RTM_GETNSID = 80, 90
RTM_NEWLINKPROP, RTM_DELLINKPROP = 108, 109
RTNLGRP_LINK, RTNLGRP_NEIGH = 1, 3
RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_IFADDR, RTNLGRP_IPV6_ROUTE = 5, 7, 9, 11
RTNLGRP_IPV4_NETCONF, RTNLGRP_IPV6_NETCONF = 24, 25
RTEXT_FILTER_SKIP_STATS = 8
RT_TABLE_MAIN = 254
RTPROT_UNSPEC, RTPROT_KERNEL, RTPROT_BOOT, RTPROT_STATIC, RTPROT_RA, RTPROT_DHCP = 0, 2, 3, 4, 9, 16
# Who makes the routes of a host, and not those of a router: the kernel, people, and what configures links.
HOST_PROTOCOLS = (RTPROT_KERNEL, RTPROT_BOOT, RTPROT_STATIC, RTPROT_RA, RTPROT_DHCP)
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK = 0, 253
RTN_UNSPEC, RTN_UNICAST, RTN_LOCAL, RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT = 0, 1, 2, 6, 7, 8
REFUSING = (RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT)
RTNH_F_DEAD, RTNH_F_ONLINK = 1, 4
RTM_F_FIB_MATCH = 0x2000
RTA_DST, RTA_SRC, RTA_IIF, RTA_OIF, RTA_GATEWAY = 1, 2, 3, 4, 5
RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS, RTA_MULTIPATH, RTA_TABLE = 6, 7, 8, 9, 15
RTA_CACHEINFO, RTA_VIA, RTA_ENCAP_TYPE, RTA_ENCAP, RTA_NH_ID = 12, 18, 21, 22, 30
RTAX_MTU = 2
IP6_RT_PRIO_ADDRCONF = 256  # linux/ipv6_route.h: the metric of the routes that come with addresses
IP6_RT_PRIO_USER = 1024  # and that of a route for which none was given

# linux/if.h, linux/if_link.h, linux/if_bridge.h, linux/veth.h
IFF_UP, IFF_NOARP, IFF_MULTICAST, IFF_LOWER_UP = 1, 0x80, 0x1000, 0x10000
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER, IFLA_OPERSTATE = 1, 3, 4, 5, 10, 16
IFLA_LINKINFO, IFLA_IFALIAS, IFLA_AF_SPEC, IFLA_GROUP, IFLA_NET_NS_FD, IFLA_EXT_MASK = 18, 20, 26, 27, 28, 29
IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES, IFLA_LINK_NETNSID, IFLA_PROP_LIST, IFLA_ALT_IFNAME = 31, 32, 37, 52, 53
IFLA_PROTINFO, IFLA_TXQLEN = 12, 13
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE = 8, 1
IFLA_BR_FORWARD_DELAY, IFLA_BR_STP_STATE, IFLA_BR_VLAN_FILTERING, IFLA_BR_MCAST_SNOOPING = 1, 5, 7, 23
IFLA_BR_MULTI_BOOLOPT = 46
IFLA_BRPORT_STATE = 1
IF_OPER_UP = 6
VETH_INFO_PEER = 1
LOOPBACK = 1  # the kernel gives lo this index in every namespace

# linux/net_namespace.h
NETNSA_NSID, NETNSA_FD = 1, 3
NO_NAMESPACE_ID = -1  # NETNSA_NSID_NOT_ASSIGNED

# linux/if_link.h and, the numbers of the parameters of net/ipv4/conf, linux/ip.h, and the places of those of
# net/ipv6/conf, linux/ipv6.h
IFLA_INET_CONF, IFLA_INET6_CONF = 1, 2
IPV4_DEVCONF_FORWARDING, IPV4_DEVCONF_ACCEPT_REDIRECTS, IPV4_DEVCONF_RP_FILTER = 1, 4, 8
IPV4_DEVCONF_ARPFILTER, IPV4_DEVCONF_PROMOTE_SECONDARIES = 13, 20
DEVCONF_ACCEPT_RA, DEVCONF_ACCEPT_REDIRECTS = 3, 4

# linux/netconf.h
NETCONFA_IFINDEX, NETCONFA_FORWARDING, NETCONFA_RP_FILTER = 1, 2, 3
NETCONFA_IFINDEX_ALL = -1

# linux/if_addr.h, linux/neighbour.h
IFA_ADDRESS, IFA_LOCAL, IFA_MULTICAST = 1, 2, 7
IFA_F_NODAD, IFA_F_DADFAILED, IFA_F_DEPRECATED = 0x02, 0x08, 0x20
NDA_DST, NDA_LLADDR, NDA_VLAN, NDA_IFINDEX, NDA_MASTER, NDA_PROTOCOL = 1, 2, 5, 8, 9, 12
NTF_MASTER, NTF_PROXY, NTF_STICKY = 0x04, 0x08, 0x40
NUD_NOARP, NUD_PERMANENT = 0x40, 0x80

_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # ndmsg: family, index, state, flags, type
_NETCONF_HEAD = 4  # netconfmsg: family, padded
_RTGENMSG = 4  # rtgenmsg: family, padded
_S32 = struct.Struct("=i")


_NO_OPTIONS: Mapping[int, bytes] = MappingProxyType({})


class Link(NamedTuple):
    """What RTM_NEWLINK says of a link.  peer: IFLA_LINK, of a veth the other end's index in its namespace; 0 when there
    is none.  peer_namespace: IFLA_LINK_NETNSID, the id of that namespace in ours; NO_NAMESPACE_ID when it is ours.
    takes_advertisements: of IPv6 routers, or their redirects.  queue: IFLA_TXQLEN, None where it is not told.
    """

    ifindex: int
    flags: int
    name: str
    mtu: int
    group: int
    master: int
    peer: int
    kind: str
    alias: str
    mac: bytes
    alternative_names: tuple[str, ...]
    bridge: Mapping[int, bytes] = _NO_OPTIONS
    port: Mapping[int, bytes] = _NO_OPTIONS
    takes_advertisements: bool = False
    peer_namespace: int = NO_NAMESPACE_ID
    forwarding: int | None = None
    rp_filter: int | None = None
    queue: int | None = None


class LinkAddress(NamedTuple):
    """What RTM_NEWADDR says of an address: `interface` is the local address with its prefix length, `link` the index of
    what carries it.
    """

    ifindex: int
    flags: int
    scope: int
    interface: Interface


class Netconf(NamedTuple):
    """What RTM_NEWNETCONF says of a link's parameters of one family.  ifindex: NETCONFA_IFINDEX_ALL for those of the
    whole host.  forwarding, rp_filter: None when the message does not tell.
    """

    ifindex: int
    forwarding: int | None
    rp_filter: int | None


def family(address: Address | Interface | Network) -> int:
    """AF_INET or AF_INET6."""
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def link_body(*attributes: bytes, index: int = 0, up: bool = False, ethernet: bool = False) -> bytes:
    """Body of an RTM_*LINK message; `up` also sets the link up.  ethernet: it also has ARP and multicast."""
    flags, change = (IFF_UP, IFF_UP) if up else (0, 0)
    if ethernet:
        flags, change = flags | IFF_MULTICAST, change | IFF_MULTICAST | IFF_NOARP
    return _LINK.pack(0, 0, index, flags, change) + b"".join(attributes)


def address_body(index: int, interface: Interface, scope: int = RT_SCOPE_UNIVERSE) -> bytes:
    """Body of an RTM_*ADDR message.  Duplicate address detection is off: our allocator knows that the address is
    unique.
    """
    packed = interface.ip.packed
    flags = IFA_F_NODAD if interface.version == 6 else 0
    return (
        _ADDRESS.pack(family(interface), interface.network.prefixlen, flags, scope, index)
        + attribute(IFA_LOCAL, packed)
        + attribute(IFA_ADDRESS, packed)
    )


def address_filter(index: int = 0, kind: int = socket.AF_UNSPEC) -> bytes:
    """Body of an address dump: of one link or all, of one family or all."""
    return _ADDRESS.pack(kind, 0, 0, 0, index)


def link_filter(master: int = 0) -> bytes:
    """Body of a dump of all links, or of those on one, without their counters, which are most of the bytes."""
    skip = u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
    return link_body(skip, u32(IFLA_MASTER, master)) if master else link_body(skip)


def neighbour_body(index: int, address: Address, mac: bytes) -> bytes:
    """Body of an RTM_NEWNEIGH message for a permanent neighbour."""
    return (
        _NEIGHBOUR.pack(family(address), index, NUD_PERMANENT, 0, 0)
        + attribute(NDA_DST, address.packed)
        + attribute(NDA_LLADDR, mac)
    )


def forwarding_body(port: int, mac: bytes) -> bytes:
    """Body of an RTM_*NEIGH message for a static entry of a bridge's forwarding database.  port: link index."""
    flags = NTF_MASTER | NTF_STICKY  # whatever comes in elsewhere does not move it
    return _NEIGHBOUR.pack(socket.AF_BRIDGE, port, NUD_NOARP, flags, 0) + attribute(NDA_LLADDR, mac)


def forwarding_filter(bridge: int = 0) -> bytes:
    """Body of a dump of all forwarding databases, or of one bridge's."""
    body = _NEIGHBOUR.pack(socket.AF_BRIDGE, 0, 0, 0, 0)
    return body + u32(NDA_MASTER, bridge) if bridge else body


def parse_forwarding(body: memoryview) -> tuple[int, bytes] | None:
    """Decode the body of an RTM_NEWNEIGH message about a forwarding database: port and MAC of a static entry, the
    bridge and a MAC of its own; None for any other.
    """
    _family, index, state, _flags, _type = _NEIGHBOUR.unpack_from(body)
    found = dict(attributes(body[_NEIGHBOUR.size :])) if state in (NUD_NOARP, NUD_PERMANENT) else {}
    if not found or NDA_VLAN in found or (state == NUD_PERMANENT and number(found.get(NDA_MASTER)) != index):
        return None
    return index, bytes(found[NDA_LLADDR])


def proxy_body(index: int, address: Address, protocol: int) -> bytes:
    """Body of an RTM_*NEIGH message for a proxy: the link answers for the address of somebody else."""
    return (
        _NEIGHBOUR.pack(family(address), index, NUD_PERMANENT, NTF_PROXY, 0)
        + attribute(NDA_DST, address.packed)
        + attribute(NDA_PROTOCOL, bytes([protocol]))
    )


def proxy_filter(kind: int, index: int = 0) -> bytes:
    """Body of a dump of the proxies of a family (AF_INET, AF_INET6), on one link or all."""
    body = _NEIGHBOUR.pack(kind, 0, 0, NTF_PROXY, 0)
    return body + u32(NDA_IFINDEX, index) if index else body


def parse_proxy(body: memoryview) -> tuple[int, Address, int]:
    """Decode the body of an RTM_NEWNEIGH message about a proxy: link index, address, protocol."""
    _family, index, _state, _flags, _type = _NEIGHBOUR.unpack_from(body)
    found = dict(attributes(body[_NEIGHBOUR.size :]))
    return index, ip_address(bytes(found[NDA_DST])), found[NDA_PROTOCOL][0] if NDA_PROTOCOL in found else 0


def parse_link(body: memoryview) -> Link:
    """Decode the body of an RTM_NEWLINK message."""
    found = LinkAttributes(body)
    return Link(
        ifindex=found.index,
        flags=found.flags,
        name=found.name,
        mtu=found.mtu,
        group=found.group,
        master=found.master,
        peer=found.peer,
        kind=found.kind,
        alias=found.alias,
        mac=found.mac,
        alternative_names=found.alternative_names,
        peer_namespace=NO_NAMESPACE_ID if found.peer_namespace is None else found.peer_namespace,
        queue=found.queue,
        bridge=found.bridge_options or _NO_OPTIONS,
        port=found.port_options or _NO_OPTIONS,
        forwarding=_setting(found.ipv4, IPV4_DEVCONF_FORWARDING - 1),
        rp_filter=_setting(found.ipv4, IPV4_DEVCONF_RP_FILTER - 1),
        takes_advertisements=any(
            _setting(found.ipv6, place) for place in (DEVCONF_ACCEPT_RA, DEVCONF_ACCEPT_REDIRECTS)
        ),
    )


def ipv4_settings(values: Mapping[int, int]) -> bytes:
    """Parameters of net/ipv4/conf (IPV4_DEVCONF_*) as an attribute of a message that configures a link."""
    settings = (u32(number, value) for number, value in values.items())
    return nested(IFLA_AF_SPEC, nested(socket.AF_INET, nested(IFLA_INET_CONF, b"".join(settings))))


def _setting(values: bytes, place: int) -> int | None:
    """One parameter of the kernel's array of them."""
    if len(values) < (place + 1) * _S32.size:
        return None
    return int(_S32.unpack_from(values, place * _S32.size)[0])


def parse_port(body: memoryview) -> Link:
    """Decode the body of an RTM_NEWLINK message of family AF_BRIDGE, which is about a link as a port."""
    found = LinkAttributes(body)
    return Link(
        ifindex=found.index,
        flags=found.flags,
        name=found.name,
        mtu=found.mtu,
        group=0,
        master=found.master,
        peer=0,
        kind="",
        alias="",
        mac=found.mac,
        alternative_names=(),
        port=found.port_options or _NO_OPTIONS,
    )


def namespace_id_body(descriptor: int) -> bytes:
    """The body of an RTM_GETNSID message that asks for the id which the namespace of `descriptor` has in ours."""
    return bytes(_RTGENMSG) + u32(NETNSA_FD, descriptor)


def known_namespace_body(number: int) -> bytes:
    """The body of an RTM_GETNSID message that asks whether a namespace with that id in ours is still there: errno
    ENOENT once nobody holds it, before its links are gone.
    """
    return bytes(_RTGENMSG) + u32(NETNSA_NSID, number)


def parse_namespace_id(body: memoryview) -> int:
    """The id in an RTM_NEWNSID message; NO_NAMESPACE_ID when the namespace has none in ours."""
    value = dict(attributes(body[_RTGENMSG:])).get(NETNSA_NSID)
    return NO_NAMESPACE_ID if value is None else int(_S32.unpack(value)[0])


def link_index(body: memoryview) -> int:
    """The index in the body of an RTM_NEWLINK or RTM_DELLINK message; cheaper than all of `parse_link`."""
    return int(_LINK.unpack_from(body)[2])


def is_operational(body: memoryview) -> bool:
    """Whether an RTM_NEWLINK message says that the link passes packets; cheaper than all of `parse_link`."""
    return any(kind == IFLA_OPERSTATE and value[0] == IF_OPER_UP for kind, value in attributes(body[_LINK.size :]))


def parse_address(body: memoryview) -> LinkAddress | None:
    """Decode the body of an RTM_NEWADDR message; None when it is of neither IP family."""
    kind, prefix, flags, scope, index = _ADDRESS.unpack_from(body)
    found = dict(attributes(body[_ADDRESS.size :]))
    packed = found.get(IFA_LOCAL, found.get(IFA_ADDRESS))
    if packed is None:
        return None
    if kind == socket.AF_INET:
        return LinkAddress(index, flags, scope, IPv4Interface((bytes(packed), prefix)))
    if kind == socket.AF_INET6:
        return LinkAddress(index, flags, scope, IPv6Interface((bytes(packed), prefix)))
    return None


def parse_netconf(body: memoryview) -> Netconf:
    """Decode the body of an RTM_NEWNETCONF message."""
    sizeable = (each for each in attributes(body[_NETCONF_HEAD:]) if len(each[1]) >= 4)
    found = {kind: int(_S32.unpack(value[:4])[0]) for kind, value in sizeable}
    return Netconf(found.get(NETCONFA_IFINDEX, 0), found.get(NETCONFA_FORWARDING), found.get(NETCONFA_RP_FILTER))
