"""Rtnetlink messages against pyroute2: what we write it reads, what it reads from the kernel we read alike."""

import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.iproute.linux import IPRoute
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg
from throwaway import Namespace

from overlayd.linux import rtnetlink as rt
from overlayd.linux.netlink import Netlink
from overlayd.linux.route_messages import KernelRoute, parse_route, route_body, route_filter
from overlayd.model.objects import ROUTE_PROTOCOL
from overlayd.proto.netlink import attribute, nested, text, u32

indexes = st.integers(1, 2**31 - 1)
addresses = st.builds(IPv4Address, st.integers(0, 2**32 - 1)) | st.builds(IPv6Address, st.integers(0, 2**128 - 1))
interfaces = st.builds(
    lambda address, length: ip_interface((address, length % (address.max_prefixlen + 1))),
    addresses,
    st.integers(0, 128),
)
names = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_.", min_size=1, max_size=15)
macs = st.binary(min_size=6, max_size=6)


def read(kind, body: bytes):
    """A body of ours as pyroute2 reads it."""
    message = kind(struct.pack("=IHHII", 16 + len(body), 16, 0, 1, 0) + body)
    message.decode()
    return message


def parsed(text: str | None):
    """An address of pyroute2's, which has texts of its own for some: "::0.1.0.0" is "::1:0"."""
    return None if text is None else ip_address(text)


@given(indexes, names, st.integers(68, 65535), st.integers(0, 2**32 - 1), macs, st.text(max_size=60), st.booleans())
def test_a_link(index, name, mtu, group, mac, alias, up) -> None:  # noqa: PLR0917
    alias = alias.replace("\0", "")
    body = rt.link_body(
        text(rt.IFLA_IFNAME, name),
        u32(rt.IFLA_MTU, mtu),
        u32(rt.IFLA_GROUP, group),
        attribute(rt.IFLA_ADDRESS, mac),
        text(rt.IFLA_IFALIAS, alias),
        nested(rt.IFLA_LINKINFO, text(rt.IFLA_INFO_KIND, "bridge")),
        index=index,
        up=up,
    )
    shown = read(ifinfmsg, body)
    assert (shown["index"], shown["flags"] & 1, shown["change"]) == (index, up, up)
    assert (shown.get("ifname"), shown.get("mtu"), shown.get("group")) == (name, mtu, group)
    assert (shown.get("address"), shown.get("ifalias")) == (mac.hex(":"), alias)
    assert shown.get(("linkinfo", "kind")) == "bridge"


@given(names, names, macs, st.integers(0, 2**31 - 1))
def test_a_veth_with_its_peer_inside(name, inner, mac, descriptor) -> None:
    peer = rt.link_body(
        text(rt.IFLA_IFNAME, inner), u32(rt.IFLA_NET_NS_FD, descriptor), attribute(rt.IFLA_ADDRESS, mac)
    )
    data = nested(rt.IFLA_INFO_DATA, attribute(rt.VETH_INFO_PEER, peer))
    kind = nested(rt.IFLA_LINKINFO, text(rt.IFLA_INFO_KIND, "veth"), data)
    shown = read(ifinfmsg, rt.link_body(text(rt.IFLA_IFNAME, name), kind))
    end = shown.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA", "VETH_INFO_PEER")
    assert (end.get_attr("IFLA_IFNAME"), end.get_attr("IFLA_ADDRESS")) == (inner, mac.hex(":"))
    assert end.get_attr("IFLA_NET_NS_FD") == descriptor


@given(indexes, interfaces)
def test_an_address(index, interface) -> None:
    shown = read(ifaddrmsg, rt.address_body(index, interface))
    assert (shown["index"], shown["family"]) == (index, rt.family(interface))
    assert shown["prefixlen"] == interface.network.prefixlen
    assert parsed(shown.get("address")) == parsed(shown.get("local")) == interface.ip


@given(st.integers(0, 2**31 - 1), interfaces, st.none() | addresses, st.integers(0, 255))
def test_a_route(index, interface, gateway, protocol) -> None:
    destination = interface.network
    if gateway is not None and gateway.version != destination.version:
        gateway = None
    shown = read(rtmsg, route_body(index, destination, protocol, gateway))
    assert (shown["family"], shown["dst_len"]) == (rt.family(destination), destination.prefixlen)
    assert (shown["table"], shown["proto"], shown["type"]) == (254, protocol, 1)
    assert parsed(shown.get("dst")) == (destination.network_address if destination.prefixlen else None)
    assert parsed(shown.get("gateway")) == gateway
    assert shown.get("oif") == (index or None)


@given(indexes, addresses, macs, st.integers(0, 255))
def test_a_neighbour_and_a_proxy(index, address, mac, protocol) -> None:
    shown = read(ndmsg, rt.neighbour_body(index, address, mac))
    assert (shown["ifindex"], shown["state"], shown["flags"]) == (index, 0x80, 0)
    assert (parsed(shown.get("dst")), shown.get("lladdr")) == (address, mac.hex(":"))
    shown = read(ndmsg, rt.proxy_body(index, address, protocol))
    assert (shown["ifindex"], shown["flags"], parsed(shown.get("dst"))) == (index, 0x08, address)
    assert shown.get("protocol") == protocol


# --- what the kernel says, read by both -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def space() -> Iterator[Namespace]:
    """A namespace with a link of every kind that we meet, addresses, and routes of every form."""
    with Namespace() as namespace:
        namespace.ip(
            "link add br0 address 02:00:00:00:00:07 mtu 1333 group 1870004226 type bridge",
            "link set br0 alias 'overlayd bridge web'",
            "link property add dev br0 altname other altname third",
            "link add v0 type veth peer name v1",
            "link set v0 master br0 up",
            "link set v1 up",
            "link set br0 up",
            "tuntap add dev tun0 mode tun",
            "link set tun0 up",
            "link add d0 type veth peer name d1",
            "link set d0 up",
            "link set d1 up",
            "address add 10.1.0.1/16 dev br0",
            "address add 10.1.0.9/32 dev br0",
            "address add 192.0.2.1 peer 192.0.2.2/32 dev d0",
            "address add fd01::1/64 dev br0 nodad",
            f"route add 10.5.0.0/16 dev br0 proto {ROUTE_PROTOCOL}",
            "route add 10.6.0.0/16 via 10.1.0.7 metric 77 mtu 1300 src 10.1.0.9",
            "route add 10.7.0.0/16 nexthop via 10.1.0.7 nexthop via 10.1.0.8",
            "route add default via 10.1.0.7",
            f"route add fd05::/64 dev br0 proto {ROUTE_PROTOCOL}",
            "route add fd06::/64 via fd01::7 metric 9",
            f"neigh add proxy 10.1.0.77 dev br0 proto {ROUTE_PROTOCOL}",
            f"neigh add proxy fd01::77 dev br0 proto {ROUTE_PROTOCOL}",
        )
        yield namespace


@pytest.fixture(scope="module")
def oracle(space: Namespace) -> Iterator[IPRoute]:
    with IPRoute(netns=space.name, flags=0) as route:
        yield route


@pytest.fixture
def ours(space: Namespace) -> Iterator[Netlink]:
    with space.entered(), Netlink() as netlink:
        yield netlink


def test_both_read_the_same_links(ours: Netlink, oracle: IPRoute) -> None:
    found = {link.ifindex: link for link in map(rt.parse_link, ours.dump("list", rt.RTM_GETLINK, rt.link_filter()))}
    theirs = {message["index"]: message for message in oracle.get_links()}
    assert found.keys() == theirs.keys()
    assert len(found) >= 6
    for index, message in theirs.items():
        link = found[index]
        assert (link.name, link.mtu, link.group) == (message.get("ifname"), message.get("mtu"), message.get("group"))
        assert link.flags == message["flags"]
        assert link.kind == (message.get(("linkinfo", "kind")) or "")
        assert link.alias == (message.get("ifalias") or "")
        assert link.mac.hex(":") == (message.get("address") or "")
        assert (link.master, link.peer) == (message.get("master") or 0, message.get("link") or 0)
        properties = message.get("prop_list")
        named = properties.get_attrs("IFLA_ALT_IFNAME") if properties is not None else []
        assert link.alternative_names == tuple(named)


def test_both_read_the_same_addresses(ours: Netlink, oracle: IPRoute) -> None:
    bodies = ours.dump("list", rt.RTM_GETADDR, rt.address_filter())
    found = {
        (each.ifindex, str(each.interface), each.scope) for each in map(rt.parse_address, bodies) if each is not None
    }
    theirs = {
        (
            message["index"],
            f"{message.get('local') or message.get('address')}/{message['prefixlen']}",
            message["scope"],
        )
        for message in oracle.get_addr()
    }
    assert found == theirs
    assert len(found) >= 6


def test_both_read_the_same_routes(ours: Netlink, oracle: IPRoute) -> None:
    bodies = ours.dump("list", rt.RTM_GETROUTE, route_filter())
    found = {_ours(each) for each in map(parse_route, bodies) if each is not None and each.table == rt.RT_TABLE_MAIN}
    theirs = {_theirs(message) for message in oracle.get_routes(table=rt.RT_TABLE_MAIN) if message["type"] == 1}
    assert found == theirs
    assert len(found) >= 10


def _ours(route: KernelRoute):
    return (
        str(route.destination),
        route.protocol,
        route.scope,
        str(route.gateway) if route.gateway else None,
        str(route.source) if route.source else None,
        route.metric,
        route.mtu,
        tuple(index for index, _ in route.hops),
    )


def _theirs(message):
    anywhere = "::" if message["family"] == socket.AF_INET6 else "0.0.0.0"
    metrics = message.get("metrics")
    hops = [message.get("oif")] if message.get("oif") else []
    hops += [hop["oif"] for hop in message.get("multipath") or ()]
    return (
        f"{message.get('dst') or anywhere}/{message['dst_len']}",
        message["proto"],
        message["scope"],
        message.get("gateway"),
        message.get("prefsrc"),
        message.get("priority") or 0,
        (metrics.get_attr("RTAX_MTU") or 0) if metrics is not None else 0,
        tuple(hops),
    )


def test_both_read_the_same_proxies(ours: Netlink, oracle: IPRoute) -> None:
    for family in (socket.AF_INET, socket.AF_INET6):
        bodies = ours.dump("list", rt.RTM_GETNEIGH, rt.proxy_filter(family))
        found = {(index, str(address), protocol) for index, address, protocol in map(rt.parse_proxy, bodies)}
        theirs = {
            (message["ifindex"], message.get("dst"), message.get("protocol"))
            for message in oracle.neigh("dump", family=family, flags=0x08, dump_filter=lambda message: True)
        }
        assert found == theirs
        assert len(found) == 1
