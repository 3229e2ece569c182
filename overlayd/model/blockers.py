"""What in other tables keeps our traffic out, or gives it other addresses.

Owns: which packets of ours a host's own firewall has to let pass as they are, at whichever hook.  Must not know: how a
chain is read (`firewall`), how rulesets are listed (`linux`), our own tables (`ruleset`), what the owner of a chain has
to run (`remedies`).

Our accept cannot overrule another table's drop, so each chain has to let our packets pass by itself.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_network

from overlayd.model.discovery import undiscovered
from overlayd.model.findings import Finding
from overlayd.model.firewall import AT_A_LINK, LOST, BaseChain, Link, Packet, Ruleset, Verdict, judge, matches
from overlayd.model.marks import Carried, is_lost
from overlayd.model.names import is_host_end
from overlayd.model.objects import GROUP_BRIDGE, GROUP_DEVICE, GROUP_VETH, NFT_TABLE, Network
from overlayd.model.remedies import WAYS, command_of, describe, let_answer, let_in, let_out, let_pass, reason
from overlayd.model.tracking import untracked

_FAMILIES = {"inet": (4, 6), "ip": (4,), "ip6": (6,)}
_TRANSLATES = ("masquerade", "snat", "dnat", "redirect")
_SOMEBODY = Link("\N{REPLACEMENT CHARACTER}")  # another link, of a name that no rule has
_OUTSIDE: dict[int, Network] = {4: ip_network("11.22.33.44"), 6: ip_network("2001:1890:1:2::3")}


@dataclass(frozen=True, slots=True)
class Traffic:
    """What of ours meets the host's firewall.

    cluster: our addresses.  links: those that forward: devices, bridges, host ends without a bridge.  way_out: the
    uplink's name, "" when there is none.  underlay: versions of IP in which tunnels come.  wireguard: UDP ports of our
    devices.  dns: port of the name server, 0 for none.  peer_ports: UDP ports of peers, a few of them.
    """

    cluster: Network
    links: tuple[Link, ...]
    way_out: str
    underlay: frozenset[int]
    wireguard: tuple[int, ...]
    dns: int
    peer_ports: tuple[int, ...] = ()


def blockers(rulesets: Iterable[Ruleset], traffic: Traffic) -> list[Finding]:
    """What keeps our traffic from passing, tunnels from this node, or containers from its name server; one finding for
    each chain and kind.
    """
    rulesets = [*rulesets]
    marks = any(each.marks for each in rulesets)
    rulesets = [replace(each, marks=marks) for each in rulesets]  # of whoever sets them
    carried = Carried(rulesets)
    found: list[Finding] = []
    for ruleset in rulesets:
        for chain in ruleset.hooked:
            if chain.name[1] == NFT_TABLE or chain.hook not in WAYS:
                continue
            if not chain.translates:
                found += _passage(ruleset, chain, traffic, carried)
            others = _OF_TRANSLATION if chain.translates else _OF_FILTERS
            found += [finding for judgement in others for finding in judgement(ruleset, chain, traffic)]
    return found


def unseen(family: str, tables: Sequence[str], program: str) -> Finding:
    """Legacy iptables is at work here, and the program that would show its rules is not installed."""
    several = len(tables) > 1
    return Finding(
        code="iptables-unseen",
        severity="warning",
        object=f"the table{'s' if several else ''} {', '.join(tables)} of legacy {command_of(family)}",
        problem=f"{'are' if several else 'is'} loaded, and cannot be judged: {program} is not installed",
        symptom="what it drops does not arrive, and nothing tells",
        remedy=f"run `{program} -S` where it is installed, and let the overlay pass in FORWARD and INPUT",
    )


def _passage(ruleset: Ruleset, chain: BaseChain, traffic: Traffic, carried: Carried) -> Iterator[Finding]:
    """What passes through our links, whatever it is, and what goes on from there to the outside."""
    ours = _ours(ruleset, chain, traffic)
    packets = [*_passing(chain, ours, traffic)]
    blocked = [verdict for packet in packets if (verdict := _judged(ruleset, chain, packet, carried)).end in LOST]
    version, ways = traffic.cluster.version, WAYS[chain.hook]
    if not blocked:
        outward = [*_outward(ruleset, chain, traffic)]
        verdicts = [_judged(ruleset, chain, packet, carried) for packet in outward]
        if lost := [verdict for verdict in verdicts if verdict.end in LOST]:
            yield _kept_in(chain, lost, traffic)
        elif any(_judged(ruleset, chain, _anywhere(packet), carried).may_be_lost for packet in packets):
            yield Finding(
                code="forward-blocked",
                severity="hint",
                object=describe(chain),
                problem="drops packets by a condition that cannot be judged (some addresses, a mark, a set, a limit)",
                symptom="if the overlay's are among them, they do not arrive",
                remedy=let_pass(chain, [(way, link) for way in ways for link in ours]),
            )
        return
    missing = [
        (way, link)
        for way in ways
        for link in ours
        if judge(ruleset, chain, _crossing(version, chain, way, link)).end in LOST
    ]
    certain = any(not verdict.may_pass for verdict in blocked)
    yield Finding(
        code="forward-blocked",
        severity="error" if certain else "warning",
        object=describe(chain),
        problem=f"{reason(blocked[0].end, blocked[0].by_policy)}, and so keeps the overlay from forwarding",
        symptom=_cut_off(chain) if certain else "only what its other rules let pass reaches containers",
        remedy=let_pass(chain, missing or [(way, link) for way in ways for link in ours]),
    )


def _cut_off(chain: BaseChain) -> str:
    if (chain.name[0], chain.hook) == ("bridge", "forward"):  # from one port to another: all else leaves the bridge
        return "containers of one service do not reach each other"
    return "containers reach neither other nodes nor the outside"


def _judged(ruleset: Ruleset, chain: BaseChain, packet: Packet, carried: Carried) -> Verdict:
    """What a chain does with a packet, by the marks that it carries there."""
    verdict = judge(ruleset, chain, packet)
    if verdict.end in LOST or not verdict.may_be_lost or not ruleset.marks:
        return verdict
    marks = carried.at(chain, packet)
    if marks is None:
        return verdict
    if is_lost(ruleset, chain, packet, marks):
        return Verdict("drop", False, False, True)
    known = [replace(packet, mark=each.packet, connection_mark=each.connection) for each in marks]
    return verdict._replace(may_be_lost=any(judge(ruleset, chain, each).may_be_lost for each in known))


def _outward(ruleset: Ruleset, chain: BaseChain, traffic: Traffic) -> Iterator[Packet]:
    """What containers send to the outside, and what is answered, where it passes no link of ours: behind the hook of
    translation it is from this host, and before it for this host.
    """
    version, uplink = traffic.cluster.version, Link(traffic.way_out)
    if version not in _FAMILIES.get(chain.name[0], ()) or not traffic.way_out:
        return
    if chain.hook == "prerouting":
        yield Packet(version, uplink, None, False, destination=traffic.cluster if chain.priority > _TO else None)
    elif chain.hook == "postrouting":
        source = traffic.cluster if chain.priority < _FROM else None
        for link in _unlike(traffic.links, ruleset.names()):
            if link.group != GROUP_DEVICE:
                yield Packet(version, link, uplink, begins=True, source=source)


# Priorities at which destinations and sources are translated (linux/netfilter_ipv4.h).
_TO, _FROM = -100, 100


def _kept_in(chain: BaseChain, lost: Sequence[Verdict], traffic: Traffic) -> Finding:
    """Containers are kept from the outside alone."""
    comes = "i" in WAYS[chain.hook]
    return Finding(
        code="forward-blocked",
        severity="error" if any(not verdict.may_pass for verdict in lost) else "warning",
        object=describe(chain),
        problem=f"{reason(lost[0].end, lost[0].by_policy)}, and so keeps "
        + ("the outside's answers from containers" if comes else "containers from the outside"),
        symptom="containers do not reach the outside",
        remedy=let_answer(chain) if comes else let_out(chain, traffic.cluster),
    )


def _anywhere(packet: Packet) -> Packet:
    """The same packet with no address of the outside that a rule has in particular: a host may well keep its containers
    from its cloud's metadata.
    """
    outside = _OUTSIDE[packet.version]
    return replace(packet, source=packet.source or outside, destination=packet.destination or outside)


def _ours(ruleset: Ruleset, chain: BaseChain, traffic: Traffic) -> list[Link]:
    """The links of ours whose packets a chain sees in passing."""
    if chain.hook in AT_A_LINK:
        known = {link.name: link for link in traffic.links}
        ports = {name: Link(name, GROUP_VETH) for name in chain.devices if is_host_end(name)}
        return [link for name in chain.devices if (link := known.get(name) or ports.get(name)) is not None]
    if chain.name[0] == "bridge":
        return [Link("veth-1-s", GROUP_VETH)]
    local = chain.hook in ("input", "output")
    known_family = traffic.cluster.version in _FAMILIES.get(chain.name[0], ())
    return _unlike(traffic.links, ruleset.names()) if known_family and not local else []


def _passing(chain: BaseChain, ours: Sequence[Link], traffic: Traffic) -> Iterator[Packet]:
    """What a chain has to let pass.  Translation of addresses comes between the hooks: of what comes from the outside,
    and goes there, only the chains of forwarding see our addresses.
    """
    if chain.hook == "forward" and chain.name[0] != "bridge":
        yield from _forwarded(ours, traffic)
        return
    within_a_bridge = chain.name[0] == "bridge"
    for link in ours:
        incoming = link if "i" in WAYS[chain.hook] else None
        outgoing = link if "o" in WAYS[chain.hook] else None
        cluster = None if within_a_bridge else traffic.cluster
        packet = Packet(
            traffic.cluster.version,
            incoming,
            outgoing,
            begins=True,
            source=cluster if incoming else None,
            destination=cluster if outgoing else None,
            returns=True if incoming else None,
        )
        yield packet
        if cluster is not None:  # and what stays within the overlay
            yield replace(packet, source=cluster, destination=cluster)


def _forwarded(links: Sequence[Link], traffic: Traffic) -> Iterator[Packet]:
    """From our links to the outside, the answers, and from link to link through the tunnel."""
    version, cluster = traffic.cluster.version, traffic.cluster
    outside = Link(traffic.way_out) if traffic.way_out else _SOMEBODY
    for link in links:
        if link.group != GROUP_VETH:
            yield Packet(version, link, outside, begins=True, source=cluster, returns=True)
            yield Packet(version, outside, link, begins=False, destination=cluster)
        for other in links:
            if link.group != other.group or link.group == GROUP_BRIDGE:
                yield Packet(version, link, other, begins=True, source=cluster, destination=cluster, returns=True)


def _crossing(version: int, chain: BaseChain, way: str, link: Link) -> Packet:
    """Any packet that comes, or goes, through a link of ours."""
    other = _SOMEBODY if chain.hook == "forward" else None
    incoming, outgoing = (link, other) if way == "i" else (other, link)
    return Packet(version, incoming, outgoing, begins=True)


def _wireguard(ruleset: Ruleset, chain: BaseChain, traffic: Traffic) -> Iterator[Finding]:
    """Tunnels, in both directions: peers begin sessions, and so does this node."""
    if chain.hook in AT_A_LINK:
        versions = traffic.underlay if traffic.way_out in chain.devices else frozenset[int]()
    else:
        versions = traffic.underlay.intersection(_FAMILIES.get(chain.name[0], ()))
    link = Link(traffic.way_out) if traffic.way_out else None
    closed = [
        (packet.source_port if leaves else packet.port, verdict)
        for leaves in _directions(chain)
        for packet in _tunnels(versions, link, traffic, leaves=leaves)
        if (verdict := judge(ruleset, chain, packet)).end in LOST
    ]
    if not closed:
        return
    ports = ",".join(str(port) for port in dict.fromkeys(port for port, _ in closed))
    certain = any(not verdict.may_pass for _, verdict in closed)
    end, by_policy, *_ = closed[0][1]
    (leaves,) = _directions(chain)
    what = f"keeps in what WireGuard sends from UDP port {ports}" if leaves else f"closes WireGuard's UDP port {ports}"
    some = "only peers that its other rules let through are reached" if leaves else _SOME_GET_IN
    yield Finding(
        code="wireguard-blocked",
        severity="error" if certain else "warning",
        object=describe(chain),
        problem=f"{reason(end, by_policy)}, and so {what}",
        symptom=f"a peer gets through only while {'it' if leaves else 'this node'} keeps up a session"
        f" with {'this node' if leaves else 'it'}"
        if certain
        else some,
        remedy=let_in(chain, ["udp"], ports, bridges=False),
    )


_SOME_GET_IN = "only peers that its other rules let in reach this node"


def _tunnels(versions: Iterable[int], link: Link | None, traffic: Traffic, *, leaves: bool) -> Iterator[Packet]:
    for port in traffic.wireguard:
        for version in versions:
            if not leaves:
                yield Packet(version, link, None, True, "udp", port)
                continue
            for there in traffic.peer_ports or (0,):
                yield Packet(version, None, link, True, "udp", there, source_port=port)


def _directions(chain: BaseChain) -> tuple[bool, ...]:
    """Whether what a chain of a host's own packets sees leaves the host; empty for one that sees none."""
    if chain.name[0] == "bridge" or chain.hook == "forward":
        return ()
    return ("o" in WAYS[chain.hook],)


def _dns(ruleset: Ruleset, chain: BaseChain, traffic: Traffic) -> Iterator[Finding]:
    """Questions to the name server at the bridges, and its answers."""
    version, port = traffic.cluster.version, traffic.dns
    if not port or version not in _FAMILIES.get(chain.name[0], ()) or chain.hook not in ("input", "output"):
        return
    answers = chain.hook == "output"
    bridges = [link for link in _unlike(traffic.links, ruleset.names()) if link.group == GROUP_BRIDGE]
    closed = {
        protocol: verdict
        for protocol in ("udp", "tcp")
        for link in bridges
        if (
            verdict := judge(
                ruleset,
                chain,
                Packet(version, None, link, False, protocol, destination=traffic.cluster, source_port=port)
                if answers
                else Packet(version, link, None, True, protocol, port, source=traffic.cluster),
            )
        ).end
        in LOST
    }
    if not closed:
        return
    certain = any(not verdict.may_pass for verdict in closed.values())
    end, by_policy, *_ = next(iter(closed.values()))
    what = "keeps in what the name server answers" if answers else f"closes the name server's port {port} to containers"
    yield Finding(
        code="dns-blocked",
        severity="error" if certain else "warning",
        object=describe(chain),
        problem=f"{reason(end, by_policy)}, and so {what}",
        symptom="containers that ask the gateway for a name wait in vain",
        remedy=let_in(chain, list(closed), str(port), bridges=True),
    )


def _arp(ruleset: Ruleset, chain: BaseChain, traffic: Traffic) -> Iterator[Finding]:
    """By ARP containers and gateways find each other, and this host its own neighbours."""
    if chain.name[0] != "arp" or chain.hook not in ("input", "output"):
        return
    links = [link for link in _unlike(traffic.links, ruleset.names()) if link.group == GROUP_BRIDGE]
    links = links if traffic.cluster.version == 4 else []
    if traffic.way_out and 4 in traffic.underlay:
        links.append(Link(traffic.way_out))
    way = WAYS[chain.hook]
    closed = [
        (link, verdict)
        for link in links
        if (verdict := judge(ruleset, chain, _crossing(4, chain, way, link))).end in LOST
    ]
    if not closed:
        return
    by_arptables = chain.name[1:] == ("filter", chain.hook.upper())
    names = dict.fromkeys("zl-" if link.group else link.name for link, _ in closed)
    if by_arptables:
        commands = [f"arptables -I {chain.name[2]} -{way} {name}{'+' * (name == 'zl-')} -j ACCEPT" for name in names]
    else:
        commands = [
            f"nft insert rule {' '.join(chain.name)} {way}ifname {name}{'*' * (name == 'zl-')} accept" for name in names
        ]
    certain = any(not verdict.may_pass for _, verdict in closed)
    _link, verdict = closed[0]
    yield Finding(
        code="arp-blocked",
        severity="error" if certain else "warning",
        object=describe(chain),
        problem=f"{reason(verdict.end, verdict.by_policy)}, and so keeps ARP in or out",
        symptom="neighbours are not found: containers, and the hosts that tunnels go to",
        remedy="; ".join(commands),
    )


def _discovery(ruleset: Ruleset, chain: BaseChain, traffic: Traffic) -> Iterator[Finding]:
    """By neighbour discovery too; and ARP passes the chains of bridges and links."""
    family, version, bridged = chain.name[0], traffic.cluster.version, 6 if traffic.cluster.version == 6 else 0
    way, uplink = WAYS[chain.hook], Link(traffic.way_out)
    places: list[tuple[int, Link]] = []
    if family == "bridge" or chain.hook in AT_A_LINK:
        places = [(bridged, link) for link in _ours(ruleset, chain, traffic) if link.group != GROUP_DEVICE]
        if traffic.way_out in chain.devices:
            places += [(6 if each == 6 else 0, uplink) for each in traffic.underlay]
    elif family in ("inet", "ip6") and chain.hook != "forward":
        bridges = [link for link in _unlike(traffic.links, ruleset.names()) if link.group == GROUP_BRIDGE]
        places = [(6, link) for link in bridges if version == 6]
        if traffic.way_out and 6 in traffic.underlay:
            places.append((6, uplink))
    packets = [
        Packet(each, link if "i" in way else None, link if "o" in way else None, begins=True) for each, link in places
    ]
    yield from undiscovered(ruleset, chain, packets)


def _tracking(ruleset: Ruleset, chain: BaseChain, traffic: Traffic) -> Iterator[Finding]:
    version = traffic.cluster.version
    if chain.hook != "prerouting" or version not in _FAMILIES.get(chain.name[0], ()):
        return
    links = [link for link in _unlike(traffic.links, ruleset.names()) if link.group == GROUP_BRIDGE]
    out = [Packet(version, link, None, begins=True, source=traffic.cluster) for link in links]
    back = [Packet(version, Link(traffic.way_out), None, begins=False, source=_OUTSIDE[version])]
    yield from untracked(ruleset, chain, out, back if traffic.way_out else [])


def _translates(ruleset: Ruleset, chain: BaseChain, packet: Packet) -> bool:
    """Rules with open conditions, as those of kube-proxy for marked packets, are taken not to mean ours."""
    return judge(ruleset, chain, packet).end in _TRANSLATES


def _rewriting(ruleset: Ruleset, chain: BaseChain, traffic: Traffic) -> Iterator[Finding]:
    """Within the overlay addresses stay what they are."""
    version, cluster = traffic.cluster.version, traffic.cluster
    if version not in _FAMILIES.get(chain.name[0], ()) or chain.hook not in ("prerouting", "postrouting"):
        return
    arrives, way = chain.hook == "prerouting", WAYS[chain.hook]
    within = Packet(version, None, None, begins=True, source=cluster, destination=cluster)
    packets = {
        link: replace(within, incoming=link) if arrives else replace(within, outgoing=link)
        for link in _unlike(traffic.links, ruleset.names())
    }
    taken = [link for link, packet in packets.items() if _translates(ruleset, chain, packet)]
    hidden = [link for link, packet in packets.items() if _translates(ruleset, chain, replace(packet, hidden=True))]
    if taken:
        # Peers take nothing from an address that is not in our allowed IPs; what is masqueraded has our own.
        dropped = not arrives and any(
            link.group == GROUP_DEVICE and judge(ruleset, chain, packets[link]).end == "snat" for link in taken
        )
        if arrives:
            symptom = "they go elsewhere than to whom they were sent"
        elif dropped:
            symptom = "peers drop what has another source"
        else:
            symptom = "containers of other nodes see this host in place of who sends"
        yield Finding(
            code="overlay-translated",
            severity="error" if arrives or dropped else "warning",
            object=describe(chain),
            problem="changes the addresses of packets within the overlay",
            symptom=symptom,
            remedy=let_pass(chain, [(way, link) for link in taken]),
        )
    elif hidden and not arrives:  # Docker has such a rule for what comes in, and means addresses of the host
        yield Finding(
            code="overlay-translated",
            severity="hint",
            object=describe(chain),
            problem="may change the addresses of packets within the overlay: a match of iptables cannot be judged",
            symptom="if it holds for them, containers of other nodes see this host in place of who sends",
            remedy=let_pass(chain, [(way, link) for link in hidden]),
        )


def _redirecting(ruleset: Ruleset, chain: BaseChain, traffic: Traffic) -> Iterator[Finding]:
    """Nobody else answers for WireGuard or the name server."""
    if chain.hook != "prerouting":
        return
    version, families = traffic.cluster.version, _FAMILIES.get(chain.name[0], ())
    link = Link(traffic.way_out) if traffic.way_out else None
    tunnels = _tunnels(traffic.underlay.intersection(families), link, traffic, leaves=False)
    led = (packet.port for packet in tunnels if _translates(ruleset, chain, packet))
    if ports := ",".join(map(str, dict.fromkeys(led))):
        yield Finding(
            code="wireguard-blocked",
            severity="error",
            object=describe(chain),
            problem=f"leads elsewhere what comes for WireGuard's UDP port {ports}",
            symptom=_SOME_GET_IN,
            remedy=let_in(chain, ["udp"], ports, bridges=False),
        )
    if version not in families or not traffic.dns:
        return
    bridges = [each for each in _unlike(traffic.links, ruleset.names()) if each.group == GROUP_BRIDGE]
    asks = Packet(version, None, None, True, port=traffic.dns, source=traffic.cluster)
    protocols = [
        protocol
        for protocol in ("udp", "tcp")
        if any(_translates(ruleset, chain, replace(asks, incoming=each, protocol=protocol)) for each in bridges)
    ]
    if protocols:
        yield Finding(
            code="dns-blocked",
            severity="error",
            object=describe(chain),
            problem=f"leads elsewhere what containers send to the name server's port {traffic.dns}",
            symptom="containers that ask the gateway for a name get another's answer, or none",
            remedy=let_in(chain, protocols, str(traffic.dns), bridges=True),
        )


def _unlike(links: Iterable[Link], names: set[str]) -> list[Link]:
    """One link of each kind that the rules tell apart: a node may have a thousand."""
    patterns = [name for name in names if name.endswith("*")]
    kinds: dict[tuple[object, ...], Link] = {}
    for link in links:
        meant = link.name if link.name in names else ""
        kinds.setdefault((link.group, meant, *(matches(each, link.name) for each in patterns)), link)
    return list(kinds.values())


_OF_TRANSLATION = (_rewriting, _redirecting)
_OF_FILTERS = (_wireguard, _dns, _arp, _discovery, _tracking)
