"""What is not as it should be, and what to do about it.

Owns: what is looked at, and the words.  Must not know: who asks.  Changes nothing.
"""

from typing import NamedTuple

from overlayd.daemon import inspect, start
from overlayd.daemon.forwarding import ForwardWatch
from overlayd.daemon.health import Health
from overlayd.daemon.nameserver import Nameserver
from overlayd.daemon.nat import Nat
from overlayd.daemon.node import Node
from overlayd.daemon.sentinel import Sentinel, link_names, pace_key
from overlayd.errors import MechanismError
from overlayd.linux import forwarding, netns, wireguard
from overlayd.model import drift
from overlayd.model.layout import endpoint_address, endpoint_text, layout
from overlayd.model.peers import text
from overlayd.model.plan import plan
from overlayd.model.rows import Attachment, Peer

# Without this one some containers cannot be attached: a bit of linux/capability.h.
HELPFUL = {"CAP_SYS_PTRACE": 19}


class Finding(NamedTuple):
    """object: what it is about.  problem: a predicate of it.  remedy: what to do."""

    object: str
    problem: str
    remedy: str


class Doctor:
    """Examines a node."""

    def __init__(
        self,
        node: Node,
        sentinel: Sentinel,
        forwarding: ForwardWatch,
        health: Health,
        *,
        nameserver: Nameserver,
        nat: Nat,
    ) -> None:
        self._node = node
        self._sentinel = sentinel
        self._forwarding = forwarding
        self._health = health
        self._nameserver = nameserver
        self._nat = nat

    async def examine(self) -> list[Finding]:
        """Look at everything, while no change is in flight.  MechanismError when the kernel refuses a look."""
        await self._forwarding.check()
        drifted, dead = await self._node.alone(self._look)
        found = [*self._silent(), *drifted, *dead, *self._blockers(), *self._names(), *self._peers()]
        return [*found, *self._traversal(), *self._host()]

    def _look(self) -> tuple[list[Finding], list[Finding]]:
        """In a worker thread: what differs in the kernel, and who died."""
        node = self._node
        want = layout(node.state, node.facts)
        steps = plan(inspect.audit(node.kernel, want), want)
        failures = self._sentinel.failures
        others = [step for step in steps if pace_key(step) not in failures]
        found = [Finding(*pair, "restart overlayd, which puts it right") for pair in drift.told(others)]
        for step in steps:
            if reason := failures.get(pace_key(step)):
                remedy = f"clear the way: putting it right failed, {reason}"
                found += [Finding(*pair, remedy) for pair in drift.told([step])]
        names = link_names(node.state)
        for fault in forwarding.faults(names) if names else []:
            parameter, _, wrong = fault.partition(" ")
            found.append(Finding(parameter, wrong, "find out who sets it (/etc/sysctl.d); restart overlayd"))
        return found, self._dead()

    def _dead(self) -> list[Finding]:
        found = []
        for attachment in self._node.state.table(Attachment).values():
            if attachment.netns is None:
                continue
            try:
                if netns.is_alive(attachment.netns):
                    continue
                problem = f"has ended, and still holds {attachment.address}"
            except MechanismError as error:
                problem = f"cannot be looked at: {error}"
            found.append(Finding(attachment.handle, problem, "detach it (overlayctl call detach_container)"))
        return found

    def _silent(self) -> list[Finding]:
        problem, remedy = "does not answer", "wait: what serves it is ended and started anew if that lasts"
        return [Finding(f"device {device}", problem, remedy) for device in self._health.silent]

    def _blockers(self) -> list[Finding]:
        found = (blocker.partition(": ") for blocker in self._forwarding.blockers)
        return [Finding(chain, "and so keeps the overlay from forwarding", remedy) for chain, _, remedy in found]

    def _names(self) -> list[Finding]:
        server = self._nameserver
        return [
            Finding(f"DNS at {endpoint_text((address, server.port))}", unserved.problem, unserved.remedy)
            for address, unserved in server.unserved.items()
        ]

    def _peers(self) -> list[Finding]:
        state, facts = self._node.state, self._node.facts
        return [
            Finding(
                f"peer {text(peer.public_key)[:8]}...",
                f"cannot be reached: {peer.endpoint} does not resolve",
                "check the name, and this host's resolver",
            )
            for peer in state.table(Peer).values()
            if peer.endpoint and endpoint_address(peer, facts) is None
        ]

    def _traversal(self) -> list[Finding]:
        found = []
        if self._nat.lacking and self._node.state.overlay is not None:
            problem = "is missing: nodes behind a NAT cannot be reached but through a relay"
            found.append(Finding(self._nat.lacking, problem, "grant it, or set up the overlay with nat.enabled false"))
        if self._nat.relay.failure:
            remedy = "repair that, or set up the overlay without nat.relay_server; it is tried again every half minute"
            found.append(Finding("the relay", f"does not run: {self._nat.relay.failure}", remedy))
        if self._nat.failure:
            remedy = "repair that, or set up the overlay with other nat.turn_servers; it is tried again every minute"
            found.append(Finding("this node", f"is on no relay: {self._nat.failure}", remedy))
        return found

    def _host(self) -> list[Finding]:
        node = self._node
        found = []
        if node.state.overlay is not None and not node.facts.devices:
            remedy = "load the kernel's wireguard module, or install wireguard-go and provide /dev/net/tun"
            found.append(Finding("WireGuard", f"is not to be had ({wireguard.missing('auto')}): no tunnels", remedy))
        if lacking := start.missing_capability(HELPFUL):
            found.append(Finding(lacking, "is missing: containers of other users cannot be attached", "grant it"))
        if node.owed:
            found.append(
                Finding(
                    "the journal",
                    f"has {node.owed} rows otherwise than they are, because the disk refused to write them",
                    "free space or repair the disk; the next request that changes something writes them too",
                )
            )
        own = wireguard.public_key(node.state.node.private_key)
        if node.state.node.announced_key not in (b"", own):
            taken = text(node.state.node.announced_key)
            remedy = "have the orchestrator read status.public_key"
            found.append(Finding("the orchestrator", f"takes our public key for {taken}; it is {text(own)}", remedy))
        return found
