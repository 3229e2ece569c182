"""The words of the ruleset: elements, scripts, and reading a listing back."""

import re
from ipaddress import IPv4Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.model import ruleset
from overlayd.model.objects import Alias, Element, Step
from overlayd.model.set_changes import Change, changes

V4 = ip_address("10.200.0.5")
V6 = ip_address("fd00:200::5")


def test_a_member_costs_two_elements_and_two_more_on_a_bridge() -> None:
    assert ruleset.member(V4, 0x1_0002) == [
        Element("inet", "network4", "10.200.0.5", "1:2"),
        Element("inet", "member4", "1:2 . 10.200.0.5"),
    ]
    assert ruleset.member(V6, 5, "veth-71-s") == [
        Element("inet", "network6", "fd00:200::5", "0:5"),
        Element("inet", "member6", "0:5 . fd00:200::5"),
        Element("bridge", "network", '"veth-71-s"', "0:5"),
        Element("bridge", "member", '0:5 . "veth-71-s"'),
    ]


def test_what_a_container_may_send_costs_an_element_an_address() -> None:
    mac = bytes.fromhex("026f0ac80005")
    assert ruleset.port("veth-71-s", mac, [V4, V6]) == [
        Element("bridge", "port4", '"veth-71-s" . 02:6f:0a:c8:00:05 . 10.200.0.5'),
        Element("bridge", "port6", '"veth-71-s" . 02:6f:0a:c8:00:05 . 0xfd000200000000000000000000000005'),
    ]
    assert ruleset.leg("veth-71-g", [V4, V6]) == [
        Element("inet", "leg4", '"veth-71-g" . 10.200.0.5'),
        Element("inet", "leg6", '"veth-71-g" . fd00:200::5'),
    ]


def test_a_container_without_a_network_costs_nothing() -> None:
    assert ruleset.member(V4, None, "veth-71-s") == []


@pytest.mark.parametrize("number", [-1, 0, 0xFFFF_FFFF])
def test_numbers_with_a_meaning_of_their_own_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match="network number"):
        ruleset.member(V4, number)


def test_edge_joins_what_overlaps() -> None:
    allowed = [ip_network(text) for text in ("10.0.0.0/8", "10.1.0.0/16", "192.0.2.0/25", "192.0.2.128/25", "fd00::/8")]
    assert ruleset.edge(V4, allowed) == [
        Element("inet", "edge4", "10.200.0.5"),
        Element("inet", "grant4", "10.200.0.5 . 10.0.0.0/8"),
        Element("inet", "grant4", "10.200.0.5 . 192.0.2.0/24"),
    ]
    assert [element.member for element in ruleset.edge(V6, allowed)] == ["fd00:200::5", "fd00:200::5 . fd00::/8"]


def test_edge_without_grants_is_still_an_edge() -> None:
    assert ruleset.edge(V4, []) == [Element("inet", "edge4", "10.200.0.5")]


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(24, 32)), max_size=8))
def test_edge_grants_cover_what_is_allowed_and_never_overlap(pairs: list[tuple[int, int]]) -> None:
    allowed = [IPv4Network((f"192.0.2.{last}", length), strict=False) for last, length in pairs]
    granted = [IPv4Network(element.member.split(" . ")[1]) for element in ruleset.edge(V4, allowed)[1:]]
    assert sorted(address for network in granted for address in network) == sorted(
        {address for network in allowed for address in network}
    )


def test_deletes_come_first_and_a_set_is_changed_once() -> None:
    a, b, c = (Element("inet", "network4", f"10.200.0.{last}", "0:1") for last in (1, 2, 3))
    moved = Element("inet", "network4", "10.200.0.3", "0:2")
    other = Element("bridge", "member", '0:1 . "v"')
    assert changes([Step(None, a), Step(b, None), Step(c, moved), Step(None, other), Step(a, a)]) == [
        Change(False, "inet", "network4", (b, c)),
        Change(True, "inet", "network4", (a, moved)),
        Change(True, "bridge", "member", (other,)),
    ]


def test_nothing_to_do_is_no_change() -> None:
    assert changes([]) == changes([Step(None, None)]) == []


def test_only_elements_are_changed() -> None:
    with pytest.raises(TypeError):
        changes([Step(None, Alias("wg0", V4))])


def test_the_script_with_members_adds_each_to_its_set_behind_the_rules() -> None:
    members = [
        *ruleset.member(V4, 5, "veth-71-s"),
        *ruleset.member(V6, 5),
        *ruleset.member(ip_address("10.200.0.6"), 5),
    ]
    rules, added = ruleset.fixed(), ruleset.with_members(members)
    assert added.removeprefix(rules).splitlines() == [
        "add element inet overlayd network4 { 10.200.0.5 : 0:5, 10.200.0.6 : 0:5 }",
        "add element inet overlayd member4 { 0:5 . 10.200.0.5, 0:5 . 10.200.0.6 }",
        'add element bridge overlayd network { "veth-71-s" : 0:5 }',
        'add element bridge overlayd member { 0:5 . "veth-71-s" }',
        "add element inet overlayd network6 { fd00:200::5 : 0:5 }",
        "add element inet overlayd member6 { 0:5 . fd00:200::5 }",
    ]
    assert ruleset.with_members([]) == rules


@pytest.mark.parametrize("family", ["inet", "bridge"])
def test_every_set_that_a_rule_looks_into_is_declared_and_every_member_goes_into_a_declared_one(family: str) -> None:
    script = ruleset.fixed()
    table = script[script.index(f"table {family} overlayd {{") :]
    table = table[: table.index("\n}\n")]
    declared = set(re.findall(r"^ +(?:set|map) (\w+) \{", table, re.MULTILINE))
    filled_by_packets = set(re.findall(r"^ +set (\w+) \{.* flags dynamic", table, re.MULTILINE))
    assert declared - filled_by_packets == {name for of, name in ruleset.SETS if of == family}
    assert set(re.findall(r"@([a-z]\w+)", re.sub(r"@(nh|th|ll),", "", table))) <= declared
    network = ip_network("10.200.0.0/16")
    made = [
        *ruleset.cluster(network),
        *ruleset.node(V4),
        *ruleset.host([4], [6]),
        *ruleset.member(V6, 5, "veth-71-s"),
        *ruleset.port("veth-71-s", bytes(6), [V4, V6]),
        *ruleset.leg("veth-71-g", [V4, V6]),
        *ruleset.edge(V4, [network]),
    ]
    assert {each.set for each in made if each.family == family} <= declared


def test_removing_the_tables_works_whether_they_are_there_or_not() -> None:
    assert ruleset.removed().splitlines() == [
        "add table inet overlayd",
        "delete table inet overlayd",
        "add table bridge overlayd",
        "delete table bridge overlayd",
    ]
