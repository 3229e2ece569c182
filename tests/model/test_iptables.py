"""Rules of legacy iptables, as iptables prints them: the same verdicts as of nftables' own."""

from ipaddress import ip_network

import pytest

from overlayd.model.firewall import Link, Packet, judge
from overlayd.model.iptables import read

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
    ],
)
def test_rules(rule, end, may_pass):
    printed = f"-P INPUT DROP\n-P FORWARD ACCEPT\n-P OUTPUT ACCEPT\n-N other\n-A INPUT {rule}\n-A other -j ACCEPT\n"
    found = read("ip", printed)
    chain = next(each for each in found.hooked if each.hook == "input")
    verdict = judge(found, chain, QUERY)
    # A target of its own options is open, and decides nothing all the same.
    assert verdict.end == end
    assert verdict.may_pass == may_pass or "LOG" in rule
    assert [each.policy for each in found.hooked if each.hook == "forward"] == ["accept"]
