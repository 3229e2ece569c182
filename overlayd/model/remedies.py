"""What has to be said of a chain of somebody else's that keeps our packets out, and what its owner has to run.

Owns: those words and commands.  Must not know: which packets of ours are kept out (`blockers`).

The commands are those of the program that owns the chain: a rule that iptables does not understand makes iptables
refuse its own table, or loses its condition when the table is saved and restored.
"""

from collections.abc import Sequence

from overlayd.model import iptables
from overlayd.model.firewall import BaseChain, Link
from overlayd.model.objects import GROUP_BRIDGE, GROUP_DEVICE, GROUP_VETH, Network

_OURS = f"{{ {GROUP_DEVICE:#x}, {GROUP_BRIDGE:#x}, {GROUP_VETH:#x} }}"
_IPTABLES_TABLES = ("filter", "mangle", "raw", "security", "nat")
# By which of its links a packet that a hook sees can be told: the one that it came by, the one that it goes by.
WAYS = {
    "prerouting": "i",
    "ingress": "i",
    "input": "i",
    "forward": "io",
    "output": "o",
    "postrouting": "o",
    "egress": "o",
}


def describe(chain: BaseChain) -> str:
    """The chain as its owner knows it."""
    family, table, name = chain.name
    if (legacy := iptables.legacy_table(table)) is not None:
        return f"chain {name} of the table {legacy} of legacy {command_of(family)}"
    return f"table {family} {table} chain {name}"


def reason(end: str, by_policy: bool) -> str:
    """What the chain does.  end: one of `firewall.LOST`."""
    return f"has policy {end}" if by_policy else _DOES[end]


_DOES = {"drop": "drops", "reject": "rejects", "queue": "hands packets to a queue (NFQUEUE) that no program reads"}


def _is_iptables(chain: BaseChain) -> bool:
    """Whether iptables-nft made the chain: it takes such names for its own, also when others made them."""
    family, table, name = chain.name
    return family in ("ip", "ip6") and table in _IPTABLES_TABLES and name == chain.hook.upper()


def command_of(family: str) -> str:
    """iptables' program for an nftables family."""
    return "ip6tables" if family == "ip6" else "iptables"


def _iptables(family: str, table: str) -> str:
    """The program that a chain of such a table is changed with, and its option for that table."""
    legacy = iptables.legacy_table(table)
    command, table = command_of(family) + ("-legacy" if legacy is not None else ""), legacy or table
    return command if table == "filter" else f"{command} -t {table}"


def let_pass(chain: BaseChain, missing: Sequence[tuple[str, Link]]) -> str:
    """For what passes through our links.  missing: these, each with "i" for what comes by it or "o" for what goes."""
    family, table, name = chain.name
    patterns = list(dict.fromkeys((way, "veth-" if link.group == GROUP_VETH else "zl-") for way, link in missing))
    if table == "firewalld":
        names = " ".join(dict.fromkeys(f"--add-interface={prefix}+" for _, prefix in patterns))
        return f"firewall-cmd --permanent --zone=trusted {names}; firewall-cmd --reload"
    if (legacy := iptables.legacy_table(table)) is not None or _is_iptables(chain):
        command = _iptables(family, table)
        commands = [f"{command} -I {name} -{way} {prefix}+ -j ACCEPT" for way, prefix in patterns]
        # The same rules, for where iptables is the legacy one or is not there: iptables-nft reads them as its own.
        same = [
            f"nft insert rule {family} {table} {name} {way}ifname {prefix}* counter accept" for way, prefix in patterns
        ]
        return "; ".join(commands) + ("" if legacy is not None else f" (or, the same, {'; '.join(same)})")
    if family == "bridge" and table == "filter" and name == chain.hook.upper():
        return "; ".join(f"ebtables -I {name} -{way} veth-+ -j ACCEPT" for way in WAYS[chain.hook])
    ways = dict.fromkeys(way for way, _ in missing)
    return "; ".join(f"nft insert rule {family} {table} {name} {way}ifgroup {_OURS} accept" for way in ways)


def let_out(chain: BaseChain, cluster: Network) -> str:
    """For what containers send to the outside, where it leaves this host."""
    family, table, name = chain.name
    if iptables.legacy_table(table) is not None or _is_iptables(chain):
        return f"{_iptables(family, table)} -I {name} -s {cluster} -j ACCEPT"
    return f"nft insert rule {family} {table} {name} iifgroup {_OURS} accept"


def let_answer(chain: BaseChain) -> str:
    """For what answers this host, and whom it forwards for, where it comes in."""
    family, table, name = chain.name
    if iptables.legacy_table(table) is not None or _is_iptables(chain):
        return f"{_iptables(family, table)} -I {name} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"
    return f"nft insert rule {family} {table} {name} ct state established,related accept"


def let_discover(chain: BaseChain, *, arp: bool) -> str:
    """For ARP, or the questions and answers of neighbour discovery."""
    family, table, name = chain.name
    if table == "firewalld":
        return "firewall-cmd --permanent --zone=ZONE --add-protocol=ipv6-icmp; firewall-cmd --reload (in their zone)"
    if family == "bridge" and table == "filter" and name == chain.hook.upper():
        kinds = ["ARP"] if arp else [f"IPv6 --ip6-proto ipv6-icmp --ip6-icmp-type {each}" for each in (135, 136)]
        return "; ".join(f"ebtables -I {name} -p {each} -j ACCEPT" for each in kinds)
    if iptables.legacy_table(table) is not None or _is_iptables(chain):
        command = f"{_iptables(family, table)} -I {name} -p icmpv6 --icmpv6-type"
        return "; ".join(f"{command} {each} -j ACCEPT" for each in (135, 136))
    what = "ether type arp" if arp else "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert }"
    return f"nft insert rule {family} {table} {name} {what} accept"


def let_in(chain: BaseChain, protocols: Sequence[str], ports: str, *, bridges: bool) -> str:
    """For what comes to this host, or leaves it.  bridges: only what comes, or goes, through our bridges."""
    family, table, name = chain.name
    way = WAYS[chain.hook]
    end = "dport" if way == "i" else "sport"
    if table == "firewalld":
        return _firewalld(protocols, ports, way, bridges=bridges)
    if iptables.legacy_table(table) is not None or _is_iptables(chain):
        command = _iptables(family, table)
        through = f" -{way} zl-+" if bridges else ""
        several = "," in ports
        to = f"-m multiport --{end}s {ports}" if several else f"--{end} {ports}"
        return "; ".join(f"{command} -I {name}{through} -p {each} {to} -j ACCEPT" for each in protocols)
    through = f"{way}ifgroup {GROUP_BRIDGE:#x} " if bridges else ""
    to = f"{{ {ports.replace(',', ', ')} }}" if "," in ports else ports
    return "; ".join(f"nft insert rule {family} {table} {name} {through}{each} {end} {to} accept" for each in protocols)


def _firewalld(protocols: Sequence[str], ports: str, way: str, *, bridges: bool) -> str:
    if way == "o":
        return f"let {'/'.join(protocols)} from port {ports} leave in the policy that drops it (--list-all-policies)"
    if bridges:
        opened = " ".join(f"--add-port={ports}/{protocol}" for protocol in protocols)
        return (
            f"firewall-cmd --permanent --zone=trusted --add-interface=zl-+; firewall-cmd --reload"
            f" (or open the port in their zone: firewall-cmd --permanent --zone=ZONE {opened})"
        )
    opened = " ".join(f"--add-port={port}/udp" for port in ports.split(","))
    return f"firewall-cmd --permanent {opened}; firewall-cmd --reload"
