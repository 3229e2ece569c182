"""What is not as it should be, and what to do about it.

Owns: what is looked at, and the words.  Must not know: who asks.  Changes nothing.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager

from overlayd import keys
from overlayd.daemon import garbage
from overlayd.daemon.change import kernel_layout
from overlayd.daemon.change.disposal import dispose
from overlayd.daemon.change.node import Node
from overlayd.daemon.change.presence import lives
from overlayd.daemon.dns.nameserver import Nameserver
from overlayd.daemon.listeners import Listeners
from overlayd.daemon.nat.session import Nat
from overlayd.daemon.peers.health import Health
from overlayd.daemon.peers.next_hops import faulty_next_hops
from overlayd.daemon.tasks import KeepUp
from overlayd.daemon.upkeep.conflicts import Conflicts
from overlayd.daemon.upkeep.host import HostWatch
from overlayd.daemon.upkeep.sentinel import Sentinel, link_names
from overlayd.daemon.upkeep.surroundings import Surroundings
from overlayd.errors import MechanismError
from overlayd.linux import capability, conntrack, forwarding, moved_veths, neighbours
from overlayd.model import drift, wireguard_go
from overlayd.model.crowding import crowded, tracked
from overlayd.model.endpoints import misplaced
from overlayd.model.findings import Finding, ordered
from overlayd.model.layout import endpoint_address, endpoint_text, layout
from overlayd.model.names import LEGS
from overlayd.model.objects import Veth
from overlayd.model.pacing import pace_key
from overlayd.model.peers import called
from overlayd.model.plan import plan
from overlayd.model.rows import Attachment, Edge, Membership, Peer, Service
from overlayd.model.silent_peers import SilentPeer, silent_peers

INTERVAL = 1.0  # our own: seconds between two counts of what is followed


class Doctor:
    """Examines a node.  cluster: what its part in a cluster of a store tells of itself."""

    def __init__(
        self,
        node: Node,
        sentinel: Sentinel,
        host: HostWatch,
        health: Health,
        *,
        conflicts: Conflicts,
        surroundings: Surroundings,
        nameserver: Nameserver,
        nat: Nat,
        no_wireguard: Callable[[], str],
        cluster: Callable[[], list[Finding]] = list,
    ) -> None:
        """no_wireguard: says why there is no WireGuard, where there is none."""
        self._node = node
        self._sentinel = sentinel
        self._host = host
        self._health = health
        self._conflicts = conflicts
        self._surroundings = surroundings
        self._nameserver = nameserver
        self._nat = nat
        self._no_wireguard = no_wireguard
        self._cluster = cluster
        self._listeners = Listeners[Callable[[Finding, bool], None]]()

    async def examine(self) -> list[Finding]:
        """Look at everything, while no change is in flight; the worst comes first.  MechanismError when the kernel
        refuses a look.
        """
        await self._surroundings.look()
        # At the same time: each waits for other programs most of its time.
        looks = (self._node.run_exclusively(self._look), faulty_next_hops(self._node, self._health), self._host.check())
        found: list[Finding] = []
        for looked in (await asyncio.gather(*looks, return_exceptions=True))[:2]:
            if isinstance(looked, BaseException):
                raise looked
            assert isinstance(looked, list)
            found += looked
        found += [*self._followed(), *self._unanswered(), *await self._journal()]
        return ordered([*found, *self._unisolated(), *self._node_itself()])

    def subscribe(self, listener: Callable[[Finding, bool], None]) -> AbstractContextManager[None]:
        """Tell a listener of each finding that is followed and comes (True) or goes, until the block ends."""
        return self._listeners.with_another(listener)

    @asynccontextmanager
    async def counting(self, told: Callable[[int], None], keep_up: KeepUp) -> AsyncIterator[None]:
        """Tell every second how many findings are known, and those who subscribed of each that comes or goes."""

        async def count() -> None:
            known: dict[tuple[str, str], Finding] = {}
            while True:
                followed = {(each.code, each.object): each for each in self._followed()}
                told(self._count(followed.values()))
                for id in followed.keys() ^ known.keys():
                    raised = id in followed
                    for listener in self._listeners:
                        listener(followed[id] if raised else known[id], raised)
                known = followed
                await asyncio.sleep(INTERVAL)

        task = keep_up(count)
        try:
            yield
        finally:
            task.cancel()

    def known(self) -> int:
        """How many findings, hints apart, there are without a look at the kernel."""
        return self._count(self._followed())

    def _count(self, followed: Iterable[Finding]) -> int:
        return sum(each.severity != "hint" for each in followed) + self._health.count("silent")

    def _followed(self) -> list[Finding]:
        """What is followed all the time."""
        return [
            *self._silent(),
            *self._host.findings,
            *self._names(),
            *self._conflicts.findings(),
            *self._surroundings.findings,
            *self._edges(),
            *self._traversal(),
            *self._cluster(),
            *self._zone(),
        ]

    def _zone(self) -> list[Finding]:
        member, served = self._node.state.get(Membership), self._nameserver.zone
        if member is None or member.zone in ("", served):
            return []
        problem = f"has the zone {member.zone}, and the name server of this node has {served}"
        symptom = "names with their zone resolve on some of the nodes only"
        remedy = f"start overlayd here without --dns-zone {served}, or: overlayctl cluster set zone={served}"
        return [Finding("cluster-zone", "warning", f"cluster {member.cluster}", problem, symptom, remedy)]

    async def _journal(self) -> list[Finding]:
        found = []
        if problem := await self._node.check_journal():
            symptom = "a crash in between would have lost what was answered before"
            remedy = "find out who did that, and keep other programs out of the data directory"
            problem = f"was disturbed: {problem}"
            found.append(Finding("journal-displaced", "warning", "the journal", problem, symptom, remedy))
        if problem := await self._node.journal_obstacle():
            symptom = "traffic goes on; requests that change something are refused, or the next start is"
            remedy = "free space there, remount it writable, or clear the way that is named; nothing else is needed"
            problem = f"cannot be written: {problem}"
            found.append(Finding("journal-unwritable", "error", "the journal", problem, symptom, remedy))
        return found

    def _look(self) -> list[Finding]:
        """In a worker thread: what differs in the kernel, who died, and which peers have no address."""
        node = self._node
        with garbage.nothing_stays():
            want = layout(node.state, node.facts)
            have = kernel_layout.audit(node.kernel, want)
            steps = plan(have, want)
            macs = {each.name: each.mac for each in want.values() if isinstance(each, Veth) and each.bridge}
            dispose(have, want)
        failures = self._sentinel.failures
        others = [step for step in steps if pace_key(step) not in failures]
        remedy = "restart overlayd, which puts it right"
        found = [Finding("drift", "error", *pair, "", remedy) for pair in drift.describe(others)]
        for step in steps:
            if reason := failures.get(pace_key(step)):
                remedy = f"clear the way: putting it right failed, {reason}"
                found += [Finding("not-repaired", "error", *pair, "", remedy) for pair in drift.describe([step])]
        names = link_names(node.state)
        for fault in forwarding.faults(names) if names else []:
            parameter, _, wrong = fault.partition(" ")
            remedy = "find out who sets it (/etc/sysctl.d), and restart overlayd, which sets it again"
            found.append(Finding("forwarding-off", "error", parameter, wrong, "", remedy))
        backend = node.kernel.backend
        if backend is not None and backend.name == "userspace":
            versions = [(device, backend.version(device)) for device in self._health.devices().values()]
            installed = backend.installed()
            found += wireguard_go.findings(versions, installed) if installed else [wireguard_go.unknown()]
        found += crowded((each.version, each.entries, each.limit) for each in neighbours.tables())
        found += tracked(*connections) if (connections := conntrack.load()) is not None else []
        return [*found, *self._dead(), *self._unlike(macs), *self._unreached()]

    def _dead(self) -> list[Finding]:
        found = []
        for attachment in self._node.state.table(Attachment).values():
            if attachment.namespace is None:
                continue
            try:
                if lives(attachment):
                    continue
                problem = f"has ended, and still holds {attachment.address}"
            except MechanismError as error:
                problem = f"cannot be looked at: {error}"
            remedy = "detach it (overlayctl call detach_container)"
            found.append(Finding("container-gone", "error", attachment.handle, problem, "", remedy))
        return found

    def _unlike(self, macs: Mapping[str, bytes]) -> Iterator[Finding]:
        """A container may do with its interface what it likes, but does nothing by it that is elsewhere, or that sends
        from another MAC than its port takes.  macs: these, by host end.
        """
        held = {
            each.host_end(leg): (each.handle, each.namespace)
            for each in self._node.state.table(Attachment).values()
            for leg in LEGS
            if each.namespace is not None
        }
        symptom = "it reaches nobody by it, and nobody reaches it"
        for name, mac in moved_veths.unlike(
            moved_veths.End(name, it[1], macs.get(name, b"")) for name, it in held.items()
        ):
            handle = held[name][0]
            if mac:
                problem = f"has the MAC {mac.hex(':')} at the other end of {name}, whose port takes "
                problem += f"{macs[name].hex(':')} alone"
                remedy = f"give it back inside (ip link set dev INTERFACE address {macs[name].hex(':')}); to have "
                remedy += "another one, ask for it by mac of the attach"
                yield Finding("interface-mac", "error", handle, problem, symptom, remedy)
            else:
                problem = f"has an interface, the other end of {name}, that is no longer in its network namespace"
                remedy = "move it back, or restart overlayd, which makes it another one"
                yield Finding("interface-moved", "error", handle, problem, symptom, remedy)

    def _silent(self) -> list[Finding]:
        problem, remedy = "does not answer", "wait: what serves it is ended and started again if that lasts"
        symptom = "peers cannot be changed, and its tunnels may stand still"
        silent = self._health.silent
        return [Finding("device-silent", "error", f"device {device}", problem, symptom, remedy) for device in silent]

    def _names(self) -> list[Finding]:
        server = self._nameserver
        return [
            Finding(
                code="dns-unserved",
                severity="error",
                object=f"DNS at {endpoint_text((address, server.port))}",
                problem=unserved.problem,
                symptom="containers that ask there get no answer, or that of another program",
                remedy=unserved.remedy,
            )
            for address, unserved in server.unserved.items()
        ] + [
            Finding(
                code="dns-loop",
                severity="error",
                object=f"DNS upstream {upstream}",
                problem="forwards to this node, so it is not asked",
                symptom="names outside of the overlay do not resolve, or only by the other upstreams",
                remedy="let it ask other servers, or choose others with --dns-upstream",
            )
            for upstream in sorted(server.looping)
        ]

    def _unreached(self) -> list[Finding]:
        state, facts = self._node.state, self._node.facts
        found = []
        for peer in state.table(Peer).values():
            if keys.is_nobodys(peer.public_key):
                name = f"peer {called(state, peer.scope, peer.public_key)}"
                problem = f"cannot be reached: {keys.text(peer.public_key)} is no node's key: no handshake succeeds"
                remedy = "remove it, and add the peer with the public_key of its own status"
                found.append(Finding("key-nobodys", "warning", name, problem, "", remedy))
                continue
            if not peer.endpoint:
                continue
            at = endpoint_address(peer, facts)
            wrong = misplaced(state, at, self._surroundings.here) if at is not None else ""
            if at is not None and not wrong:
                continue
            name = f"peer {called(state, peer.scope, peer.public_key)}"
            if at is None:
                problem = f"cannot be reached: {peer.endpoint} does not resolve to an address outside of the overlay"
                remedy = "check the name, and this host's resolver"
                found.append(Finding("endpoint-unresolved", "error", name, problem, "", remedy))
            else:
                problem = f"cannot be reached: its endpoint {peer.endpoint} {wrong}"
                remedy = "add the peer again, with the address of its own node"
                found.append(Finding("endpoint-misplaced", "error", name, problem, "", remedy))
        return found

    def _unanswered(self) -> list[Finding]:
        health, now = self._health, time.time()
        silent = []
        for (scope, key), waited in health.unanswered().items():
            activity = health.activity(scope, key)
            endpoint = activity.endpoint if activity is not None else None
            shaken = activity.last_handshake if activity is not None else 0
            silent.append(
                SilentPeer(
                    name=called(self._node.state, scope, key) + (f" of service {scope}" if scope else ""),
                    endpoint=endpoint_text(self._nat.seen_as(endpoint)) if endpoint is not None else "",
                    waited=waited,
                    last_handshake=now - shaken if shaken else None,
                )
            )
        return silent_peers(silent, health.count("answers"))

    def _unisolated(self) -> list[Finding]:
        state = self._node.state
        isolated = {service.name for service in state.table(Service).values() if service.isolated}
        return [
            Finding(
                "not-isolated",
                "warning",
                each.handle,
                f"is in the isolated service {each.service}, but in no isolation network",
                "every container without one reaches it",
                "detach it, and attach it with an isolation_network",
            )
            for each in state.table(Attachment).values()
            if each.service in isolated and not each.isolation_network
        ]

    def _edges(self) -> list[Finding]:
        state = self._node.state
        return [
            Finding(
                code="grant-lost",
                severity="warning",
                object=f"edge peer {edge.name}",
                problem=f"may reach service {name}, which is not on this node",
                symptom="it reaches nothing of that service",
                remedy="set the service up again, or shut the edge peer out (overlayctl edge revoke)",
            )
            for edge in state.table(Edge).values()
            for name in edge.services
            if state.get(Service, name) is None
        ]

    def _traversal(self) -> list[Finding]:
        found = []
        if self._nat.lacking and self._node.state.overlay is not None:
            problem, symptom = "is missing", "nodes behind a NAT cannot be reached but through a relay"
            remedy = "grant it, or set up the overlay with nat.enabled false"
            found.append(Finding("capability-missing", "warning", self._nat.lacking, problem, symptom, remedy))
        if self._nat.relay.failure:
            remedy = "repair that, or set up the overlay without nat.relay_server; it is tried again every half minute"
            problem = f"does not run: {self._nat.relay.failure}"
            found.append(Finding("relay-down", "error", "the relay", problem, "", remedy))
        if self._nat.unmapped:
            problem, symptom = (
                f"has no port of its router: {self._nat.unmapped}",
                "nodes find it by STUN, hole punching and relays alone",
            )
            remedy = "allow PCP, NAT-PMP or UPnP on the router, or set up the overlay without nat.port_mapping"
            found.append(Finding("port-unmapped", "warning", "this node", problem, symptom, remedy))
        if self._nat.failure:
            remedy = "repair that, or set up the overlay with other nat.turn_servers; it is tried again every minute"
            problem, symptom = (
                f"is on no relay: {self._nat.failure}",
                "nodes that hole punching does not reach are cut off",
            )
            found.append(Finding("relay-unreachable", "error", "this node", problem, symptom, remedy))
        return found

    def _node_itself(self) -> list[Finding]:
        node = self._node
        found = []
        if node.state.overlay is not None and not node.facts.devices:
            remedy = "load the kernel's wireguard module, or install wireguard-go and provide /dev/net/tun"
            problem = f"is not to be had ({self._no_wireguard()})"
            symptom = "there are no tunnels to other nodes"
            found.append(Finding("wireguard-missing", "error", "WireGuard", problem, symptom, remedy))
        if lacking := capability.missing("CAP_SYS_PTRACE"):
            symptom = "containers of other users cannot be attached"
            found.append(Finding("capability-missing", "warning", lacking, "is missing", symptom, "grant it"))
        if node.owed:
            found.append(
                Finding(
                    "journal-behind",
                    "error",
                    "the journal",
                    f"has {node.owed} rows otherwise than they are, because the disk refused to write them",
                    "what was done last is forgotten at a crash",
                    "free space or repair the disk; the next request that changes something writes them too",
                )
            )
        own = keys.public(node.state.node.private_key)
        if node.state.node.announced_key not in (b"", own):
            taken = keys.text(node.state.node.announced_key)
            remedy = "have the orchestrator read status.public_key"
            problem = f"takes our public key for {taken}; it is {keys.text(own)}"
            symptom = "other nodes refuse this one"
            found.append(Finding("key-mismatch", "error", "the orchestrator", problem, symptom, remedy))
        return found
