"""Where packets of the overlay go, inside and as WireGuard sends them, whatever routing tables, policy rules and VRFs
the host has.

Owns: for which packets the kernel is asked, which way they should take, and the words for another one.  Must not know:
how it is asked (`linux.egress`), or which networks of the host overlap with the overlay (`overlaps`).

A look at the routes in the main table cannot tell: policy rules (ip-rule(8)) come before it.  So the kernel is asked
for the way of some packets of each kind: by what goes wrong with such a rule, all of a kind do.  A rule for some
addresses, protocols or ports only is asked about by one of these.  Which marks packets carry, `marks` tells.
"""

from collections.abc import Container, Iterable, Iterator, Mapping
from ipaddress import ip_address
from itertools import islice
from typing import NamedTuple

from overlayd._fast.addresses import is_inside
from overlayd.model.conflicts import holder
from overlayd.model.findings import Finding
from overlayd.model.layout import Facts, endpoint_address
from overlayd.model.objects import GLOBAL, Address, Network
from overlayd.model.rows import Attachment, Overlay, Service
from overlayd.model.state import State

SAMPLE = 16  # our own constant: packets of each kind
FLOWS = 32  # our own constant: kinds of packets that rules tell by protocol and ports
HERE = "lo"  # where packets of the host's own go
# The outside as such: nobody's addresses (RFC 5737, RFC 3849), to which only a default route leads.
OUTSIDE = {4: ip_address("192.0.2.1"), 6: ip_address("2001:db8::1")}
_OUTSIDE_ENDS = frozenset(OUTSIDE.values())
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58  # IANA's numbers
_NAMES = {ICMP: "icmp", TCP: "tcp", UDP: "udp", ICMPV6: "ipv6-icmp"}
# The kernel answers nothing about the others (rtm_getroute_parse_ip_proto in net/ipv4/fib_frontend.c).
PROTOCOLS = {4: (ICMP, TCP, UDP), 6: (ICMPV6, TCP, UDP)}


class Flow(NamedTuple):
    """What policy rules tell packets by besides addresses: IP's number of the protocol, and ports, 0 for any."""

    protocol: int
    source_port: int = 0
    port: int = 0

    def __str__(self) -> str:
        ports = (("sport", self.source_port), ("dport", self.port))
        return _NAMES.get(self.protocol, "") + "".join(f" {name} {port}" for name, port in ports if port)


class Mark(NamedTuple):
    """A packet's mark (linux/skbuff.h), with the chains of others that set marks here.  certain: they surely set this
    one on the packet, else they may, and then there is a rule of this priority for it.
    """

    value: int
    chains: tuple[str, ...]
    certain: bool
    rule: int = 0


class Question(NamedTuple):
    """A packet.  through: the link that it should leave by, HERE for none, "" for any.  incoming: the link that it came
    by, with the address it is from; "" and None for one of the host's own.  ports: UDP ports, from and to, of one of
    WireGuard's own.  flow: of one that a rule tells so.  mark: None for a packet without.
    """

    destination: Address
    through: str
    incoming: str = ""
    source: Address | None = None
    ports: tuple[int, int] | None = None
    flow: Flow | None = None
    mark: Mark | None = None

    @property
    def kind(self) -> Flow | None:
        """As what it is sent; None for anything."""
        return Flow(UDP, *self.ports) if self.ports is not None else self.flow

    @property
    def leaves_for_a_peer(self) -> bool:
        """Whether it is one that WireGuard sends."""
        return not self.through and not self.incoming

    @property
    def is_of_the_outside(self) -> bool:
        """Whether it is between a container and no host in particular."""
        return not _OUTSIDE_ENDS.isdisjoint((self.destination, self.source))


class WayOut(NamedTuple):
    """The link that leads out of this host, and the host's address there."""

    link: str
    address: Address


class Rule(NamedTuple):
    """A policy rule for some packets.  destination, source: None for any.  mark: its bits and the mask of those that
    count, None for any.  protocol: IP's number, 0 for any.  source_ports, ports: the first and the last, None for any.
    inverted: it is for all packets but those.  version: of IP.
    """

    destination: Network | None = None
    source: Network | None = None
    mark: tuple[int, int] | None = None
    protocol: int = 0
    source_ports: tuple[int, int] | None = None
    ports: tuple[int, int] | None = None
    inverted: bool = False
    version: int = 4
    priority: int = 0

    @property
    def flows(self) -> list[Flow]:
        """Packets that it is for, as far as it names protocols or ports: one of each protocol."""
        known, by_port = PROTOCOLS[self.version], self.source_ports is not None or self.ports is not None
        if not self.protocol and not by_port:
            return []
        if self.inverted:  # no port is 0
            return [Flow(each) for each in known if by_port or each != self.protocol]
        protocols = (self.protocol,) if self.protocol else (TCP, UDP)
        source_port, port = (each[0] if each is not None else 0 for each in (self.source_ports, self.ports))
        return [Flow(each, source_port, port) for each in protocols if each in known]

    @property
    def marks(self) -> bool:
        """Whether it is for packets of a mark."""
        return self.mark is not None and not self.inverted


class Way(NamedTuple):
    """What becomes of it.  link: that it leaves by, "" for none.  problem: why it does not leave, else empty.  mtu: of
    the way to an endpoint, as far as this host knows, bytes; 0 for what was not looked at.
    """

    link: str
    problem: str = ""
    mtu: int = 0


def questions(state: State, facts: Facts, rules: Iterable[Rule] = (), out: WayOut | None = None) -> list[Question]:
    """Packets of the host and of containers to peers, of WireGuard to endpoints, of the host to containers; what peers
    send to each of them; and of a container to the outside, with the answer.

    rules: the host's, in their order.  out: None when nothing leads out.
    """
    overlay = state.get(Overlay)
    if overlay is None:
        return []
    links = {GLOBAL: overlay.interface} if overlay.up and facts.devices else {}
    services = {each.name: each for each in state.table(Service).values()}
    ports = {GLOBAL: overlay.wg_port} | {name: each.wg_port for name, each in services.items() if each.dedicated}
    links |= {name: each.device for name, each in services.items() if each.dedicated and facts.devices}
    containers = [each for each in state.table(Attachment).values() if each.namespace is not None]
    sender = next((each for each in containers if each.service in services), None)
    found = []
    for scope, link in links.items():
        known = (endpoint_address(peer, facts) for peer in state.peers(scope).values())
        endpoints = [*islice(filter(None, known), SAMPLE)]
        found += [Question(address, "", ports=(ports[scope], port)) for address, port in endpoints]
        if out is not None:
            found += [
                Question(out.address, HERE, out.link, address, (port, ports[scope]))
                for address, port in endpoints
                if address.version == out.address.version
            ]
        for address in islice(_peers(state, scope, overlay.cluster.version), SAMPLE):
            found.append(Question(address, link))
            if sender is not None and scope == GLOBAL:
                found.append(Question(address, link, services[sender.service].bridge, sender.address))
        near = next((each for each in containers if each.service in services and _scope(each, services) == scope), None)
        far = next(_peers(state, scope, overlay.cluster.version), None)
        if far is not None and near is not None:
            found.append(Question(near.address, services[near.service].bridge, link, far))
        if far is not None and scope == GLOBAL and state.node_address is not None:
            found.append(Question(state.node_address, HERE, link, far))
    if out is not None and sender is not None and out.address.version == overlay.cluster.version:
        outside, bridge = OUTSIDE[overlay.cluster.version], services[sender.service].bridge
        found.append(Question(outside, "", bridge, sender.address))
        found.append(Question(sender.address, bridge, out.link, outside))
    # Those from addresses that no container has are the host's own business, and may be many.
    rules = [*rules]
    seen = [each for each in rules if each.version == overlay.cluster.version]
    ours = (each for each in seen if each.source is None or _touches(each.source, overlay.cluster))
    named = list(islice((each for each in ours if each.destination or each.source), SAMPLE))
    found += _named(state, links, named)
    for each in containers[:SAMPLE]:
        found += _arriving(each, services, None)
    for rule in named:
        if rule.destination is not None and _touches(rule.destination, overlay.cluster):
            to = _within(rule.destination, containers)
            found += [each for flow in rule.flows or _ANY if to is not None for each in _arriving(to, services, flow)]
    found = list(dict.fromkeys(found))
    return [*found, *_by_flow(found, seen), *_usual(found, rules)]


_ANY: tuple[Flow | None] = (None,)


def _named(state: State, links: Mapping[str, str], rules: Iterable[Rule]) -> Iterator[Question]:
    """Packets to peers that rules for some addresses are for.  links: devices by scope."""
    version = state.overlay.cluster.version if state.overlay is not None else 0
    services = {each.name: each for each in state.table(Service).values()}
    containers = [each for each in state.table(Attachment).values() if each.namespace is not None]
    for scope, link in links.items():
        for rule in rules:
            to = rule.destination
            far = _first(to) if to is not None else next(_peers(state, scope, version), None)
            if far is None or state.allowed_ips(scope).lookup(far.packed) is None:
                continue
            by = _within(rule.source, containers) if scope == GLOBAL else None
            for flow in rule.flows or _ANY:
                if rule.source is None:
                    yield Question(far, link, flow=flow)
                if by is not None and by.service in services:
                    yield Question(far, link, services[by.service].bridge, by.address, flow=flow)


def _arriving(container: Attachment, services: Mapping[str, Service], flow: Flow | None) -> Iterator[Question]:
    """What the host sends to a container."""
    if container.service in services:
        yield Question(container.address, services[container.service].bridge, flow=flow)
    if container.global_address is not None:
        yield Question(container.global_address, container.host_end("g"), flow=flow)


def samples(asked: Iterable[Question]) -> list[Question]:
    """One packet of each way in and out."""
    found: dict[tuple[object, ...], Question] = {}
    for each in asked:
        if each.flow is None:
            own = each.ports and each.ports[1 if each.incoming else 0]
            found.setdefault((each.incoming, each.through, own, each.destination.version), each)
    return list(found.values())[: 4 * SAMPLE]


def _by_flow(asked: Iterable[Question], rules: Iterable[Rule]) -> Iterator[Question]:
    """Of what rules for any addresses name by protocol and ports.  Those for WireGuard's ports mean its packets, which
    are asked about as they are; what a host keeps from some ports of the outside is its own business.
    """
    asked = [*asked]
    wireguard = {port for each in asked for port in each.ports or ()}
    some = [each for each in samples(asked) if each.ports is None]
    named = (flow for rule in rules if rule.destination is None and rule.source is None for flow in rule.flows)
    for flow in islice(dict.fromkeys(named), FLOWS):
        ports = {flow.port, flow.source_port} - {0}
        if flow.protocol == UDP and ports and ports <= wireguard:
            continue
        yield from (each._replace(flow=flow) for each in some if not (ports and each.is_of_the_outside))


def _usual(asked: Iterable[Question], rules: Iterable[Rule]) -> Iterator[Question]:
    """What is not WireGuard's to each endpoint, to compare with, where rules may tell it from that."""
    named = {each.protocol for each in rules if each.marks or each.flows}
    protocol = next((each for each in (TCP, ICMP) if each not in named), None)
    for each in asked:
        if named and protocol is not None and each.leaves_for_a_peer:
            version = each.destination.version
            yield each._replace(ports=None, flow=Flow(ICMPV6 if (protocol, version) == (ICMP, 6) else protocol))


def _scope(container: Attachment, services: Mapping[str, Service]) -> str:
    """Of the device by which a container's service reaches other nodes."""
    return container.service if services[container.service].dedicated else GLOBAL


def _touches(network: Network, cluster: Network) -> bool:
    return is_inside(network, cluster) or is_inside(cluster, network)


def _within(network: Network | None, containers: Iterable[Attachment]) -> Attachment | None:
    """The first container in a network; of all when that is None."""
    return next((each for each in containers if network is None or each.address in network), None)


def _first(network: Network) -> Address:
    """An address of it that a host may have."""
    single = network.prefixlen == network.max_prefixlen
    return network.network_address if single else network.network_address + 1


def _peers(state: State, scope: str, version: int) -> Iterator[Address]:
    """An address of each allowed IP that is installed."""
    for peer in state.peers(scope).values():
        for network in peer.allowed_ips:
            if network.version == version and network.prefixlen and not holder(state, network):
                yield _first(network)


def diversions(
    ways: Iterable[tuple[Question, Way]], cluster: Network, known: Iterable[Network], uplinks: Container[str] = ()
) -> list[Finding]:
    """A finding for each kind of packets and each wrong way that they go, by the first of them.  known: networks of the
    host; of those that overlap with the overlay is told already, but wider ones than the cluster take nothing away.
    uplinks: links with an address of their own, by which WireGuard's packets may well be meant to go.
    """
    known = [network for network in known if network.prefixlen and not is_inside(cluster, network)]
    found: dict[tuple[object, ...], Finding] = {}
    unreachable: dict[tuple[Way, Mark | None], list[Address]] = {}
    ways = list(ways)
    leaves_by = {way.link for question, way in ways if question.incoming and not question.through}
    usual = {each.destination: way.link for each, way in ways if each.leaves_for_a_peer and each.flow and way.link}
    for question, way in ways:
        if question.source in _OUTSIDE_ENDS and question.incoming not in leaves_by:
            continue  # another link leads out, as of somebody's own VPN, and answers come by that
        if question.leaves_for_a_peer:
            wrong = bool(way.problem) or way.link != usual.get(question.destination, way.link)
        else:
            wrong = not (_is_right(question, way) or any(question.destination in network for network in known))
        if not wrong or (question.leaves_for_a_peer and question.flow is not None):
            continue
        mark = question.mark
        if mark is not None and not mark.certain:
            found.setdefault((mark, way), _perhaps_marked(mark, way, question, cluster))
        elif not question.leaves_for_a_peer:
            if (question.incoming, way) not in found:
                key = question.incoming, way, *filter(None, (question.flow, mark))
                found.setdefault(key, _diverted(question, way, cluster))
        elif way.problem:
            unreachable.setdefault((way, mark), []).append(question.destination)
        else:
            link = usual[question.destination]
            found.setdefault((way, mark), _detour(question, way, link, certain=way.link not in uplinks))
    return [
        *found.values(),
        *(_unreachable(way.problem, mark, endpoints) for (way, mark), endpoints in unreachable.items()),
    ]


def _is_right(question: Question, way: Way) -> bool:
    return way.link == question.through if question.through else not way.problem


def _ip(address: Address) -> str:
    return "ip -6" if address.version == 6 else "ip"


def _kind(flow: Flow | None, mark: Mark | None) -> str:
    """Which packets of those to a destination, in brackets; empty for any."""
    by = f"mark {mark.value:#x}, which {' or '.join(mark.chains)} sets" if mark is not None else ""
    words = ", ".join(filter(None, (str(flow) if flow is not None else "", by)))
    return f" ({words})" if words else ""


def _looked_up(to: Address, flow: Flow | None, mark: Mark | None) -> str:
    """The command that shows a way."""
    words = f" ipproto {flow}" if flow is not None else ""
    return f"{_ip(to)} route get {to}{words}" + (f" mark {mark.value:#x}" if mark is not None else "")


def _spared(question: Question, cluster: Network) -> str:
    """The rule that keeps a packet on its way."""
    to = question.destination
    if question.through == HERE:
        return f"{_ip(to)} rule add pref 0 lookup local"
    aim = cluster if to in cluster else to
    return f"{_ip(to)} rule add pref 1 {f'to {aim}' if question.through else f'from {cluster}'} lookup main"


def _diverted(question: Question, way: Way, cluster: Network) -> Finding:
    to, shown = question.destination, _looked_up(question.destination, question.flow, question.mark)
    origin = f"what {question.incoming} brings" if question.incoming else "what this host sends"
    if question.through == HERE:
        expected = "is not taken for the host's own"
    else:
        expected = f"does not go through {question.through}" if question.through else "does not leave"
    taken = "it is taken for the host's own" if way.link == HERE else f"it goes through {way.link}"
    return Finding(
        code="route-diverted",
        severity="error",
        object=f"{origin} to {to if question.through else 'the outside'}{_kind(question.flow, question.mark)}",
        problem=f"{expected}: {taken if way.link else way.problem or 'it goes nowhere'}",
        symptom="it leaves outside of the overlay"
        if way.link not in ("", HERE) and not question.incoming
        else "it is lost",
        remedy=f"find the policy rule, VRF or route that leads it there ({_ip(to)} rule; {shown}), and"
        f" have it spare the overlay: {_spared(question, cluster)}",
    )


def _perhaps_marked(mark: Mark, way: Way, question: Question, cluster: Network) -> Finding:
    """A policy rule would divert packets of a mark, and whether ours carry it, nobody can tell."""
    to = question.destination
    gone = "are taken for the host's own" if way.link == HERE else f"go through {way.link}"
    ours = "WireGuard's packets" if question.ports is not None else "the overlay's packets"
    spared = (
        f"have these chains leave {ours} unmarked"
        if question.ports is not None
        else f"have the rule spare the overlay: {_spared(question, cluster)}"
    )
    return Finding(
        code="route-diverted",
        severity="hint",
        object=f"{_ip(to)} rule {mark.rule}",
        problem=f"is for packets of mark {mark.value:#x}, which {gone if way.link else f'are lost: {way.problem}'}",
        symptom=f"if {' or '.join(mark.chains)} sets that mark on {ours}, they do not arrive",
        remedy=f"{_looked_up(to, question.kind, mark)} shows the way; {spared}",
    )


def _detour(question: Question, way: Way, usual: str, *, certain: bool) -> Finding:
    """WireGuard's packets leave by another link than what else is sent there.  certain: one without an address."""
    to, mark = question.destination, question.mark
    return Finding(
        code="endpoint-diverted",
        severity="error" if certain else "warning",
        object=f"what WireGuard sends to {to}{_kind(None, mark)}",
        problem=f"goes through {way.link}, and all else to there through {usual}",
        symptom="nothing of it arrives" if certain else "it arrives only if that link leads to the peer as well",
        remedy=f"find the policy rule that leads it there ({_ip(to)} rule; {_looked_up(to, question.kind, mark)}), and"
        f" have it spare WireGuard's UDP port {question.kind.source_port if question.kind is not None else 0}",
    )


def _unreachable(problem: str, mark: Mark | None, endpoints: list[Address]) -> Finding:
    shown = _looked_up(endpoints[0], None, mark)
    others = f" and {len(endpoints) - 1} more of peers" if len(endpoints) > 1 else " of a peer"
    return Finding(
        code="endpoint-unreachable",
        severity="error",
        object=f"the endpoint {endpoints[0]}{others}",
        problem=f"cannot be sent to{_kind(None, mark)}: {problem}",
        symptom="nothing is sent to peers there",
        remedy=f"give this host an address and a route that lead there (ip rule; {shown})",
    )


def no_way_out(*, lost: bool, version: int | None = None) -> Finding:
    """There is no default route through a link with an address.  lost: there was one.  version: there is none of this
    version of IP, which is the overlay's, but one of the other.
    """
    kind, whose = (f"IPv{version} ", ", whose addresses are of that version,") if version else ("", "")
    return Finding(
        code="no-way-out",
        severity="warning" if lost else "hint",
        object="this host",
        problem=f"has no {kind}default route{' any more' if lost else ''}",
        symptom=f"containers{whose} reach nothing outside of the overlay",
        remedy="give it one, and the link that it goes through an address (ip route, ip address)",
    )
