"""The members of our sets: how many elements things cost, and what is written in them."""

from ipaddress import IPv4Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.model import set_members
from overlayd.model.objects import Element

V4 = ip_address("10.200.0.5")
V6 = ip_address("fd00:200::5")


def test_a_member_costs_two_elements_and_two_more_on_a_bridge() -> None:
    assert set_members.member(V4, 0x1_0002) == [
        Element("inet", "network4", "10.200.0.5", "1:2"),
        Element("inet", "member4", "1:2 . 10.200.0.5"),
    ]
    assert set_members.member(V6, 5, "veth-71-s") == [
        Element("inet", "network6", "fd00:200::5", "0:5"),
        Element("inet", "member6", "0:5 . fd00:200::5"),
        Element("bridge", "network", '"veth-71-s"', "0:5"),
        Element("bridge", "member", '0:5 . "veth-71-s"'),
    ]


def test_what_a_container_may_send_costs_an_element_an_address() -> None:
    mac = bytes.fromhex("026f0ac80005")
    assert set_members.port("veth-71-s", mac, [V4, V6]) == [
        Element("bridge", "port4", '"veth-71-s" . 02:6f:0a:c8:00:05 . 10.200.0.5'),
        Element("bridge", "port6", '"veth-71-s" . 02:6f:0a:c8:00:05 . 0xfd000200000000000000000000000005'),
    ]
    assert set_members.leg("veth-71-g", [V4, V6]) == [
        Element("inet", "leg4", '"veth-71-g" . 10.200.0.5'),
        Element("inet", "leg6", '"veth-71-g" . fd00:200::5'),
    ]


def test_a_container_without_a_network_costs_nothing() -> None:
    assert set_members.member(V4, None, "veth-71-s") == []


@pytest.mark.parametrize("number", [-1, 0, 0xFFFF_FFFF])
def test_numbers_with_a_meaning_of_their_own_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match="network number"):
        set_members.member(V4, number)


def test_edge_joins_what_overlaps() -> None:
    allowed = [ip_network(text) for text in ("10.0.0.0/8", "10.1.0.0/16", "192.0.2.0/25", "192.0.2.128/25", "fd00::/8")]
    assert set_members.edge(V4, allowed) == [
        Element("inet", "edge4", "10.200.0.5"),
        Element("inet", "grant4", "10.200.0.5 . 10.0.0.0/8"),
        Element("inet", "grant4", "10.200.0.5 . 192.0.2.0/24"),
    ]
    assert [element.member for element in set_members.edge(V6, allowed)] == ["fd00:200::5", "fd00:200::5 . fd00::/8"]


def test_edge_without_grants_is_still_an_edge() -> None:
    assert set_members.edge(V4, []) == [Element("inet", "edge4", "10.200.0.5")]


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(24, 32)), max_size=8))
def test_edge_grants_cover_what_is_allowed_and_never_overlap(pairs: list[tuple[int, int]]) -> None:
    allowed = [IPv4Network((f"192.0.2.{last}", length), strict=False) for last, length in pairs]
    granted = [IPv4Network(element.member.split(" . ")[1]) for element in set_members.edge(V4, allowed)[1:]]
    assert sorted(address for network in granted for address in network) == sorted(
        {address for network in allowed for address in network}
    )
