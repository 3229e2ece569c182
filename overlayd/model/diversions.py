"""Where packets of the overlay go, inside and as WireGuard sends them, whatever routing tables, policy rules and VRFs
the host has.

Owns: for which packets the kernel is asked, which way they should take, and the words for another one.  Must not know:
how it is asked (`linux.egress`), or which networks of the host overlap with the overlay (`overlaps`).

A look at the routes in the main table cannot tell: policy rules (ip-rule(8)) come before it.  So the kernel is asked
for the way of some packets of each kind: by what goes wrong with such a rule, all of a kind do.  A rule for some
addresses only is asked about by one of these.
"""

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address
from itertools import islice
from typing import NamedTuple

from overlayd.model.conflicts import holder
from overlayd.model.findings import Finding
from overlayd.model.layout import Facts, endpoint_address
from overlayd.model.objects import GLOBAL, Address, Network
from overlayd.model.routing import is_inside
from overlayd.model.rows import Attachment, Overlay, Service
from overlayd.model.state import State

SAMPLE = 16  # our own constant: packets of each kind
HERE = "lo"  # where packets of the host's own go
# The outside as such: nobody's addresses (RFC 5737, RFC 3849), to which only a default route leads.
_OUTSIDE = {4: ip_address("192.0.2.1"), 6: ip_address("2001:db8::1")}


class Question(NamedTuple):
    """A packet.  through: the link that it should leave by, HERE for none, "" for any.  incoming: the link that it came
    by, with the address it is from; "" and None for one of the host's own.  ports: UDP ports, from and to, of one of
    WireGuard's own.
    """

    destination: Address
    through: str
    incoming: str = ""
    source: Address | None = None
    ports: tuple[int, int] | None = None


class WayOut(NamedTuple):
    """The link that leads out of this host, and the host's address there."""

    link: str
    address: Address


class Rule(NamedTuple):
    """A policy rule for some packets.  destination, source: None for any."""

    destination: Network | None
    source: Network | None


class Way(NamedTuple):
    """What becomes of it.  link: that it leaves by, "" for none.  problem: why it does not leave, else empty."""

    link: str
    problem: str = ""


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
        outside, bridge = _OUTSIDE[overlay.cluster.version], services[sender.service].bridge
        found.append(Question(outside, "", bridge, sender.address))
        found.append(Question(sender.address, bridge, out.link, outside))
    # Those from addresses that no container has are the host's own business, and may be many.
    ours = (each for each in rules if each.source is None or _touches(each.source, overlay.cluster))
    named = list(islice(ours, SAMPLE))
    for scope, link in links.items():
        for rule in named:
            to = rule.destination
            far = _first(to) if to is not None else next(_peers(state, scope, overlay.cluster.version), None)
            if far is None or state.allowed_ips(scope).lookup(far.packed) is None:
                continue
            if rule.source is None:
                found.append(Question(far, link))
            by = _within(rule.source, containers) if scope == GLOBAL else None
            if by is not None and by.service in services:
                found.append(Question(far, link, services[by.service].bridge, by.address))
    led = (each.destination for each in named if each.destination and _touches(each.destination, overlay.cluster))
    for each in (*containers[:SAMPLE], *filter(None, (_within(to, containers) for to in led))):
        if each.service in services:
            found.append(Question(each.address, services[each.service].bridge))
        if each.global_address is not None:
            found.append(Question(each.global_address, each.host_end("g")))
    return list(dict.fromkeys(found))


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


def diversions(ways: Iterable[tuple[Question, Way]], cluster: Network, known: Iterable[Network]) -> list[Finding]:
    """A finding for each kind of packets and each wrong way that they go, by the first of them.  known: networks of the
    host; of those that overlap with the overlay is told already, but wider ones than the cluster take nothing away.
    """
    known = [network for network in known if network.prefixlen and not is_inside(cluster, network)]
    found: dict[tuple[str, Way], Finding] = {}
    unreachable: dict[Way, list[Address]] = {}
    ways = list(ways)
    leaves_by = {way.link for question, way in ways if question.incoming and not question.through}
    for question, way in ways:
        if question.source in _OUTSIDE.values() and question.incoming not in leaves_by:
            continue  # another link leads out, as of somebody's own VPN, and answers come by that
        if not question.through and not question.incoming:
            if way.problem:
                unreachable.setdefault(way, []).append(question.destination)
            continue
        told = any(question.destination in network for network in known)
        if _is_right(question, way) or told or (question.incoming, way) in found:
            continue
        found[question.incoming, way] = _diverted(question, way, cluster)
    return [*found.values(), *(_unreachable(way.problem, endpoints) for way, endpoints in unreachable.items())]


def _is_right(question: Question, way: Way) -> bool:
    return way.link == question.through if question.through else not way.problem


def _diverted(question: Question, way: Way, cluster: Network) -> Finding:
    to = question.destination
    family = "ip -6" if to.version == 6 else "ip"
    origin = f"what {question.incoming} brings" if question.incoming else "what this host sends"
    if question.through == HERE:
        expected, remedy = "is not taken for the host's own", f"{family} rule add pref 0 lookup local"
    else:
        expected = f"does not go through {question.through}" if question.through else "does not leave"
        aim = cluster if to in cluster else to
        remedy = f"{family} rule add pref 1 {f'to {aim}' if question.through else f'from {cluster}'} lookup main"
    taken = "it is taken for the host's own" if way.link == HERE else f"it goes through {way.link}"
    return Finding(
        code="route-diverted",
        severity="error",
        object=f"{origin} to {to if question.through else 'the outside'}",
        problem=f"{expected}: {taken if way.link else way.problem or 'it goes nowhere'}",
        symptom="it leaves outside of the overlay"
        if way.link not in ("", HERE) and not question.incoming
        else "it is lost",
        remedy=f"find the policy rule, VRF or route that leads it there ({family} rule; {family} route get {to}), and"
        f" have it spare the overlay: {remedy}",
    )


def _unreachable(problem: str, endpoints: list[Address]) -> Finding:
    others = f" and {len(endpoints) - 1} more of peers" if len(endpoints) > 1 else " of a peer"
    return Finding(
        code="endpoint-unreachable",
        severity="error",
        object=f"the endpoint {endpoints[0]}{others}",
        problem=f"cannot be sent to: {problem}",
        symptom="nothing is sent to peers there",
        remedy=f"give this host an address and a route that lead there (ip rule; ip route get {endpoints[0]})",
    )


def no_way_out(*, lost: bool) -> Finding:
    """There is no default route through a link with an address.  lost: there was one."""
    return Finding(
        code="no-way-out",
        severity="warning" if lost else "hint",
        object="this host",
        problem="has no default route" + (" any more" if lost else ""),
        symptom="containers reach nothing outside of the overlay",
        remedy="give it one, and the link that it goes through an address (ip route, ip address)",
    )
