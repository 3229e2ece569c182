"""The comparison: a picture of what the layout implies has no difference, and each damage has one that names it."""

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from overlayd.inspect.comparison import compare
from overlayd.inspect.picture import SECTIONS, Address, Difference, Link, Neighbour, Picture, Role, Route, Socket
from overlayd.model import drift, objects
from overlayd.model.objects import ROUTE_PROTOCOL, Alias, Bridge, Device, Fence, Netns, Proxy, Veth

LEG = Veth(
    "veth-7-s",
    Netns(7, 8, 9),
    "eth0",
    "web",
    "zl-b",
    ip_interface("10.2.0.2/28"),
    ip_address("10.2.0.1"),
    frozenset({ip_network("0.0.0.0/0")}),
    b"\2\0\0\0\0\1",
    0,
)
GLOBAL_LEG = replace(
    LEG, name="veth-7-g", interface="eth1", service=None, bridge=None, address=ip_interface("10.1.0.9")
)
WANT = {
    thing.key: thing
    for thing in (
        Device("", "zl-g", bytes(32), 51820, 0, frozenset({ip_interface("10.1.0.1/16")})),
        Device("db", "zl-d", bytes(32), 51821, 0, frozenset({ip_interface("fd02::1/128")})),
        Bridge("web", "zl-b", ip_interface("10.2.0.1/28"), 0),
        LEG,
        GLOBAL_LEG,
        objects.Route("db", "zl-d", ip_network("fd09::/64")),
        Fence(ip_network("10.1.0.0/16")),
        Alias("zl-g", ip_address("10.1.0.7")),
        Proxy("web", "zl-b", ip_address("10.2.0.5")),
    )
}


def picture() -> Picture:
    """What the kernel shows when all is as it should be, and what is not ours to judge beside it."""
    return Picture(
        links=[
            Link("zl-g", Role("device", ""), "tun", True, 1420, "", "", ("zl-g",)),
            Link("zl-d", Role("device", "db"), "wireguard", True, 1420, "", "", ("zl-d",)),
            Link("old", Role("bridge", "web"), "bridge", True, 1420, "", "", ("old", "zl-b")),
            Link("veth-7-s", Role("veth", "veth-7-s"), "veth", True, 1420, "", "old", ("veth-7-s",)),
            Link("veth-7-g", Role("veth", "veth-7-g"), "veth", True, 1420, "", "", ("veth-7-g",)),
        ],
        addresses=[
            Address("zl-g", ip_interface("10.1.0.1/16")),
            Address("zl-g", ip_interface("10.1.0.7/32")),
            Address("zl-d", ip_interface("fd02::1/128")),
            Address("old", ip_interface("10.2.0.1/28")),
            Address("old", ip_interface("fe80::1/64")),
            Address("veth-7-s", ip_interface("fe80::2/64")),
        ],
        routes=[
            Route(ip_network("10.1.0.0/16"), "zl-g", "", 2, "unicast"),
            Route(ip_network("fd09::/64"), "zl-d", "", ROUTE_PROTOCOL, "unicast"),
            Route(ip_network("10.1.0.9"), "veth-7-g", "", ROUTE_PROTOCOL, "unicast"),
            Route(ip_network("10.1.0.0/16"), "", "", ROUTE_PROTOCOL, "unreachable"),
        ],
        neighbours=[
            Neighbour("old", "10.2.0.5", "", "proxy"),
            Neighbour("old", "10.2.0.2", "02:00:00:00:00:01", "stale"),
        ],
        sockets=[
            Socket("udp", "0.0.0.0:51820", "", "unconnected"),
            Socket("udp", "[::]:51821", "", "unconnected"),
            Socket("tcp", "10.1.0.1:53", "", "listening"),
        ],
    )


def test_a_picture_of_what_should_be_has_no_difference() -> None:
    assert compare(picture(), WANT, SECTIONS) == []


def test_nothing_is_wanted_of_an_empty_state() -> None:
    assert compare(Picture(), {}, SECTIONS) == []
    assert {each.problem for each in compare(picture(), {}, ["links"])} == {"is not wanted"}
    assert {each.object for each in compare(Picture(), WANT, ["links"])} == {
        *("device zl-g", "device zl-d", "bridge zl-b", "veth-7-s", "veth-7-g")
    }


def change(section: str, position: int, **fields: object) -> Callable[[Picture], None]:
    def damage(seen: Picture) -> None:
        rows = getattr(seen, section)
        rows[position] = replace(rows[position], **fields)

    return damage


def drop(section: str, position: int) -> Callable[[Picture], None]:
    return lambda seen: getattr(seen, section).pop(position)


def add(section: str, row: object) -> Callable[[Picture], None]:
    return lambda seen: getattr(seen, section).append(row)


@pytest.mark.parametrize(
    ("damage", "object", "problem"),
    [
        (change("links", 0, up=False), "device zl-g", "is down"),
        (change("links", 2, names=("old",)), "bridge zl-b", "is called old"),
        (change("links", 3, master=""), "veth-7-s", "is on no bridge, not on zl-b"),
        (change("links", 3, master="br0"), "veth-7-s", "is on br0, not on zl-b"),
        (change("links", 4, master="br0"), "veth-7-g", "is on br0, not on none"),
        (drop("addresses", 0), "device zl-g", "lacks its address 10.1.0.1/16"),
        (drop("addresses", 1), "device zl-g", "lacks its address 10.1.0.7/32"),
        (drop("addresses", 3), "bridge old", "lacks its address 10.2.0.1/28"),
        (
            add("addresses", Address("zl-d", ip_interface("fd02::9/64"))),
            "device zl-d",
            "has an address that is not wanted: fd02::9/64",
        ),
        (drop("routes", 1), "route fd09::/64", "is missing"),
        (drop("routes", 2), "route 10.1.0.9/32", "is missing"),
        (change("routes", 1, link="zl-g"), "route fd09::/64", "leads elsewhere"),
        (
            add("routes", Route(ip_network("10.8.0.0/16"), "zl-g", "", ROUTE_PROTOCOL, "unicast")),
            "route 10.8.0.0/16",
            "is not wanted",
        ),
        (drop("routes", 3), drift.name(Fence(ip_network("10.1.0.0/16"))), "is missing"),
        (
            add("routes", Route(ip_network("10.9.0.0/16"), "", "", ROUTE_PROTOCOL, "unreachable")),
            drift.name(Fence(ip_network("10.9.0.0/16"))),
            "is not wanted",
        ),
        (drop("neighbours", 0), "proxy for 10.2.0.5", "is missing on the bridge of service web"),
        (
            add("neighbours", Neighbour("old", "10.2.0.6", "", "proxy")),
            "proxy for 10.2.0.6",
            "is not wanted on the bridge of web",
        ),
        (drop("sockets", 1), "device zl-d", "does not listen at UDP port 51821"),
        (
            add("links", Link("veth-9-s", Role("veth", "veth-9-s"), "veth", True, 1420, "", "old", ("veth-9-s",))),
            "veth-9-s",
            "is not wanted",
        ),
    ],
)
def test_each_damage_is_told(damage: Callable[[Picture], None], object: str, problem: str) -> None:
    seen = picture()
    damage(seen)
    assert Difference(object, problem) in compare(seen, WANT, SECTIONS)


def test_a_section_that_was_not_read_is_not_compared() -> None:
    bare = picture()
    bare.routes, bare.neighbours, bare.sockets = [], [], []
    assert compare(bare, WANT, ["links", "addresses"]) == []
