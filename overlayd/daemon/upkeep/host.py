"""Noticing what of the host, which is not ours, is in the overlay's way.

Owns: what was found last, when it is looked for, and the log's words for its coming and going.  Must not know: what is
in the way and why (`model.blockers`, `model.diversions`, `model.parameters`).

We touch nothing that is not ours: what an operator has to change is named, once in the log and for the doctor as long
as it lasts.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial

from overlayd.daemon.change.node import Node
from overlayd.daemon.tasks import KeepUp
from overlayd.daemon.upkeep.surroundings import Surroundings
from overlayd.errors import MechanismError
from overlayd.linux import egress, ipsec, iptables, packet_queues, sysctl
from overlayd.linux.fib_lookup import ways
from overlayd.linux.link_filters import link_filters
from overlayd.linux.nft import Nft
from overlayd.linux.policy_rules import policy_rules
from overlayd.model.blockers import Traffic, blockers, unseen
from overlayd.model.diversions import OUTSIDE, Question, Rule, Way, WayOut, diversions, no_way_out, questions
from overlayd.model.findings import Finding
from overlayd.model.firewall import Link, Ruleset, together
from overlayd.model.ipsec import ipsec_findings
from overlayd.model.layout import Facts, endpoint_address
from overlayd.model.link_filters import link_findings
from overlayd.model.marks import marked
from overlayd.model.objects import GROUP_BRIDGE, GROUP_DEVICE, GROUP_VETH
from overlayd.model.parameters import MUTE, Carries, mute_findings, narrow_findings, uplink_findings
from overlayd.model.queues import resolved
from overlayd.model.reverse_paths import reverse_path_filters
from overlayd.model.rows import Attachment, Change, Overlay, Peer, Service

log = logging.getLogger(__name__)

# Our own constants, seconds.
INTERVAL = 60.0  # between two looks at the host's whole ruleset while nothing is set up
GATHER = 0.5  # from a start or a change until a look: services that are set up in a row cost one, after the answers
PORTS = 8  # our own constant: of so many of the peers' UDP ports it is judged whether packets to them leave


_PARAMETERS = "parameters are in the overlay's way"
_WHOSE = {
    "uplink-not-forwarding": _PARAMETERS,
    "uplink-strict": _PARAMETERS,
    "ipv6-disabled": _PARAMETERS,
    "arp-ignored": _PARAMETERS,
    "route-diverted": "routing leads elsewhere what is for the overlay",
    "endpoint-unreachable": "routing does not lead to peers",
    "underlay-narrow": "links are too narrow for tunnels",
    "no-way-out": "routing does not lead out",
    "link-filtered": "links lose packets",
    "ipsec-diverted": "IPsec takes what is for the overlay",
}


class HostWatch:
    """findings: what is in the overlay's way now.

    nft: for this alone, since a large ruleset takes long to list and requests must not wait for that.  In use until the
    node is closed.  surroundings: tell of networks that overlap with the overlay.  dns_port: of the name server, 0 for
    none.
    """

    def __init__(self, node: Node, nft: Nft, surroundings: Surroundings, dns_port: int) -> None:
        self.findings: tuple[Finding, ...] = ()
        self._node = node
        self._nft = nft
        self._surroundings = surroundings
        self._dns_port = dns_port
        self._had_way = False  # there was a way out
        self._had_outside = False  # likewise, of the overlay's version of IP
        self._wanted = asyncio.Event()

    @asynccontextmanager
    async def running(self, keep_up: KeepUp) -> AsyncIterator[None]:
        """Look now and then until the block ends."""
        with self._node.subscribe(self.follow):
            watch = keep_up(self.watch)
            try:
                yield
            finally:
                watch.cancel()

    def follow(self, change: Change) -> None:
        """Look soon when something was set up that forwards."""
        if any(table in (Overlay.table, Service.table) for table, _ in change):
            self.look()

    def look(self) -> None:
        """Look soon."""
        self._wanted.set()

    async def watch(self) -> None:
        """Look now and then, forever."""
        while True:
            await asyncio.sleep(GATHER)
            self._wanted.clear()
            await self.check()
            with suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL):
                    await self._wanted.wait()

    async def check(self) -> None:
        """Look, and log what has changed."""
        try:
            way = await self._node.run(egress.physical_egress)
            traffic = self._traffic(way)
            peers, facts = [*self._node.state.table(Peer).values()], self._node.facts
            self._had_way = self._had_way or way is not None
            rules = await self._node.run(_rules) if traffic is not None else []
            out = WayOut(way.interface, way.address) if way is not None else None
            asked = questions(self._node.state, facts, rules, out)
            look = (
                self._node.run(partial(self._look, rules=rules), traffic, peers, facts, way, asked)
                if traffic is not None
                else None
            )
            found = tuple(await look) if look is not None else ()
        except MechanismError as error:
            log.error("looking for what is in the overlay's way: %s", error)
            return
        for finding in _missing(found, self.findings):
            level = logging.INFO if finding.severity == "hint" else logging.WARNING
            log.log(level, "the host's %s: %s", _WHOSE.get(finding.code, "firewall drops what it needs"), finding.line)
        for finding in _missing(self.findings, found):
            log.info("no longer in the overlay's way: %s %s", finding.object, finding.problem)
        self.findings = found

    def _look(
        self,
        traffic: Traffic,
        peers: Iterable[Peer],
        facts: Facts,
        way: egress.Egress | None,
        asked: Iterable[Question],
        *,
        rules: Sequence[Rule],
    ) -> list[Finding]:
        """In a worker thread: a large ruleset takes long to judge, too, and so do many peers."""
        endpoints = [endpoint for peer in peers if (endpoint := endpoint_address(peer, facts)) is not None]
        underlay = frozenset(address.version for address, _ in endpoints) or traffic.underlay
        ports = tuple(sorted({port for _, port in endpoints})[:PORTS])
        traffic = replace(traffic, underlay=underlay, peer_ports=ports)
        rulesets: list[Ruleset] = [self._nft.chains()]
        found: list[Finding] = []
        for family, tables in iptables.tables().items():
            legacy = iptables.ruleset(family, tables)
            if legacy is None:
                found.append(unseen(family, tables, iptables.program(family)))
            else:
                rulesets.append(legacy)
        being_read = packet_queues.being_read()
        rulesets = [resolved(each, being_read) for each in rulesets]
        if way is not None:
            version = traffic.cluster.version
            found += uplink_findings(egress.uplink(way), cluster=version, underlay=traffic.underlay)
            leads = way.address.version == version or egress.leads_out(OUTSIDE[version])
            self._had_outside = self._had_outside or leads
            if self._had_outside and not leads:  # many have an IPv6 overlay on hosts of IPv4 alone, and mean it
                found.append(no_way_out(lost=True, version=version))
        else:
            found.append(no_way_out(lost=self._had_way))
        if any(each.code == "ipv6-disabled" for each in found):  # which says it already
            asked = [each for each in asked if each.ports is None or each.destination.version == 4]
        asked, own = [*asked], self._node.state.node_address
        found += ipsec_findings(ipsec.policies(), asked, own, way.address if way is not None else None)
        found += mute_findings(_mute(traffic), traffic.way_out)
        found += link_findings(link_filters(traffic.way_out), traffic.way_out)
        known = [each.network for each in self._surroundings.networks]
        asked += marked(together(rulesets), asked, rules, traffic.links, traffic.way_out)
        uplinks = egress.addressed_links() if any(each.flow is not None for each in asked) else frozenset[str]()
        found_ways = ways(asked)
        carried = [*_carried(found_ways)]
        if way is not None:
            carried.insert(0, Carries(way.interface, way.mtu, "the outside", way.address.version))
        found += narrow_findings(carried, min(facts.mtu, egress.overlay_mtu(way)))  # which it will be in a moment
        found += reverse_path_filters(rulesets, traffic)
        return blockers(rulesets, traffic) + found + diversions(found_ways, traffic.cluster, known, uplinks)

    def _traffic(self, way: egress.Egress | None) -> Traffic | None:
        """What of ours meets the host's firewall, but for what peers add to it; None while nothing is set up."""
        state, facts = self._node.state, self._node.facts
        overlay = state.get(Overlay)
        if overlay is None:
            return None
        services = state.table(Service).values()
        dedicated = [service for service in services if service.dedicated]
        attachments = state.table(Attachment).values()
        links = [Link(service.bridge, GROUP_BRIDGE) for service in services]
        links += [Link(service.device, GROUP_DEVICE) for service in dedicated]
        links += [
            Link(each.host_end("g"), GROUP_VETH)
            for each in attachments
            if each.namespace is not None and each.global_address is not None
        ]
        ports = [service.wg_port for service in dedicated]
        if overlay.up:
            links.append(Link(overlay.interface, GROUP_DEVICE))
            ports.insert(0, overlay.wg_port)
        return Traffic(
            cluster=overlay.cluster,
            links=tuple(links),
            way_out=way.interface if way is not None else "",
            underlay=frozenset({way.address.version if way is not None else 4}),
            wireguard=tuple(ports) if facts.devices else (),
            dns=self._dns_port,
        )


def _mute(traffic: Traffic) -> list[str]:
    """The links in the way of IPv4 that answer no ARP, "all" for every one."""
    names = [each.name for each in traffic.links if each.group == GROUP_BRIDGE and traffic.cluster.version == 4]
    if traffic.way_out and 4 in (traffic.cluster.version, *traffic.underlay):
        names.append(traffic.way_out)
    asked = ["all", *names] if names else []
    return [name for name in asked if sysctl.read_if_there(f"ipv4/conf/{name}/arp_ignore") == MUTE]


def _carried(found: Iterable[tuple[Question, Way]]) -> Iterator[Carries]:
    """What the ways to peers carry."""
    for question, way in found:
        if way.mtu:
            yield Carries(way.link, way.mtu, str(question.destination), question.destination.version)


def _rules() -> list[Rule]:
    """The policy rules of both versions of IP: WireGuard's packets may be of the other one."""
    return [rule for version in ((4, 6) if sysctl.has_ipv6() else (4,)) for rule in policy_rules(version)]


def _missing(some: Iterable[Finding], others: Iterable[Finding]) -> list[Finding]:
    """Those of which the others have none about the same."""
    known = {(each.code, each.object, each.problem) for each in others}
    return [each for each in some if (each.code, each.object, each.problem) not in known]
