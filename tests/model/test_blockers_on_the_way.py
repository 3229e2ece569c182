"""What other tables do by marks and kinds of frames, and to what containers send to the outside."""

from dataclasses import replace
from ipaddress import ip_network

import pytest

from overlayd.model.blockers import Traffic, blockers
from overlayd.model.firewall import BaseChain, Link, Ruleset, together
from overlayd.model.iptables import legacy
from overlayd.model.objects import GROUP_BRIDGE, GROUP_DEVICE

LINKS = (Link("zl-a-g", GROUP_DEVICE), Link("zl-a-web-b", GROUP_BRIDGE))
TRAFFIC = Traffic(ip_network("10.200.0.0/16"), LINKS, "eth0", frozenset({4}), (51820,), 53)
GROUPS = "{ 0x6f760001, 0x6f760002, 0x6f760003 }"


def link(key, name):
    return {"match": {"op": "==", "left": {"meta": {"key": key}}, "right": name}}


def ruleset(family, table, name, hook, *rules):
    chain = (family, table, name)
    return Ruleset([BaseChain(chain, hook, "accept")], {chain: list(rules)})


MARK = {"meta": {"key": "mark"}}
UNMARKED = [{"match": {"op": "!=", "left": MARK, "right": 1}}, {"drop": None}]
A_BIT = [{"match": {"op": "==", "left": {"&": [MARK, 0x8000]}, "right": 0x8000}}, {"drop": None}]
LIMIT = {"limit": {"rate": 1, "per": "hour"}}


def marking(hook, priority, mark, *conditions):
    """A chain that marks packets."""
    chain = ("inet", "other", f"{hook}{priority}")
    rules = [*conditions, {"mangle": {"key": mark[0], "value": mark[1]}}]
    return Ruleset([BaseChain(chain, hook, "accept", priority=priority)], {chain: [rules]})


@pytest.mark.parametrize(
    ("others", "rule", "severity"),
    [
        ([], UNMARKED, "error"),
        ([], A_BIT, None),
        ([marking("prerouting", -150, (MARK, 1))], UNMARKED, None),
        ([marking("prerouting", -150, (MARK, 1), LIMIT)], UNMARKED, "hint"),
        ([marking("prerouting", -150, (MARK, 0x8001))], A_BIT, "error"),
        ([marking("forward", -150, (MARK, 0x8001), link("iifname", "zl-*"))], A_BIT, "error"),
        ([marking("forward", 150, (MARK, 0x8001))], A_BIT, None),
        ([marking("prerouting", -150, (MARK, 0x8001), link("iifname", "docker0"))], A_BIT, None),
        ([marking("prerouting", -150, (MARK, 0x8000), LIMIT)], A_BIT, "hint"),
        ([marking("output", -150, (MARK, 0x8000))], A_BIT, None),
    ],
)
def test_what_is_for_marked_packets_drops_ours_if_they_carry_that_mark(others, rule, severity):
    rules = replace(ruleset("inet", "fw", "f", "forward", rule), marks=False)
    rules = replace(together([rules, *others]), marks=bool(others))
    assert [each.severity for each in blockers([rules], TRAFFIC)] == ([severity] if severity else [])


CT_MARK = {"ct": {"key": "mark"}}
BY_CT_MARK = [{"match": {"op": "==", "left": CT_MARK, "right": 7}}, {"drop": None}]
TO_UPLINK = [link("oifname", "eth0"), link("iifname", "zl-*"), {"drop": None}]


@pytest.mark.parametrize(
    ("chain", "others", "remedy"),
    [
        (("inet", "fw", "p", "postrouting", TO_UPLINK), [], f"nft insert rule inet fw p iifgroup {GROUPS} accept"),
        (
            ("ip", legacy("mangle"), "POSTROUTING", "postrouting", [link("oifname", "eth0"), {"drop": None}]),
            [],
            "iptables-legacy -t mangle -I POSTROUTING -s 10.200.0.0/16 -j ACCEPT",
        ),
        (
            ("inet", "fw", "p", "postrouting", [link("oifname", "eth0"), *BY_CT_MARK]),
            [marking("prerouting", -150, (CT_MARK, 7), link("iifname", "zl-*"))],
            f"nft insert rule inet fw p iifgroup {GROUPS} accept",
        ),
        (
            ("inet", "fw", "p", "prerouting", [link("iifname", "eth0"), {"drop": None}]),
            [],
            "nft insert rule inet fw p ct state established,related accept",
        ),
    ],
)
def test_containers_are_kept_from_the_outside_alone(chain, others, remedy):
    rules = together([ruleset(*chain), *others])
    finding = next(each for each in blockers([rules], TRAFFIC) if each.code == "forward-blocked")
    assert (finding.severity, finding.remedy) == ("error", remedy)
    assert "outside" in finding.problem and finding.symptom == "containers do not reach the outside"


@pytest.mark.parametrize(
    ("left", "right", "codes"),
    [
        ({"payload": {"protocol": "ether", "field": "type"}}, 8, ["forward-blocked"]),
        ({"payload": {"protocol": "ether", "field": "type"}}, "ip", ["forward-blocked"]),
        ({"payload": {"protocol": "ether", "field": "type"}}, 56710, []),
        ({"meta": {"key": "protocol"}}, 0x0800, ["forward-blocked"]),
        ({"meta": {"key": "protocol"}}, "ip6", []),
        ({"meta": {"key": "protocol"}}, "arp", ["arp-blocked"]),
        ({"payload": {"protocol": "ether", "field": "type"}}, 0x0608, ["arp-blocked"]),
    ],
)
def test_frames_are_judged_by_their_type(left, right, codes):
    rule = [{"match": {"op": "==", "left": left, "right": right}}, {"drop": None}]
    found = blockers([ruleset("bridge", "fw", "f", "prerouting", rule)], TRAFFIC)
    assert [(each.code, each.severity) for each in found] == [(code, "error") for code in codes]
