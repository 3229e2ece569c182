"""Rules of legacy iptables, as iptables prints them: the same verdicts as of nftables' own."""

from ipaddress import ip_address, ip_network

import pytest

from overlayd.model.diversions import Question, Rule
from overlayd.model.firewall import Link, Packet, judge
from overlayd.model.iptables import read
from overlayd.model.marks import marked

QUERY = Packet(4, Link("zl-a-b"), None, True, "udp", 53, ip_network("10.200.0.0/16"))


@pytest.mark.parametrize(
    ("rule", "end", "may_pass"),
    [
        ("-j ACCEPT", "accept", True),
        ("-i zl-+ -j ACCEPT", "accept", True),
        ("-i eth0 -j ACCEPT", "drop", False),
        ("! -i eth0 -j ACCEPT", "accept", True),
        ("-s 10.0.0.0/8 -j ACCEPT", "accept", True),
        ("! -s 10.0.0.0/8 -j ACCEPT", "drop", False),
        ("-p udp -m udp --dport 53 -j ACCEPT", "accept", True),
        ("-p udp -m udp --dport 1:52 -j ACCEPT", "drop", False),
        ("-p tcp -m tcp --dport 53 -j ACCEPT", "drop", False),
        ("-p udp -m multiport --dports 22,53 -j ACCEPT", "accept", True),
        ("-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "drop", False),
        ("-m state --state NEW -j ACCEPT", "accept", True),
        ('-m comment --comment "two words" -j ACCEPT', "accept", True),
        ("-m addrtype --dst-type LOCAL -j ACCEPT", "drop", True),
        ("-p udp -m limit --limit 1/sec -j ACCEPT", "drop", True),
        ("-j LOG --log-prefix x", "drop", True),
        ("-j other", "accept", True),
        ("-g other", "accept", True),
        ("-j REJECT --reject-with icmp-port-unreachable", "reject", False),
        ("-j RETURN", "drop", False),
        ("-m mark --mark 0x10/0xf0 -j ACCEPT", "drop", True),
        ("-m connmark ! --mark 0x0/0x1 -j ACCEPT", "drop", True),
        ("-j MARK --set-xmark 0x0/0xffffffff", "drop", False),
    ],
)
def test_rules(rule, end, may_pass):
    printed = f"-P INPUT DROP\n-P FORWARD ACCEPT\n-P OUTPUT ACCEPT\n-N other\n-A INPUT {rule}\n-A other -j ACCEPT\n"
    found = read("ip", "filter", printed)
    chain = next(each for each in found.hooked if each.hook == "input")
    verdict = judge(found, chain, QUERY)
    # A target of its own options is open, and decides nothing all the same.
    assert verdict.end == end
    assert verdict.may_pass == may_pass or "LOG" in rule
    assert [each.policy for each in found.hooked if each.hook == "forward"] == ["accept"]


@pytest.mark.parametrize(
    ("table", "chain", "rule", "end"),
    [
        ("raw", "PREROUTING", "-i zl-+ -j DROP", "drop"),
        ("raw", "PREROUTING", "-j CT --notrack", "notrack"),
        ("raw", "PREROUTING", "-j NOTRACK", "notrack"),
        ("nat", "POSTROUTING", "-s 10.0.0.0/8 -j MASQUERADE", "masquerade"),
        ("nat", "POSTROUTING", "-s 10.0.0.0/8 ! -d 10.0.0.0/8 -j MASQUERADE", "accept"),
        ("nat", "PREROUTING", "-p udp -m udp --dport 53 -j REDIRECT --to-ports 5353", "redirect"),
        ("nat", "PREROUTING", "-p udp -m udp --dport 53 -j DNAT --to-destination 10.9.9.9", "dnat"),
    ],
)
def test_the_other_tables(table, chain, rule, end):
    found = read("ip", table, f"-P {chain} ACCEPT\n-A {chain} {rule}\n")
    (hooked,) = found.hooked
    within = Packet(4, None, Link("zl-a-b"), True, source=QUERY.source, destination=QUERY.source)
    packet = within if chain == "POSTROUTING" else QUERY
    assert (hooked.hook, hooked.translates) == (chain.lower(), table == "nat")
    assert judge(found, hooked, packet).end == end


@pytest.mark.parametrize(("rule", "mark"), [("0x7/0xffffffff", 7), ("0x10/0xff", 0x10), ("0x0/0xffffffff", None)])
def test_marks_are_followed(rule: str, mark: int | None) -> None:
    found = read("ip", "mangle", f"-P PREROUTING ACCEPT\n-A PREROUTING -i zl-+ -j MARK --set-xmark {rule}\n")
    question = Question(ip_address("10.200.2.2"), "zl-g", "zl-a-b", ip_address("10.200.9.9"))
    asked = marked(found, [question], [Rule(priority=40, mark=(mark or 7, 0xFFFFFFFF))], [Link("zl-a-b")], "eth0")
    assert [each.mark.value for each in asked if each.mark is not None] == ([mark] if mark else [])
