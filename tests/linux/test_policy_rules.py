"""Which policy rules of the host are read, as ip-rule(8) made them."""

from ipaddress import ip_network

from overlayd.linux.policy_rules import policy_rules
from overlayd.model.diversions import Rule


def test_those_for_some_addresses_are_read_in_their_order(host, shell):
    shell("ip rule add pref 12 from 10.2.7.0/24 to 10.2.9.1 prohibit; ip rule add pref 11 to 10.2.8.0/23 blackhole")
    shell("ip rule add pref 13 fwmark 1 lookup 9; ip -6 rule add pref 14 from fd00:9::/64 lookup 9")
    assert policy_rules(4) == [
        Rule(ip_network("10.2.8.0/23"), None),
        Rule(ip_network("10.2.9.1/32"), ip_network("10.2.7.0/24")),
    ]
    assert policy_rules(6) == [Rule(None, ip_network("fd00:9::/64"))]
