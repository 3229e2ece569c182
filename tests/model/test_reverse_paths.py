"""Filters of reverse paths in other tables: whom they cut off, and whom they do not."""

from dataclasses import replace
from ipaddress import ip_network

import pytest

from overlayd.model.blockers import Traffic, blockers
from overlayd.model.firewall import BaseChain, Link, Ruleset
from overlayd.model.objects import GROUP_BRIDGE, GROUP_DEVICE, GROUP_VETH
from overlayd.model.reverse_paths import reverse_path_filters

LINKS = (Link("zl-a-g", GROUP_DEVICE), Link("zl-a-web-b", GROUP_BRIDGE))
ALONE = Traffic(ip_network("fd00:200::/48"), LINKS, "eth0", frozenset({4}), (51820,), 53)
JOINED = replace(ALONE, links=(*LINKS, Link("veth-71-g", GROUP_VETH)))


def fib(*flags, result="oif", right=False):
    return {"match": {"op": "==", "left": {"fib": {"result": result, "flags": [*flags]}}, "right": right}}


STRICT = fib("saddr", "mark", "iif")
LOOSE = fib("saddr", "mark")
IPV6 = {"match": {"op": "==", "left": {"meta": {"key": "nfproto"}}, "right": "ipv6"}}
RPFILTER = {"xt": {"type": "match", "name": "rpfilter"}}
LIMIT = {"limit": {"rate": 1, "per": "hour"}}
DROP, ACCEPT = {"drop": None}, {"accept": None}


def found(traffic, *rules, family="inet", table="fw", hook="prerouting"):
    chain = (family, table, "c")
    ruleset = Ruleset([BaseChain(chain, hook, "accept", priority=-290)], {chain: list(rules)}, marks=False)
    return blockers([ruleset], traffic) + reverse_path_filters([ruleset], traffic)


@pytest.mark.parametrize(
    ("rules", "severity"),
    [
        ([[IPV6, STRICT, DROP]], "error"),
        ([[STRICT, DROP]], "error"),
        ([[LOOSE, DROP]], None),
        ([[LIMIT, ACCEPT], [STRICT, DROP]], "warning"),
        ([[RPFILTER, DROP]], "hint"),
        (
            [
                [{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "veth-*"}}, ACCEPT],
                [STRICT, DROP],
            ],
            None,
        ),
        ([[{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "eth0"}}, STRICT, DROP]], None),
    ],
)
@pytest.mark.parametrize("hook", ["prerouting", "forward"])
def test_a_container_with_two_addresses(rules, severity, hook):
    told = found(JOINED, *rules, hook=hook)
    assert [(each.code, each.severity) for each in told if each.code != "forward-blocked"] == (
        [("reverse-path-filtered", severity)] if severity else []
    )
    if hook == "prerouting":
        assert [each for each in told if each.code == "forward-blocked"] == []


@pytest.mark.parametrize("rule", [STRICT, RPFILTER])
def test_without_such_a_container_nothing_is_in_the_way(rule):
    assert found(ALONE, [IPV6, rule, DROP]) == []


def test_the_remedy_is_for_its_owner():
    (of_firewalld,) = found(JOINED, [STRICT, DROP], table="firewalld")
    assert "IPv6_rpfilter=loose" in of_firewalld.remedy
    (other,) = found(JOINED, [STRICT, DROP])
    assert other.remedy.startswith("nft insert rule inet fw c iifgroup {")
    (of_iptables,) = found(JOINED, [RPFILTER, DROP], family="ip6", table="raw")
    assert of_iptables.severity == "hint"


def test_ipv4_is_not_filtered_by_a_rule_for_ipv6():
    assert found(replace(JOINED, cluster=ip_network("10.200.0.0/16")), [IPV6, STRICT, DROP]) == []
