"""A router that hides a private network behind one public address.

Owns: its namespace and its packet filter.  Must not know: what the nodes behind it do.

It drops what nobody inside has asked for, as such boxes do: a router that refuses instead would remember the refused
flow, and give the port that it came to to nobody.
"""

from ipaddress import IPv4Address, IPv4Interface

from lab import netns
from lab.processes import run

INSIDE = IPv4Interface("192.168.1.254/24")  # of every box: private networks look alike everywhere

_RULES = """
table ip nat {{
  chain postrouting {{
    type nat hook postrouting priority srcnat
    oifname uplink masquerade {how}
  }}
}}
table ip filter {{
  chain input {{
    type filter hook input priority filter; policy drop
    ct state established,related accept
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop
    iifname inside accept
    ct state established,related accept
  }}
}}
"""


class NatBox:
    """name: of its namespace.  address: the public one.  symmetric: each destination sees another port
    (endpoint-dependent mapping, RFC 4787); else each sees the port that the node uses.
    """

    def __init__(self, name: str, address: IPv4Address, *, symmetric: bool) -> None:
        self.netns = name
        self.address = address
        self.nodes = 0
        netns.add(name)
        netns.add_bridge(name, "inside", INSIDE)
        netns.write_sysctl(name, "net/ipv4/ip_forward", 1)
        how = "random,fully-random" if symmetric else ""
        run(["ip", "netns", "exec", name, "nft", "-f", "-"], stdin=_RULES.format(how=how))

    def next_address(self) -> IPv4Interface:
        """For one more node behind it."""
        self.nodes += 1
        return IPv4Interface((INSIDE.network[self.nodes], INSIDE.network.prefixlen))
