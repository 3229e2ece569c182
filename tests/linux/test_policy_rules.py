"""Which policy rules of the host are read, as ip-rule(8) made them."""

from ipaddress import ip_network

from overlayd.linux.policy_rules import policy_rules
from overlayd.model.diversions import ICMPV6, UDP, Rule


def test_those_for_some_addresses_are_read_in_their_order(host, shell):
    shell("ip rule add pref 12 from 10.2.7.0/24 to 10.2.9.1 prohibit; ip rule add pref 11 to 10.2.8.0/23 blackhole")
    shell("ip rule add pref 13 iif lo lookup 9; ip -6 rule add pref 14 from fd00:9::/64 lookup 9")
    assert policy_rules(4) == [
        Rule(ip_network("10.2.8.0/23"), priority=11),
        Rule(ip_network("10.2.9.1/32"), ip_network("10.2.7.0/24"), priority=12),
    ]
    assert policy_rules(6) == [Rule(source=ip_network("fd00:9::/64"), version=6, priority=14)]


def test_those_for_some_marks_protocols_and_ports(host, shell):
    shell("ip rule add pref 11 fwmark 7 lookup 9; ip rule add pref 12 not fwmark 0x80000/0xff0000 lookup 9")
    shell("ip rule add pref 13 ipproto udp sport 51820 blackhole; ip rule add pref 14 dport 80-443 prohibit")
    shell("ip -6 rule add pref 15 to fd00:9::/64 ipproto ipv6-icmp fwmark 1/1 lookup 9")
    assert policy_rules(4) == [
        Rule(mark=(7, 0xFFFFFFFF), priority=11),
        Rule(mark=(0x80000, 0xFF0000), inverted=True, priority=12),
        Rule(protocol=UDP, source_ports=(51820, 51820), priority=13),
        Rule(ports=(80, 443), priority=14),
    ]
    assert policy_rules(6) == [
        Rule(ip_network("fd00:9::/64"), mark=(1, 1), protocol=ICMPV6, version=6, priority=15),
    ]
