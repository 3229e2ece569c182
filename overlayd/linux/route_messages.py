"""Rtnetlink messages about routes: bodies of requests, and what the kernel says of a route.

Owns: the layouts.  Must not know: how messages travel (`netlink`), when they are sent, the objects of the model.

Sources: linux/rtnetlink.h, whose numbers are in `rtnetlink`.  Addresses are in network byte order.
"""

import socket
import struct
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from typing import NamedTuple

from overlayd._fast import addresses
from overlayd.linux import rtnetlink as rt
from overlayd.model.objects import Address, Interface, Network
from overlayd.proto.netlink import attribute, attributes, number, u32

_ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg: family, dst length, src length, tos, table, protocol, scope, type, flags
_NEXTHOP = struct.Struct("=HBBi")  # rtnexthop: length, flags, hops, index


class KernelRoute(NamedTuple):
    """What RTM_NEWROUTE says of a route.  hops: (link index, RTNH_F_* flags) of each next hop.  gateways: the router of
    each, None where there is none; gateway: that of a route with one.  mtu: of the route, 0 when it has none.
    """

    destination: Network
    table: int
    protocol: int
    scope: int
    type: int
    gateway: Address | None
    source: Address | None
    metric: int
    mtu: int
    hops: tuple[tuple[int, int], ...]
    gateways: tuple[Address | None, ...] = ()


def route_filter(protocol: int = rt.RTPROT_UNSPEC, kind: int = rt.RTN_UNICAST, index: int = 0) -> bytes:
    """Body of a dump of the main table's routes of one kind (RTN_*): of one protocol, or of all; through one link, or
    any.
    """
    body = _ROUTE.pack(0, 0, 0, 0, rt.RT_TABLE_MAIN, protocol, 0, kind, 0)
    return body + u32(rt.RTA_OIF, index) if index else body


def table_filter(table: int) -> bytes:
    """Body of a dump of all routes of a table."""
    return _ROUTE.pack(0, 0, 0, 0, 0, 0, 0, 0, 0) + u32(rt.RTA_TABLE, table)


def lookup_body(
    address: Address, flags: int = 0, *, index: int = 0, incoming: int = 0, source: Address | None = None
) -> bytes:
    """Body of an RTM_GETROUTE that asks for the route to one address.  flags: with RTM_F_FIB_MATCH the answer is the
    route as it stands in its table, else it is the way that a packet to the address would take.  index: of the link
    that it has to be on, 0 = any.  incoming, source: of the link that it came by, and whom it is from; 0 and None for a
    packet of the host's own.
    """
    length = source.max_prefixlen if source is not None else 0
    body = _ROUTE.pack(rt.family(address), address.max_prefixlen, length, 0, 0, 0, 0, 0, flags)
    body += attribute(rt.RTA_DST, address.packed)
    if source is not None:
        body += attribute(rt.RTA_SRC, source.packed)
    if incoming:
        body += u32(rt.RTA_IIF, incoming)
    return body + u32(rt.RTA_OIF, index) if index else body


def route_body(
    index: int, destination: Network, protocol: int, gateway: Address | None = None, source: Address | None = None
) -> bytes:
    """Body of an RTM_*ROUTE message for a unicast route in the main table: through `gateway`, else on-link.  index: of
    the link, 0 = any.  source: that the kernel prefers, None for what it chooses.
    """
    scope = rt.RT_SCOPE_LINK if gateway is None and destination.version == 4 else rt.RT_SCOPE_UNIVERSE
    body = _ROUTE.pack(
        rt.family(destination), destination.prefixlen, 0, 0, rt.RT_TABLE_MAIN, protocol, scope, rt.RTN_UNICAST, 0
    )
    if index:
        body += u32(rt.RTA_OIF, index)
    if destination.prefixlen:
        body += attribute(rt.RTA_DST, destination.network_address.packed)
    if gateway is not None:
        body += attribute(rt.RTA_GATEWAY, gateway.packed)
    if source is not None:
        body += attribute(rt.RTA_PREFSRC, source.packed)
    return body


def unreachable_route_body(destination: Network, protocol: int, metric: int) -> bytes:
    """Body of an RTM_*ROUTE message for a route in the main table that leads nowhere: the sender is told so."""
    scope, kind = rt.RT_SCOPE_UNIVERSE, rt.RTN_UNREACHABLE
    body = _ROUTE.pack(rt.family(destination), destination.prefixlen, 0, 0, rt.RT_TABLE_MAIN, protocol, scope, kind, 0)
    if destination.prefixlen:
        body += attribute(rt.RTA_DST, destination.network_address.packed)
    return body + u32(rt.RTA_PRIORITY, metric)


def connected_route_body(index: int, interface: Interface) -> bytes:
    """Body of an RTM_NEWROUTE message for the route to the link's network that the kernel itself makes of an address
    (net/ipv4/fib_frontend.c, fib_add_ifaddr; net/ipv6/addrconf.c, addrconf_prefix_route).
    """
    body = route_body(index, interface.network, rt.RTPROT_KERNEL)
    if interface.version == 4:
        return body + attribute(rt.RTA_PREFSRC, interface.ip.packed)
    return body + u32(rt.RTA_PRIORITY, rt.IP6_RT_PRIO_ADDRCONF)


def moved_route_body(body: memoryview, table: int) -> bytes:
    """Body of an RTM_*ROUTE message for the route of an RTM_NEWROUTE message, as it is, in another table."""
    kind, prefix, source, tos, _table, protocol, scope, type_, flags = _ROUTE.unpack_from(body)
    found = list(attributes(body[_ROUTE.size :]))
    left_out = {rt.RTA_TABLE, rt.RTA_CACHEINFO}
    if any(kind == rt.RTA_NH_ID for kind, _value in found):  # what follows is told for those who do not know nexthops
        left_out |= {rt.RTA_OIF, rt.RTA_GATEWAY, rt.RTA_VIA, rt.RTA_MULTIPATH, rt.RTA_ENCAP_TYPE, rt.RTA_ENCAP}
    head = _ROUTE.pack(kind, prefix, source, tos, 0, protocol, scope, type_, flags & rt.RTNH_F_ONLINK)
    kept = (attribute(kind, bytes(value)) for kind, value in found if kind not in left_out)
    return head + b"".join(kept) + u32(rt.RTA_TABLE, table)


def parse_route(body: memoryview) -> KernelRoute | None:
    """Decode the body of an RTM_NEWROUTE message; None when it is of neither IP family."""
    kind, prefix, _src, _tos, table, protocol, scope, type_, flags = _ROUTE.unpack_from(body)
    if kind not in (socket.AF_INET, socket.AF_INET6):
        return None
    found = dict(attributes(body[_ROUTE.size :]))
    packed = bytes(found.get(rt.RTA_DST, bytes(4 if kind == socket.AF_INET else 16)))
    metrics = dict(attributes(found[rt.RTA_METRICS])) if rt.RTA_METRICS in found else {}
    gateway = _gateway(found)
    hops = [(number(found[rt.RTA_OIF]), flags, gateway)] if rt.RTA_OIF in found else []
    if rt.RTA_MULTIPATH in found:
        hops += _nexthops(found[rt.RTA_MULTIPATH])
    return KernelRoute(
        destination=addresses.of_bytes(packed, prefix),
        table=number(found[rt.RTA_TABLE]) if rt.RTA_TABLE in found else table,
        protocol=protocol,
        scope=scope,
        type=type_,
        gateway=gateway,
        source=ip_address(bytes(found[rt.RTA_PREFSRC])) if rt.RTA_PREFSRC in found else None,
        metric=number(found.get(rt.RTA_PRIORITY)),
        mtu=number(metrics.get(rt.RTAX_MTU)),
        hops=tuple((index, flags) for index, flags, _gateway in hops),
        gateways=tuple(gateway for _index, _flags, gateway in hops),
    )


def is_local_route(body: memoryview) -> bool:
    """Whether an RTM_NEWROUTE message is about an address of the host's own; cheaper than all of `parse_route`."""
    return int(_ROUTE.unpack_from(body)[7]) == rt.RTN_LOCAL


def prefix_length(body: memoryview) -> int:
    """The length of an RTM_NEWROUTE message's prefix; cheap, where there may be a million routes."""
    return body[1]


def _nexthops(data: memoryview) -> Iterator[tuple[int, int, Address | None]]:
    while len(data) >= _NEXTHOP.size:
        size, flags, _weight, index = _NEXTHOP.unpack_from(data)
        yield index, flags, _gateway(dict(attributes(data[_NEXTHOP.size : size])))
        data = data[max(size + 3 & ~3, _NEXTHOP.size) :]


def _gateway(found: Mapping[int, memoryview]) -> Address | None:
    """RTA_VIA is one of the other family, as in "default via inet6 fe80::1"."""
    packed = found[rt.RTA_VIA][2:] if rt.RTA_VIA in found else found.get(rt.RTA_GATEWAY)
    return ip_address(bytes(packed)) if packed is not None else None
