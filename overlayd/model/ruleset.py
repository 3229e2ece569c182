"""The nftables rules of a node: fixed chains over sets and maps.

Owns: the text of our two tables, and the types of our sets.  Must not know: what the members of these sets are made of
(`set_members`), or how a script reaches the kernel (`linux.nft`).

A request adds and deletes members and never a rule, so its cost does not grow with the node.  Our links are matched by
link group: renaming one changes nothing here.

Isolation compares the networks of both ends in constant space.  nftables (up to at least 1.0.6) cannot use the result
of a map lookup as part of another lookup's key, so the sender's network number travels through `meta priority`: set
from the map `network4`, looked up in the set `member4` as `number . destination`, and zeroed again.  Priority, and not
the packet mark, because nobody loses anything: IPv4 forwarding overwrites it just before the hook, and the packet
leaves through a bridge or veth of ours, which has no queue to prioritise.  Only packets from one member to another are
touched.

What passes, for a packet that starts a connection (packets of established ones always do; nothing the node itself sends
is filtered):

    from                  to members      to members       to other local and     to the node and     to the
                          of its network  of others        remote overlay         bridge gateways     outside
    a member              yes             no               no                     yes                 yes
    any other container   -               no               yes                    yes                 yes
    a remote address      -               no               yes                    yes                 yes
    an edge peer          -               no               as granted             as granted          as granted
    the outside           -               no               yes                    yes                 -

"Outside" is what is neither in the cluster CIDR nor behind a link of ours.  A grant does not open an isolation
network.  A published port (destination NAT) does not either: what reaches a member from the outside is only what the
member asked for.  A host_shared container sends as the node does, unfiltered; what is sent to it is judged like any
other local address.

Before that, sources are proven, whatever a container (with CAP_NET_RAW) or a host of the LAN forges:

- A port of a bridge sends from the MAC and the addresses of who was attached there, in ARP and neighbour discovery
  too: `port4` and `port6`, one element an address.  It sends no router advertisements, and nothing to the port of DHCP
  clients, some of which take offers from any port.  Nothing is kept of an IPv6 link-local source; it only has to be
  another than the gateway's, and the bridge itself holds the port to its MAC (`linux.veth`).  Unspecified sources
  (address probes, DHCP requests) are nobody's.
- A veth without a bridge sends from the addresses of its container: `leg4` and `leg6`.
- A device's sources are proven by WireGuard.
- From any other link a source inside the cluster CIDR is forged, and dropped before connections are tracked, except
  where the host's own routes lead to it through that very link: a network that overlaps the cluster keeps the host.
  None of these passes to a link of ours.

- What a container sends to the outside from the port of a WireGuard device of ours leaves from another port.  With the
  same one the answers of a peer, and its handshakes, would be the container's.

And what is for the cluster CIDR is forwarded through a link of ours or not at all.
"""

from collections.abc import Iterable

import msgspec

from overlayd.model.objects import (
    GROUP_BRIDGE,
    GROUP_DEVICE,
    GROUP_VETH,
    LINK_LOCAL_GATEWAY,
    NFT_TABLE,
    Element,
)
from overlayd.model.set_members import OF_HOST

_FE80_10 = 0xFE80 >> 6  # the ten bits that every link-local address begins with

# Our groups differ in their last two bits: a mask costs each packet less than the set of them.
_GROUPS = GROUP_DEVICE & ~3
assert {GROUP_DEVICE & ~3, GROUP_BRIDGE & ~3, GROUP_VETH & ~3} == {_GROUPS}
_OURS = f"& {0xFFFF_FFFC:#x} == {_GROUPS:#x}"
_OTHERS = f"& {0xFFFF_FFFC:#x} != {_GROUPS:#x}"


class Set(msgspec.Struct, frozen=True):
    """One of our sets or maps.

    key: nftables' types of the parts of a key, more than one for a concatenation.  value: the type of a map's values,
    "" for a set.  interval: whether a key's address may be a prefix.  typeof: what has a key that no type names.
    """

    key: tuple[str, ...]
    value: str = ""
    interval: bool = False
    typeof: str = ""

    def declaration(self, name: str) -> str:
        types = f"typeof {self.typeof}" if self.typeof else f"type {' . '.join(self.key)}"
        types += f" : {self.value}" if self.value else ""
        flags = " flags interval;" if self.interval else ""
        return f"{'map' if self.value else 'set'} {name} {{ {types};{flags} }}"


SETS = {  # by family and name
    ("bridge", "network"): Set(("ifname",), "classid"),
    ("bridge", "member"): Set(("classid", "ifname")),
    ("bridge", "port4"): Set(("ifname", "ether_addr", "ipv4_addr")),
    # nftables 1.0.6 has no name for the target of a neighbour advertisement, and bare bytes have no type in common with
    # an address: so the source is looked up as bare bytes too.
    ("bridge", "port6"): Set(("ifname", "ether_addr", "integer"), typeof="iifname . ether saddr . @nh,64,128"),
    ("inet", "tunnels"): Set(("inet_service",)),
}
SETS |= {each: Set(("nf_proto",)) for each in OF_HOST}
for _version, _address in ((4, "ipv4_addr"), (6, "ipv6_addr")):
    SETS |= {
        ("inet", f"cluster{_version}"): Set((_address,), interval=True),
        ("inet", f"node{_version}"): Set((_address,)),
        ("inet", f"network{_version}"): Set((_address,), "classid"),
        ("inet", f"member{_version}"): Set(("classid", _address)),
        ("inet", f"leg{_version}"): Set(("ifname", _address)),
        ("inet", f"edge{_version}"): Set((_address,)),
        ("inet", f"grant{_version}"): Set((_address, _address), interval=True),
    }


def _declarations(family: str) -> str:
    return "\n".join(f"    {each.declaration(name)}" for (of, name), each in SETS.items() if of == family)


def _by_version(rules: str) -> str:
    """`rules`, written for IPv4, followed by the same for IPv6; every "4" in them is a version."""
    return rules + rules.replace("4", "6").replace("ip ", "ip6 ")


# A container may have any link-local addresses, but not many new ones: who is asked from one learns a neighbour, and
# the host has one neighbour table for all links and containers.  A port may use 16 new ones at once, and then one a
# second.  Packets alone add the members of these sets, and they time out.
_LINK_LOCAL = """
    set link_local { typeof iifname . ip6 saddr; size 65535; flags dynamic,timeout; timeout 5m; }
    set newcomers { typeof iifname; size 65535; flags dynamic,timeout; timeout 1m; }

    chain link_local {
        iifname . ip6 saddr @link_local accept
        update @newcomers { iifname limit rate over 1/second burst 16 packets } drop
        add @link_local { iifname . ip6 saddr } accept
        drop
    }
"""

# How their bridges are called; "br-" are those of the networks that users of Docker make.
_ENGINES = ("docker", "br-", "virbr", "cni", "podman", "lxcbr", "lxdbr", "incusbr")


def fixed() -> str:
    """The script that makes both tables, or brings them back to what they should be, in one transaction: nothing is
    duplicated or lost, for a flush of a table removes its rules and keeps its sets.
    """
    return f"""
add table inet {NFT_TABLE}
add table bridge {NFT_TABLE}
flush table inet {NFT_TABLE}
flush table bridge {NFT_TABLE}
{_inet_table()}{_bridge_table()}"""


def _inet_table() -> str:
    """What is routed, between our links and to and from the host and the outside."""
    return f"""
table inet {NFT_TABLE} {{
{_declarations("inet")}

    chain prerouting {{
        type filter hook prerouting priority raw; policy accept;
        iifgroup {GROUP_VETH:#x} goto leg
        iifgroup {_OURS} accept
        iif lo accept
{
        _by_version('''
        ip saddr @cluster4 fib saddr . iif oif missing drop
''')
    }
    }}

    chain leg {{
{
        _by_version('''
        iifname . ip saddr @leg4 accept
''')
    }
        icmpv6 type {{ nd-router-advert, nd-redirect }} drop
        ip6 saddr :: accept
        ip6 saddr fe80::/10 goto link_local
        drop
    }}
{_LINK_LOCAL}

    # The accepting policy is what forwards our traffic; what is not ours is for other tables to judge.  The rule for
    # established connections is for nearly all packets of the overlay, which none of the next ones would drop.
    chain forward {{
        type filter hook forward priority filter; policy accept;
        # To the next hop of a source route, not to the destination that every other rule judges.
        ip hdrlength > 5 oifgroup {_OURS} ip option lsrr exists drop
        ip hdrlength > 5 oifgroup {_OURS} ip option ssrr exists drop
        ct state established,related iifgroup {_OURS} oifgroup {_OURS} accept
{
        _by_version('''
        oifgroup OTHERS ip daddr @cluster4 drop
        iifgroup OTHERS oifgroup OURS ip saddr @cluster4 drop
''')
        .replace("OURS", _OURS)
        .replace("OTHERS", _OTHERS)
    }
        iifgroup {_OTHERS} oifgroup {_OTHERS} meta nfproto @closed goto others
        # What connection tracking makes nothing of is not translated: it would leave with an overlay address.
        iifgroup {_OURS} oifgroup {_OTHERS} ct state invalid drop
        ct state established,related accept
        iifgroup {GROUP_DEVICE:#x} jump edge
        # Never routed: a frame inside a bridge, shown here by br_netfilter.  The bridge table has judged it.
        ip daddr 224.0.0.0/24 accept
        ip6 hoplimit != 255 icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} drop
        ip6 daddr fe80::/10 accept
        ip6 daddr ff02::/16 accept
        jump isolate
{
        _by_version('''
        ip saddr @network4 oifgroup OURS drop
        ip saddr @network4 ip daddr @cluster4 drop
''').replace("OURS", _OURS)
    }
    }}

    # Between networks that are not ours, where it is we who switched forwarding on; container engines rely on it.
    chain others {{
        meta nfproto @bridged meta iifkind "bridge" meta oifkind "bridge" accept
        ct state established,related accept
        ct status dnat accept
{"".join(f'        iifname "{prefix}*" accept{chr(10)}' for prefix in _ENGINES)}
        drop
    }}

    chain input {{
        type filter hook input priority filter; policy accept;
        iif lo accept
        ct state established,related accept
        iifgroup {GROUP_DEVICE:#x} jump edge
        jump isolate
{
        _by_version('''
        ip saddr @network4 ip daddr @cluster4 ip daddr != @node4 drop
''')
    }
    }}

    chain edge {{
{
        _by_version('''
        ip saddr . ip daddr @grant4 return
        ip saddr @edge4 drop
''')
    }
    }}

    # Settles what goes from member to member, and refuses to members what comes from anyone else.
    chain isolate {{
{
        _by_version('''
        ip saddr @network4 ip daddr @network4 goto compare4
        ip daddr @network4 drop
''')
    }
    }}

    # Entered only when both ends are in network4: a priority that the sender chose never counts as a network number.
    chain compare4 {{
        meta priority set ip saddr map @network4
        meta priority . ip daddr @member4 meta priority set none accept
        drop
    }}

    chain compare6 {{
        meta priority set ip6 saddr map @network6
        meta priority . ip6 daddr @member6 meta priority set none accept
        drop
    }}

    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        oif lo return
        oifgroup {_OURS} return
{
        _by_version('''
        ip saddr @cluster4 ip daddr != @cluster4 udp sport @tunnels udp sport < 32768 masquerade to :32768-65535
        ip saddr @cluster4 ip daddr != @cluster4 udp sport @tunnels masquerade to :10000-32767
        ip saddr @cluster4 ip daddr != @cluster4 masquerade
''')
    }
    }}
}}
"""


def _bridge_table() -> str:
    """What is bridged, between the ports of one bridge, and from them to the host."""
    return f"""
# Between two ports of one bridge the port is the identity: it holds for every protocol, IPv6 link-local addresses and
# multicast included, and no container can forge it.  ARP and neighbour discovery towards the gateway are not
# forwarded, so they do not pass here; between fellow members they pass like all else.  No connection tracking is
# needed, since what is allowed between two ports is allowed both ways.
table bridge {NFT_TABLE} {{
{_declarations("bridge")}

    chain prerouting {{
        type filter hook prerouting priority dstnat; policy accept;
        iifgroup {GROUP_VETH:#x} goto port
    }}

    chain port {{
        ether type vmap {{ ip : goto port_ip, ip6 : goto port_ip6, arp : goto port_arp }}
        drop
    }}

    chain port_ip {{
        udp dport 68 drop
        iifname . ether saddr . ip saddr @port4 accept
        drop
    }}

    chain port_arp {{
        iifname . ether saddr . arp saddr ip @port4 iifname . arp saddr ether . arp saddr ip @port4 accept
        drop
    }}

    chain port_ip6 {{
        udp dport 546 drop
        icmpv6 type {{ nd-router-advert, nd-redirect }} drop
        icmpv6 type nd-neighbor-advert jump advertised
        iifname . ether saddr . @nh,64,128 @port6 accept
        ip6 saddr {LINK_LOCAL_GATEWAY} drop
        ip6 saddr fe80::/10 goto link_local
        drop
    }}
{_LINK_LOCAL}

    # The target of a neighbour advertisement: an address of who is behind the port, or a link-local one.
    chain advertised {{
        iifname . ether saddr . @th,64,128 @port6 return
        @th,64,128 {int(LINK_LOCAL_GATEWAY):#x} drop
        @th,64,10 {_FE80_10:#x} return
        drop
    }}

    chain input {{
        type filter hook input priority filter; policy accept;
        iifgroup {GROUP_VETH:#x} goto port_input
    }}

    # By the gateway's MAC, what is for a neighbour's link-local address would be routed back, past the ports.
    chain port_input {{
        icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
        ip6 daddr fe80::/10 ip6 daddr != {LINK_LOCAL_GATEWAY} drop
    }}

    chain forward {{
        type filter hook forward priority filter; policy accept;
        meta pkttype {{ broadcast, multicast }} jump echo
        iifname @network goto members
        oifname @network drop
    }}

    # Ports give back what NAT leads to its own sender (hairpin), and would give back what is for everybody too.
    chain echo {{
        oifname . ether saddr . ip saddr @port4 drop
        oifname . ether saddr . arp saddr ip @port4 drop
        ether type ip6 oifname . ether saddr . @nh,64,128 @port6 drop
        oifname . ip6 saddr @link_local drop
    }}

    chain members {{
        oifname @network goto compare
        drop
    }}

    chain compare {{
        meta priority set iifname map @network
        meta priority . oifname @member meta priority set none accept
        drop
    }}
}}
"""


def with_members(members: Iterable[Element]) -> str:
    """The script of `fixed`, and the members in the same transaction: no packet sees the rules without them."""
    sets: dict[tuple[str, str], list[str]] = {}
    for element in members:
        entry = f"{element.member} : {element.value}" if element.value else element.member
        sets.setdefault((element.family, element.set), []).append(entry)
    return fixed() + "".join(
        f"add element {family} {NFT_TABLE} {name} {{ {', '.join(entries)} }}\n"
        for (family, name), entries in sets.items()
    )


def removed() -> str:
    """The script that removes both tables, whether they exist or not."""
    return "".join(
        f"add table {family} {NFT_TABLE}\ndelete table {family} {NFT_TABLE}\n" for family in ("inet", "bridge")
    )
