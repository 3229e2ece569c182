"""What in other tables keeps our traffic out.

Owns: which packets of ours a host's own firewall has to let pass, and the words for what is missing.  Must not know:
how a chain is read (`firewall`), how rulesets are listed (`linux`), our own tables (`ruleset`).

Our accept cannot overrule another table's drop, so each chain has to let our packets pass by itself.  The commands are
those of the program that owns the chain: a rule that iptables does not understand makes iptables refuse its own table,
or loses its condition when the table is saved and restored.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from overlayd.model import iptables
from overlayd.model.findings import Finding
from overlayd.model.firewall import BaseChain, Link, Packet, Ruleset, judge, matches
from overlayd.model.objects import GROUP_BRIDGE, GROUP_DEVICE, GROUP_VETH, NFT_TABLE, Network

_OURS = f"{{ {GROUP_DEVICE:#x}, {GROUP_BRIDGE:#x}, {GROUP_VETH:#x} }}"
_FAMILIES = {"inet": (4, 6), "ip": (4,), "ip6": (6,)}
_IPTABLES_TABLES = ("filter", "mangle", "raw", "security")
_SOMEBODY = Link("\N{REPLACEMENT CHARACTER}")  # another link, of a name that no rule has
_WAYS = ("i", "o")


@dataclass(frozen=True, slots=True)
class Traffic:
    """What of ours meets the host's firewall.

    cluster: our addresses.  links: those that forward: devices, bridges, host ends without a bridge.  way_out: the
    uplink's name, "" when there is none.  underlay: versions of IP in which tunnels come.  wireguard: UDP ports of our
    devices.  dns: port of the name server, 0 for none.
    """

    cluster: Network
    links: tuple[Link, ...]
    way_out: str
    underlay: frozenset[int]
    wireguard: tuple[int, ...]
    dns: int


def blockers(rulesets: Iterable[Ruleset], traffic: Traffic) -> list[Finding]:
    """What keeps our traffic from being forwarded, tunnels from this node, or containers from its name server; one
    finding for each chain and kind.
    """
    found: list[Finding] = []
    for ruleset in rulesets:
        for chain in ruleset.hooked:
            if chain.name[1] == NFT_TABLE:
                continue
            if chain.hook == "forward":
                found += _forward(ruleset, chain, traffic)
            elif chain.hook == "input" and chain.name[0] in _FAMILIES:
                found += _wireguard(ruleset, chain, traffic)
                found += _dns(ruleset, chain, traffic)
    return found


def unseen(family: str, program: str) -> Finding:
    """Legacy iptables filters here, and the program that would show its rules is not installed."""
    return Finding(
        code="iptables-unseen",
        severity="warning",
        object=f"the table filter of legacy {_program(family)}",
        problem=f"is loaded, and cannot be judged: {program} is not installed",
        symptom="what it drops does not arrive, and nothing tells",
        remedy=f"run `{program} -S` where it is installed, and let the overlay pass in FORWARD and INPUT",
    )


def _forward(ruleset: Ruleset, chain: BaseChain, traffic: Traffic) -> Iterator[Finding]:
    version = traffic.cluster.version
    if chain.name[0] == "bridge":
        port = Link("veth-1-s", GROUP_VETH)
        need, ours = [Packet(version, port, port, begins=True)], [port]
    elif version in _FAMILIES.get(chain.name[0], ()):
        ours = _unlike(traffic.links, ruleset.names())
        need = list(_forwarded(ours, traffic))
    else:
        return
    blocked = [verdict for packet in need if (verdict := judge(ruleset, chain, packet)).end != "accept"]
    if not blocked:
        return
    missing = [
        (way, link)
        for way in _WAYS
        for link in ours
        if judge(ruleset, chain, _crossing(version, way, link)).end != "accept"
    ]
    certain = any(not verdict.may_pass for verdict in blocked)
    yield Finding(
        code="forward-blocked",
        severity="error" if certain else "warning",
        object=_object(chain),
        problem=f"{_reason(blocked[0].end, blocked[0].by_policy)}, and so keeps the overlay from forwarding",
        symptom="containers reach neither other nodes nor the outside"
        if certain
        else "only what its other rules let pass reaches containers",
        remedy=_forward_remedy(chain, missing or [(way, link) for way in _WAYS for link in ours]),
    )


def _forwarded(links: Sequence[Link], traffic: Traffic) -> Iterator[Packet]:
    """From our links to the outside, the answers, and from link to link through the tunnel."""
    version, cluster = traffic.cluster.version, traffic.cluster
    outside = Link(traffic.way_out) if traffic.way_out else _SOMEBODY
    for link in links:
        if link.group != GROUP_VETH:
            yield Packet(version, link, outside, begins=True, source=cluster)
            yield Packet(version, outside, link, begins=False, destination=cluster)
        for other in links:
            if link.group != other.group or link.group == GROUP_BRIDGE:
                yield Packet(version, link, other, begins=True, source=cluster, destination=cluster)


def _crossing(version: int, way: str, link: Link) -> Packet:
    """Any packet that comes, or goes, through a link of ours."""
    incoming, outgoing = (link, _SOMEBODY) if way == "i" else (_SOMEBODY, link)
    return Packet(version, incoming, outgoing, begins=True)


def _wireguard(ruleset: Ruleset, chain: BaseChain, traffic: Traffic) -> Iterator[Finding]:
    incoming = Link(traffic.way_out) if traffic.way_out else None
    closed = [
        (port, verdict)
        for port in traffic.wireguard
        for version in traffic.underlay.intersection(_FAMILIES[chain.name[0]])
        if (verdict := judge(ruleset, chain, Packet(version, incoming, None, True, "udp", port))).end != "accept"
    ]
    if not closed:
        return
    ports = ",".join(str(port) for port in dict.fromkeys(port for port, _ in closed))
    certain = any(not verdict.may_pass for _, verdict in closed)
    end, by_policy, _ = closed[0][1]
    yield Finding(
        code="wireguard-blocked",
        severity="error" if certain else "warning",
        object=_object(chain),
        problem=f"{_reason(end, by_policy)}, and so closes WireGuard's UDP port {ports}",
        symptom="a peer gets through only while this node keeps up a session with it"
        if certain
        else "only peers that its other rules let in reach this node",
        remedy=_input_remedy(chain, ["udp"], ports, bridges=False),
    )


def _dns(ruleset: Ruleset, chain: BaseChain, traffic: Traffic) -> Iterator[Finding]:
    version, port = traffic.cluster.version, traffic.dns
    if not port or version not in _FAMILIES[chain.name[0]]:
        return
    bridges = [link for link in _unlike(traffic.links, ruleset.names()) if link.group == GROUP_BRIDGE]
    closed = {
        protocol: verdict
        for protocol in ("udp", "tcp")
        for link in bridges
        if (
            verdict := judge(ruleset, chain, Packet(version, link, None, True, protocol, port, source=traffic.cluster))
        ).end
        != "accept"
    }
    if not closed:
        return
    certain = any(not verdict.may_pass for verdict in closed.values())
    end, by_policy, _ = next(iter(closed.values()))
    yield Finding(
        code="dns-blocked",
        severity="error" if certain else "warning",
        object=_object(chain),
        problem=f"{_reason(end, by_policy)}, and so closes the name server's port {port} to containers",
        symptom="containers that ask the gateway for a name wait in vain",
        remedy=_input_remedy(chain, list(closed), str(port), bridges=True),
    )


def _unlike(links: Iterable[Link], names: set[str]) -> list[Link]:
    """One link of each kind that the rules tell apart: a node may have a thousand."""
    patterns = [name for name in names if name.endswith("*")]
    kinds: dict[tuple[object, ...], Link] = {}
    for link in links:
        meant = link.name if link.name in names else ""
        kinds.setdefault((link.group, meant, *(matches(each, link.name) for each in patterns)), link)
    return list(kinds.values())


# The words.


def _object(chain: BaseChain) -> str:
    family, table, name = chain.name
    if table == iptables.LEGACY:
        return f"chain {name} of the table filter of legacy {_program(family)}"
    return f"table {family} {table} chain {name}"


def _reason(end: str, by_policy: bool) -> str:
    return f"has policy {end}" if by_policy else {"drop": "drops", "reject": "rejects"}[end]


def _is_iptables(chain: BaseChain) -> bool:
    """Whether iptables-nft made the chain: it takes such names for its own, whoever made them."""
    family, table, name = chain.name
    return family in ("ip", "ip6") and table in _IPTABLES_TABLES and name in ("FORWARD", "INPUT")


def _program(family: str) -> str:
    return "ip6tables" if family == "ip6" else "iptables"


def _forward_remedy(chain: BaseChain, missing: Sequence[tuple[str, Link]]) -> str:
    family, table, name = chain.name
    patterns = list(dict.fromkeys((way, "veth-" if link.group == GROUP_VETH else "zl-") for way, link in missing))
    if table == "firewalld":
        names = " ".join(dict.fromkeys(f"--add-interface={prefix}+" for _, prefix in patterns))
        return f"firewall-cmd --permanent --zone=trusted {names}; firewall-cmd --reload"
    if table == iptables.LEGACY or _is_iptables(chain):
        program = _program(family) + ("-legacy" if table == iptables.LEGACY else "")
        option = "" if table in ("filter", iptables.LEGACY) else f"-t {table} "
        commands = [f"{program} {option}-I {name} -{way} {prefix}+ -j ACCEPT" for way, prefix in patterns]
        # The same rules, for where iptables is the legacy one or is not there: iptables-nft reads them as its own.
        same = [
            f"nft insert rule {family} {table} {name} {way}ifname {prefix}* counter accept" for way, prefix in patterns
        ]
        return "; ".join(commands) + ("" if table == iptables.LEGACY else f" (or, the same, {'; '.join(same)})")
    if family == "bridge" and table == "filter" and name == "FORWARD":
        return "; ".join(f"ebtables -I FORWARD -{way} veth-+ -j ACCEPT" for way in _WAYS)
    ways = dict.fromkeys(way for way, _ in missing)
    return "; ".join(f"nft insert rule {family} {table} {name} {way}ifgroup {_OURS} accept" for way in ways)


def _input_remedy(chain: BaseChain, protocols: Sequence[str], ports: str, *, bridges: bool) -> str:
    """bridges: whether only what comes through our bridges is let in."""
    family, table, name = chain.name
    if table == "firewalld":
        if bridges:
            opened = " ".join(f"--add-port={ports}/{protocol}" for protocol in protocols)
            return (
                f"firewall-cmd --permanent --zone=trusted --add-interface=zl-+; firewall-cmd --reload"
                f" (or open the port in their zone: firewall-cmd --permanent --zone=ZONE {opened})"
            )
        opened = " ".join(f"--add-port={port}/udp" for port in ports.split(","))
        return f"firewall-cmd --permanent {opened}; firewall-cmd --reload"
    if table == iptables.LEGACY or _is_iptables(chain):
        program = _program(family) + ("-legacy" if table == iptables.LEGACY else "")
        option = "" if table in ("filter", iptables.LEGACY) else f"-t {table} "
        through = " -i zl-+" if bridges else ""
        several = "," in ports
        to = f"-m multiport --dports {ports}" if several else f"--dport {ports}"
        return "; ".join(f"{program} {option}-I {name}{through} -p {each} {to} -j ACCEPT" for each in protocols)
    through = f"iifgroup {GROUP_BRIDGE:#x} " if bridges else ""
    to = f"{{ {ports.replace(',', ', ')} }}" if "," in ports else ports
    return "; ".join(f"nft insert rule {family} {table} {name} {through}{each} dport {to} accept" for each in protocols)
