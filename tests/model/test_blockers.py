"""Which chains keep our traffic out, and the words for it: one owner of chains after the other.

That each piece of advice helps is shown where nft and iptables run (`tests/linux/test_blockers.py`).
"""

from dataclasses import replace
from ipaddress import ip_network

import pytest

from overlayd.model.blockers import Traffic, blockers, unseen
from overlayd.model.firewall import BaseChain, Link, Ruleset
from overlayd.model.iptables import legacy
from overlayd.model.objects import GROUP_BRIDGE, GROUP_DEVICE, GROUP_VETH, NFT_TABLE

DEVICE, BRIDGE, LEG = Link("zl-a-g", GROUP_DEVICE), Link("zl-a-web-b", GROUP_BRIDGE), Link("veth-7-g", GROUP_VETH)
TRAFFIC = Traffic(ip_network("10.200.0.0/16"), (DEVICE, BRIDGE), "eth0", frozenset({4}), (51820,), 53)
TRAFFIC6 = replace(TRAFFIC, cluster=ip_network("fd00::/48"), underlay=frozenset({6}))
OPEN = {"limit": {"rate": 5, "per": "second"}}  # nobody knows whether it lets a packet on
GROUPS = "{ 0x6f760001, 0x6f760002, 0x6f760003 }"


def link(key, name):
    return {"match": {"op": "==", "left": {"meta": {"key": key}}, "right": name}}


def ruleset(family, table, name, hook, *rules, policy="drop"):
    chain = (family, table, name)
    return Ruleset([BaseChain(chain, hook, policy)], {chain: list(rules)})


def found(*chain, traffic=TRAFFIC, policy="drop"):
    """What is found in the one chain, by code."""
    return {each.code: each for each in blockers([ruleset(*chain, policy=policy)], traffic)}


@pytest.mark.parametrize(
    "chain",
    [
        ("inet", NFT_TABLE, "forward", "forward"),
        ("arp", "fw", "f", "forward"),
        ("ip6", "fw", "f", "forward"),
        ("ip6", "fw", "in", "input"),
        ("ip6", "fw", "out", "output"),
        ("ip6", "fw", "pre", "prerouting"),
        ("netdev", "fw", "f", "forward"),
        ("netdev", "fw", "in", "ingress"),
        ("inet", "fw", "x", "unheard-of"),
        ("bridge", "fw", "x", "unheard-of"),
    ],
)
def test_what_our_traffic_does_not_meet(chain):
    assert found(*chain) == {}


@pytest.mark.parametrize(
    ("chain", "remedy"),
    [
        (
            ("inet", "fw", "f"),
            f"nft insert rule inet fw f iifgroup {GROUPS} accept; nft insert rule inet fw f oifgroup {GROUPS} accept",
        ),
        (
            ("inet", "firewalld", "filter_FORWARD"),
            "firewall-cmd --permanent --zone=trusted --add-interface=zl-+; firewall-cmd --reload",
        ),
        (
            ("ip", "filter", "FORWARD"),
            "iptables -I FORWARD -i zl-+ -j ACCEPT; iptables -I FORWARD -o zl-+ -j ACCEPT (or, the same, nft insert"
            " rule ip filter FORWARD iifname zl-* counter accept; nft insert rule ip filter FORWARD oifname zl-*"
            " counter accept)",
        ),
        (
            ("ip", "mangle", "FORWARD"),
            "iptables -t mangle -I FORWARD -i zl-+ -j ACCEPT; iptables -t mangle -I FORWARD -o zl-+ -j ACCEPT (or, the"
            " same, nft insert rule ip mangle FORWARD iifname zl-* counter accept; nft insert rule ip mangle FORWARD"
            " oifname zl-* counter accept)",
        ),
        (
            ("ip", legacy("filter"), "FORWARD"),
            "iptables-legacy -I FORWARD -i zl-+ -j ACCEPT; iptables-legacy -I FORWARD -o zl-+ -j ACCEPT",
        ),
        (
            ("ip", legacy("mangle"), "FORWARD"),
            "iptables-legacy -t mangle -I FORWARD -i zl-+ -j ACCEPT; iptables-legacy -t mangle -I FORWARD -o zl-+ -j"
            " ACCEPT",
        ),
        (
            ("bridge", "filter", "FORWARD"),
            "ebtables -I FORWARD -i veth-+ -j ACCEPT; ebtables -I FORWARD -o veth-+ -j ACCEPT",
        ),
    ],
)
def test_the_advice_is_in_the_language_of_who_owns_the_chain(chain, remedy):
    finding = found(*chain, "forward")["forward-blocked"]
    assert (finding.severity, finding.remedy) == ("error", remedy)
    assert finding.problem == "has policy drop, and so keeps the overlay from forwarding"


def test_legacy_iptables_has_no_table_of_nft():
    finding = found("ip6", legacy("filter"), "FORWARD", "forward", traffic=TRAFFIC6)["forward-blocked"]
    assert finding.object == "chain FORWARD of the table filter of legacy ip6tables"
    assert finding.remedy.startswith("ip6tables-legacy -I FORWARD")


def test_only_the_ways_that_are_missing_are_advised():
    """What comes from our links passes; what goes to them from elsewhere does not."""
    finding = found("ip", "fw", "f", "forward", [link("iifname", "zl-*"), {"accept": None}])["forward-blocked"]
    assert finding.remedy == f"nft insert rule ip fw f oifgroup {GROUPS} accept"


def test_a_container_of_the_global_overlay_has_links_of_its_own_name():
    traffic = replace(TRAFFIC, links=(*TRAFFIC.links, LEG))
    remedy = found("ip", legacy("filter"), "FORWARD", "forward", traffic=traffic)["forward-blocked"].remedy
    assert "-i veth-+ -j ACCEPT" in remedy and "-i zl-+ -j ACCEPT" in remedy


@pytest.mark.parametrize(("way_out", "codes"), [("eth0", []), ("", ["forward-blocked", "wireguard-blocked"])])
def test_a_rule_for_the_uplink_helps_where_there_is_one(way_out, codes):
    """Without a way out, tunnels may come, and packets go, through any link."""
    rules = [[link("iifname", name), {"accept": None}] for name in ("eth0", "zl-*")]
    traffic = replace(TRAFFIC, way_out=way_out)
    found = blockers([ruleset("ip", "fw", name, name, *rules) for name in ("forward", "input")], traffic)
    assert [each.code for each in found] == codes


@pytest.mark.parametrize(
    ("rules", "policy", "severity", "problem"),
    [
        ([[{"reject": None}]], "accept", "error", "rejects"),
        ([[{"drop": None}]], "accept", "error", "drops"),
        ([], "drop", "error", "has policy drop"),
        ([[OPEN, {"accept": None}], [{"drop": None}]], "accept", "warning", "drops"),
        ([[OPEN, {"accept": None}]], "drop", "warning", "has policy drop"),
    ],
)
@pytest.mark.parametrize("hook", ["forward", "input"])
def test_what_an_open_condition_may_let_pass_is_a_warning(hook, rules, policy, severity, problem):
    findings = found("inet", "fw", "c", hook, *rules, policy=policy)
    assert set(findings) == ({"forward-blocked"} if hook == "forward" else {"wireguard-blocked", "dns-blocked"})
    for finding in findings.values():
        assert finding.problem.startswith(f"{problem}, and so ")
        if finding.code != "dns-blocked":
            assert finding.severity == severity
            assert finding.symptom.startswith("only ") == (severity == "warning")


def test_nobody_asks_a_name_server_that_is_off():
    assert set(found("inet", "fw", "i", "input", traffic=replace(TRAFFIC, dns=0))) == {"wireguard-blocked"}


@pytest.mark.parametrize(
    ("chain", "tunnels", "names"),
    [
        (
            ("inet", "fw", "i"),
            "nft insert rule inet fw i udp dport 51820 accept",
            "nft insert rule inet fw i iifgroup 0x6f760002 udp dport 53 accept; "
            "nft insert rule inet fw i iifgroup 0x6f760002 tcp dport 53 accept",
        ),
        (
            ("inet", "firewalld", "filter_INPUT"),
            "firewall-cmd --permanent --add-port=51820/udp; firewall-cmd --reload",
            "firewall-cmd --permanent --zone=trusted --add-interface=zl-+; firewall-cmd --reload (or open the port in"
            " their zone: firewall-cmd --permanent --zone=ZONE --add-port=53/udp --add-port=53/tcp)",
        ),
        (
            ("ip", "filter", "INPUT"),
            "iptables -I INPUT -p udp --dport 51820 -j ACCEPT",
            "iptables -I INPUT -i zl-+ -p udp --dport 53 -j ACCEPT; iptables -I INPUT -i zl-+ -p tcp --dport 53"
            " -j ACCEPT",
        ),
        (
            ("ip", "raw", "INPUT"),
            "iptables -t raw -I INPUT -p udp --dport 51820 -j ACCEPT",
            "iptables -t raw -I INPUT -i zl-+ -p udp --dport 53 -j ACCEPT; iptables -t raw -I INPUT -i zl-+ -p tcp"
            " --dport 53 -j ACCEPT",
        ),
        (
            ("ip", legacy("filter"), "INPUT"),
            "iptables-legacy -I INPUT -p udp --dport 51820 -j ACCEPT",
            "iptables-legacy -I INPUT -i zl-+ -p udp --dport 53 -j ACCEPT; iptables-legacy -I INPUT -i zl-+ -p tcp"
            " --dport 53 -j ACCEPT",
        ),
    ],
)
def test_what_is_to_be_let_in(chain, tunnels, names):
    findings = found(*chain, "input")
    assert findings["wireguard-blocked"].remedy == tunnels
    assert findings["dns-blocked"].remedy == names


@pytest.mark.parametrize(
    ("chain", "remedy"),
    [
        (("inet", "fw", "i"), "nft insert rule inet fw i udp dport { 51820, 51821 } accept"),
        (("ip", "filter", "INPUT"), "iptables -I INPUT -p udp -m multiport --dports 51820,51821 -j ACCEPT"),
        (
            ("inet", "firewalld", "filter_INPUT"),
            "firewall-cmd --permanent --add-port=51820/udp --add-port=51821/udp; firewall-cmd --reload",
        ),
    ],
)
def test_a_node_of_several_devices(chain, remedy):
    traffic = replace(TRAFFIC, wireguard=(51820, 51821), underlay=frozenset({4, 6}))
    finding = found(*chain, "input", traffic=traffic)["wireguard-blocked"]
    assert "UDP port 51820,51821" in finding.problem
    assert finding.remedy == remedy


def test_the_rules_of_a_program_that_is_not_installed():
    finding = unseen("ip", ["filter"], "iptables-legacy")
    assert (finding.code, finding.severity) == ("iptables-unseen", "warning")
    assert finding.object == "the table filter of legacy iptables"
    assert "`iptables-legacy -S`" in finding.remedy
    line = unseen("ip6", ["raw", "nat"], "ip6tables-legacy").line
    assert line.startswith("the tables raw, nat of legacy ip6tables are loaded, and cannot be judged")


@pytest.mark.parametrize(
    ("chain", "codes"),
    [
        (("inet", "fw", "c", "prerouting"), ["forward-blocked", "wireguard-blocked"]),
        (("inet", "fw", "c", "postrouting"), ["forward-blocked", "wireguard-blocked"]),
        (("inet", "fw", "c", "output"), ["wireguard-blocked", "dns-blocked"]),
        (("bridge", "fw", "c", "prerouting"), ["forward-blocked"]),
        (("bridge", "fw", "c", "input"), ["forward-blocked"]),
        (("bridge", "fw", "c", "output"), ["forward-blocked"]),
        (("bridge", "fw", "c", "postrouting"), ["forward-blocked"]),
    ],
)
def test_a_chain_is_in_the_way_wherever_packets_pass_it(chain, codes):
    findings = found(*chain)
    assert list(findings) == codes
    assert all(each.severity == "error" for each in findings.values())


OUTGOING = [{"match": {"op": "==", "left": {"payload": {"protocol": "udp", "field": "sport"}}, "right": 51820}}]


@pytest.mark.parametrize(
    ("chain", "tunnels", "rest"),
    [
        (
            ("inet", "fw", "o", "output"),
            "nft insert rule inet fw o udp sport 51820 accept",
            "nft insert rule inet fw o oifgroup 0x6f760002 udp sport 53 accept; "
            "nft insert rule inet fw o oifgroup 0x6f760002 tcp sport 53 accept",
        ),
        (
            ("ip", "filter", "OUTPUT", "output"),
            "iptables -I OUTPUT -p udp --sport 51820 -j ACCEPT",
            "iptables -I OUTPUT -o zl-+ -p udp --sport 53 -j ACCEPT; iptables -I OUTPUT -o zl-+ -p tcp --sport 53"
            " -j ACCEPT",
        ),
        (
            ("ip", legacy("filter"), "OUTPUT", "output"),
            "iptables-legacy -I OUTPUT -p udp --sport 51820 -j ACCEPT",
            "iptables-legacy -I OUTPUT -o zl-+ -p udp --sport 53 -j ACCEPT; iptables-legacy -I OUTPUT -o zl-+ -p tcp"
            " --sport 53 -j ACCEPT",
        ),
        (
            ("inet", "firewalld", "filter_OUTPUT", "output"),
            "let udp from port 51820 leave in the policy that drops it (--list-all-policies)",
            "let udp/tcp from port 53 leave in the policy that drops it (--list-all-policies)",
        ),
        (
            ("ip", "raw", "PREROUTING", "prerouting"),
            "iptables -t raw -I PREROUTING -p udp --dport 51820 -j ACCEPT",
            "iptables -t raw -I PREROUTING -i zl-+ -j ACCEPT (or, the same, nft insert rule ip raw PREROUTING iifname"
            " zl-* counter accept)",
        ),
        (
            ("ip", "mangle", "POSTROUTING", "postrouting"),
            "iptables -t mangle -I POSTROUTING -p udp --sport 51820 -j ACCEPT",
            "iptables -t mangle -I POSTROUTING -o zl-+ -j ACCEPT (or, the same, nft insert rule ip mangle POSTROUTING"
            " oifname zl-* counter accept)",
        ),
        (
            ("bridge", "filter", "INPUT", "input"),
            None,
            "ebtables -I INPUT -i veth-+ -j ACCEPT",
        ),
    ],
)
def test_the_advice_for_those_chains(chain, tunnels, rest):
    findings = found(*chain)
    assert (findings["wireguard-blocked"].remedy if tunnels else None) == tunnels
    assert next(each.remedy for code, each in findings.items() if code != "wireguard-blocked") == rest


def test_what_leaves_is_told_by_the_port_that_it_comes_from_and_goes_to():
    chain = ("inet", "fw", "o", "output")
    problem = found(*chain)["wireguard-blocked"].problem
    assert problem == "has policy drop, and so keeps in what WireGuard sends from UDP port 51820"
    assert found(*chain, [*OUTGOING, {"accept": None}]).keys() == {"dns-blocked"}
    accepted = [{"match": {"op": "==", "left": {"payload": {"protocol": "udp", "field": "dport"}}, "right": 51820}}]
    some = replace(TRAFFIC, peer_ports=(51820,), dns=0)
    assert found(*chain, [*accepted, {"accept": None}], traffic=some) == {}
    assert len(found(*chain, [*accepted, {"accept": None}], traffic=replace(some, peer_ports=(51820, 443)))) == 1


def test_answers_to_what_came_in_are_let_out_where_connections_are():
    established = [{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "established"}}, {"accept": None}]
    assert found("inet", "fw", "o", "output", established).keys() == {"wireguard-blocked"}


@pytest.mark.parametrize(
    ("devices", "codes"),
    [
        (("eth0",), ["wireguard-blocked", "arp-blocked"]),
        (("eth1",), []),
        (("zl-a-web-b",), ["forward-blocked"]),
        (("veth-71-s", "veth-9"), ["forward-blocked"]),
        (("zl-a-g", "eth0"), ["forward-blocked", "wireguard-blocked", "arp-blocked"]),
    ],
)
@pytest.mark.parametrize("hook", ["ingress", "egress"])
def test_a_chain_of_single_links(devices, codes, hook):
    name = ("netdev", "fw", "c")
    findings = blockers([Ruleset([BaseChain(name, hook, "drop", devices)], {})], TRAFFIC)
    assert [each.code for each in findings] == codes
    way = {"ingress": "iifgroup", "egress": "oifgroup"}[hook]
    assert all(way in each.remedy for each in findings if each.code == "forward-blocked")


def translated(family, hook, *rules, traffic=TRAFFIC):
    chain = (family, "nat", hook.upper())
    rulesets = [Ruleset([BaseChain(chain, hook, "accept", translates=True)], {chain: list(rules)})]
    return {each.code: each for each in blockers(rulesets, traffic)}


def field(protocol, name, value):
    return {"match": {"op": "==", "left": {"payload": {"protocol": protocol, "field": name}}, "right": value}}


WITHIN = {"prefix": {"addr": "10.200.0.0", "len": 16}}


@pytest.mark.parametrize(
    ("hook", "rule", "codes"),
    [
        ("postrouting", [{"masquerade": None}], ["overlay-translated"]),
        ("postrouting", [field("ip", "saddr", WITHIN), {"masquerade": None}], ["overlay-translated"]),
        ("postrouting", [{"xt": {"type": "target", "name": "MASQUERADE"}}], ["overlay-translated"]),
        ("postrouting", [OPEN, {"masquerade": None}], []),
        ("postrouting", [link("oifname", "eth0"), {"masquerade": None}], []),
        (
            "postrouting",
            [field("ip", "saddr", {"prefix": {"addr": "172.17.0.0", "len": 16}}), {"masquerade": None}],
            [],
        ),
        ("prerouting", [field("ip", "daddr", WITHIN), {"redirect": None}], ["overlay-translated"]),
        ("prerouting", [{"xt": {"type": "match", "name": "addrtype"}}, {"dnat": {"addr": "172.17.0.2"}}], []),
        ("prerouting", [field("udp", "dport", 51820), {"redirect": {"port": 9}}], ["wireguard-blocked"]),
        ("prerouting", [field("udp", "dport", 53), {"dnat": {"addr": "192.0.2.53"}}], ["dns-blocked"]),
        ("prerouting", [field("tcp", "dport", 8080), {"dnat": {"addr": "172.17.0.2"}}], []),
        ("output", [{"dnat": {"addr": "192.0.2.53"}}], []),
    ],
)
def test_translation_of_what_is_the_overlays(hook, rule, codes):
    assert [*translated("ip", hook, rule)] == codes
    assert translated("ip6", hook, rule) == {}, "another version of IP"


@pytest.mark.parametrize(
    ("match", "severity"),
    [("addrtype", "hint"), ("policy", "hint"), ("mark", None), ("set", None), ("comment", "warning")],
)
def test_masquerade_behind_a_match_that_nft_does_not_show(match, severity):
    rule = [{"xt": {"type": "match", "name": match}}, {"xt": {"type": "target", "name": "MASQUERADE"}}]
    found = translated("ip", "postrouting", rule)
    assert [(code, each.severity) for code, each in found.items()] == [("overlay-translated", severity)] * bool(
        severity
    )
    assert translated("ip", "postrouting", [link("oifname", "eth0"), *rule]) == {}
    assert translated("ip", "prerouting", [{"xt": {"type": "match", "name": match}}, {"redirect": None}]).keys() <= {
        *(("overlay-translated", "wireguard-blocked", "dns-blocked") if match == "comment" else ())
    }


@pytest.mark.parametrize(
    ("target", "severity"),
    [
        ({"snat": {"addr": "192.0.2.1"}}, "error"),
        ({"masquerade": None}, "warning"),
        ({"xt": {"type": "target", "name": "SNAT"}}, "error"),
    ],
)
def test_what_is_given_a_source_that_peers_do_not_take(target, severity):
    found = translated("ip", "postrouting", [link("oifname", "zl-*"), target])["overlay-translated"]
    assert found.severity == severity
    assert ("peers drop" in found.symptom) == (severity == "error")


def test_the_advice_lets_the_overlay_keep_its_addresses():
    found = translated("ip", "postrouting", [{"masquerade": None}])["overlay-translated"]
    assert found.severity == "warning"
    assert found.remedy.startswith(
        "iptables -t nat -I POSTROUTING -o zl-+ -j ACCEPT (or, the same, nft insert rule ip nat"
    )
    found = translated("ip", "prerouting", [{"redirect": None}])["overlay-translated"]
    assert (found.severity, found.symptom) == ("error", "they go elsewhere than to whom they were sent")
    spared = [[link("oifname", "zl-*"), {"accept": None}], [{"masquerade": None}]]
    assert translated("ip", "postrouting", *spared) == {}


def test_a_chain_that_takes_everything_is_told_for_each_kind_of_what_it_takes():
    """Two devices and two bridges, and each finding once."""
    traffic = replace(
        TRAFFIC,
        links=(DEVICE, Link("zl-a-own", GROUP_DEVICE), BRIDGE, Link("zl-a-api-b", GROUP_BRIDGE)),
        underlay=frozenset({4, 6}),
        wireguard=(51820, 51821),
    )
    chain = ("inet", "nat", "PREROUTING")
    rules = {chain: [[{"redirect": None}]]}
    told = blockers([Ruleset([BaseChain(chain, "prerouting", "accept", translates=True)], rules)], traffic)
    assert [each.code for each in told] == ["overlay-translated", "wireguard-blocked", "dns-blocked"]
    assert "UDP port 51820,51821" in told[1].problem
    assert "51820, 51821" in told[1].remedy
    assert "udp dport 53" in told[2].remedy
    assert "tcp dport 53" in told[2].remedy


def test_the_advice_for_a_translation_names_the_links_that_it_takes():
    leg = replace(TRAFFIC, links=(DEVICE, LEG))
    taken = translated("ip", "postrouting", [link("oifname", LEG.name), {"masquerade": None}], traffic=leg)
    assert taken["overlay-translated"].remedy.startswith("iptables -t nat -I POSTROUTING -o veth-+ -j ACCEPT (or")
    by_tcp = translated("ip", "prerouting", [field("tcp", "dport", 53), {"redirect": None}])
    assert [*by_tcp] == ["dns-blocked"]
    assert "-p tcp --dport 53" in by_tcp["dns-blocked"].remedy
    assert "-p udp" not in by_tcp["dns-blocked"].remedy


@pytest.mark.parametrize("hook", ["input", "output"])
def test_arp(hook):
    way = hook[0]
    finding = found("arp", "filter", hook.upper(), hook)["arp-blocked"]
    assert finding.line.startswith(
        f"table arp filter chain {hook.upper()} has policy drop, and so keeps ARP in or out; neighbours are not"
    )
    assert finding.remedy == (
        f"arptables -I {hook.upper()} -{way} zl-+ -j ACCEPT; arptables -I {hook.upper()} -{way} eth0 -j ACCEPT"
    )
    assert found("arp", "fw", "c", hook)["arp-blocked"].remedy.startswith(f"nft insert rule arp fw c {way}ifname zl-*")
    assert found("arp", "fw", "c", hook, traffic=TRAFFIC6) == {}, "IPv6 has no ARP"
    assert found("arp", "fw", "c", hook, [{"accept": None}]) == {}


def address(field, right):
    return {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": field}}, "right": right}}


def cidr(network, length):
    return {"prefix": {"addr": network, "len": length}}


@pytest.mark.parametrize("hook", ["prerouting", "forward", "postrouting"])
@pytest.mark.parametrize("field", ["saddr", "daddr"])
def test_what_is_dropped_by_its_addresses(hook, field):
    """As rules against a network's addresses on other links do, wherever they are."""
    whole, part, other = (
        address(field, cidr("10.200.0.0", 16)),
        address(field, "10.200.9.1"),
        address(field, "10.9.0.1"),
    )
    for condition, severity in ((whole, "error"), (part, "hint"), (other, None)):
        findings = found("ip", "fw", "c", hook, [condition, {"drop": None}], policy="accept")
        found_here = findings.get("forward-blocked")
        assert (found_here.severity if found_here else None) == severity


@pytest.mark.parametrize("rule", [[OPEN, {"drop": None}], [address("saddr", "@some"), {"reject": None}]])
def test_what_may_be_dropped_is_a_hint(rule):
    finding = found("ip", "mangle", "FORWARD", "forward", rule, policy="accept")["forward-blocked"]
    assert finding.severity == "hint"
    assert finding.remedy.startswith("iptables -t mangle -I FORWARD -i zl-+ -j ACCEPT; iptables")
    passed = [link("iifname", "zl-*"), {"accept": None}], [link("oifname", "zl-*"), {"accept": None}]
    assert found("ip", "mangle", "FORWARD", "forward", *passed, rule, policy="accept") == {}, "the remedy's"
