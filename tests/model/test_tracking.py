"""Rules of the host that take the way back from connections to the outside."""

from dataclasses import replace
from ipaddress import ip_network

import pytest

from overlayd.model.blockers import Traffic, blockers
from overlayd.model.firewall import BaseChain, Link, Ruleset
from overlayd.model.objects import GROUP_BRIDGE

BRIDGE = Link("zl-a-web-b", GROUP_BRIDGE)
TRAFFIC = Traffic(ip_network("10.200.0.0/16"), (BRIDGE,), "eth0", frozenset({4}), (51820,), 53)
OPEN = {"limit": {"rate": 5, "per": "second"}}  # nobody knows whether it lets a packet on


def from_link(name):
    return {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": name}}


def found(*rules, traffic=TRAFFIC):
    chain = ("inet", "raw", "pre")
    return blockers([Ruleset([BaseChain(chain, "prerouting", "accept")], {chain: list(rules)})], traffic)


def codes(*rules):
    return [each.code for each in found(*rules)]


@pytest.mark.parametrize(
    ("rule", "codes"), [([{"notrack": None}], ["connections-untracked"]), ([OPEN, {"notrack": None}], [])]
)
def test_connections_that_are_not_tracked(rule, codes):
    assert [each.code for each in found(rule)] == codes
    other = [from_link("eth1"), {"notrack": None}]
    assert found(other) == []


def test_answers_that_are_not_tracked():
    rule = [from_link("eth0"), {"notrack": None}]
    assert [each.problem.split()[1] for each in found(rule)] == ["answers"]
    assert found(rule, traffic=replace(TRAFFIC, way_out="")) == []
    port = {"match": {"op": "==", "left": {"payload": {"protocol": "udp", "field": "dport"}}, "right": 51820}}
    assert found([rule[0], port, rule[1]]) == []


def zone(number, **of):
    return {"mangle": {"key": {"ct": {"key": "zone", **of}}, "value": number}}


OPAQUE = {"xt": {"type": "target", "name": "CT"}}  # as nft shows `-j CT --zone 7`, and --notrack


@pytest.mark.parametrize(
    ("rules", "severity"),
    [
        ([[from_link(BRIDGE.name), zone(7)]], "error"),
        ([[from_link("eth0"), zone(7)]], "error"),
        ([[from_link(BRIDGE.name), zone(7)], [from_link("eth0"), zone(8)]], "error"),
        ([[from_link(BRIDGE.name), OPAQUE]], "warning"),
        ([[zone(7)]], ""),
        ([[OPAQUE]], "warning"),
        ([[from_link(BRIDGE.name), zone(0)]], ""),
        ([[from_link(BRIDGE.name), zone(7, dir="original")]], ""),
        ([[from_link("eth1"), zone(7)]], ""),
        ([[OPEN, zone(7)]], ""),
    ],
)
def test_zones_of_connection_tracking(rules, severity):
    assert [(each.code, each.severity) for each in found(*rules)] == [("connections-untracked", severity)] * bool(
        severity
    )


def test_what_is_dropped_behind_a_zone_is_still_dropped():
    rules = [[from_link(BRIDGE.name), zone(7)], [from_link(BRIDGE.name), {"drop": None}]]
    assert sorted(codes(*rules)) == ["connections-untracked", "forward-blocked"]
