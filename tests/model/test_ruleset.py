"""The scripts that make our tables, and changes of their sets."""

import re
from ipaddress import ip_address, ip_network

import pytest

from overlayd.model import ruleset, set_members
from overlayd.model.objects import Alias, Element, Step
from overlayd.model.set_changes import Change, changes

V4 = ip_address("10.200.0.5")
V6 = ip_address("fd00:200::5")


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
        *set_members.member(V4, 5, "veth-71-s"),
        *set_members.member(V6, 5),
        *set_members.member(ip_address("10.200.0.6"), 5),
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
        *set_members.cluster(network),
        *set_members.node(V4),
        *set_members.host([4], [6]),
        *set_members.member(V6, 5, "veth-71-s"),
        *set_members.port("veth-71-s", bytes(6), [V4, V6]),
        *set_members.leg("veth-71-g", [V4, V6]),
        *set_members.edge(V4, [network]),
    ]
    assert {each.set for each in made if each.family == family} <= declared


def test_removing_the_tables_works_whether_they_are_there_or_not() -> None:
    assert ruleset.removed().splitlines() == [
        "add table inet overlayd",
        "delete table inet overlayd",
        "add table bridge overlayd",
        "delete table bridge overlayd",
    ]
