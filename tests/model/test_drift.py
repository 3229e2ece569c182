"""Differences in words."""

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from overlayd.model import drift
from overlayd.model.objects import (
    Alias,
    Bridge,
    Device,
    DevicePeer,
    Element,
    Fence,
    Netns,
    Object,
    Proxy,
    Route,
    Step,
    Veth,
)
from overlayd.model.plan import ORDER

SECRET, OTHER = b"S" * 32, b"T" * 32
DEVICE = Device("", "zl-g", SECRET, 51820, 1420, frozenset({ip_interface("10.0.0.1/16")}))
PEER = DevicePeer("", "zl-g", b"P" * 32, (ip_address("192.0.2.1"), 1), 0, frozenset({ip_network("10.1.0.0/16")}))
BRIDGE = Bridge("web", "zl-b", ip_interface("10.2.0.1/28"), 1420)
VETH = Veth(
    "veth-7-s",
    Netns(7, 8, 9),
    "eth0",
    "web",
    "zl-b",
    ip_interface("10.2.0.2/28"),
    ip_address("10.2.0.1"),
    frozenset({ip_network("0.0.0.0/0")}),
    b"\2\0\0\0\0\1",
    1420,
)
THINGS: list[Object] = [
    DEVICE,
    PEER,
    BRIDGE,
    VETH,
    Route("own", "zl-d", ip_network("10.3.0.0/24")),
    Fence(ip_network("10.3.0.0/24")),
    Alias("zl-g", ip_address("10.0.0.9")),
    Proxy("web", "zl-b", ip_address("10.2.0.5")),
    Element("inet", "node4", "10.2.0.1"),
]


def test_every_kind_of_object_has_a_name_and_a_plural() -> None:
    assert {type(thing) for thing in THINGS} == set(ORDER) == set(drift.PLURALS)
    names = [drift.name(thing) for thing in THINGS]
    assert len(set(names)) == len(THINGS)
    assert names[:4] == ["device zl-g", "peer UFBQUFBQ of zl-g", "bridge zl-b", "veth-7-s"]


@pytest.mark.parametrize("thing", THINGS)
def test_missing_and_unwanted(thing: Object) -> None:
    assert drift.describe([Step(None, thing), Step(thing, None)]) == [
        (drift.name(thing), "is missing"),
        (drift.name(thing), "is not wanted"),
    ]


@pytest.mark.parametrize(
    ("have", "want", "words"),
    [
        (replace(BRIDGE, mtu=1300), BRIDGE, "has mtu 1300, not 1420"),
        (replace(BRIDGE, fault="it is down"), BRIDGE, "is broken: it is down"),
        (replace(DEVICE, mtu=9, fault="it is down"), DEVICE, "has mtu 9, not 1420; is broken: it is down"),
        (replace(VETH, fault="eth0 is down"), VETH, "is broken: eth0 is down"),
        (replace(BRIDGE, address=ip_interface("0.0.0.0/0")), BRIDGE, "does not have the address 10.2.0.1/28 alone"),
        (replace(BRIDGE, name="x", mtu=9), BRIDGE, "has name x, not zl-b; has mtu 9, not 1420"),
        (replace(DEVICE, addresses=frozenset()), DEVICE, "has addresses none, not 10.0.0.1/16"),
        (replace(DEVICE, private_key=OTHER), DEVICE, "has another private_key"),
        (replace(PEER, endpoint=None, device="old"), PEER, "has endpoint None, not 192.0.2.1:1"),
        (replace(VETH, service=None, bridge=None), VETH, "is not on its bridge zl-b"),
        (VETH, replace(VETH, service=None, bridge=None), "is on the bridge zl-b"),
        (replace(VETH, mac=b"\2\0\0\0\0\2"), VETH, "has mac 02:00:00:00:00:02, not 02:00:00:00:00:01"),
    ],
)
def test_differences(have: Object, want: Object, words: str) -> None:
    assert drift.problem(Step(have, want)) == words


def test_no_key_is_told() -> None:
    told = str(drift.describe([Step(None, DEVICE), Step(replace(DEVICE, private_key=OTHER), DEVICE)]))
    assert not any(str(key) in told or key.hex() in told or key.decode() in told for key in (SECRET, OTHER))


def test_many_of_a_kind_are_told_in_one() -> None:
    many = [Step(None, Element("inet", "node4", f"10.0.0.{number}")) for number in range(drift.FEW + 1)]
    assert drift.describe([*many, Step(None, BRIDGE)]) == [
        ("5 members of nftables sets", "are missing or differ"),
        ("bridge zl-b", "is missing"),
    ]
