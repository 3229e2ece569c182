"""Following which allowed IPs of peers are this node's own, and so not installed.

Owns: what is in conflict now, and the words for it in log and doctor.  Must not know: what a conflict is
(`model.conflicts`), or how a device hears of its end (`sentinel`).

A request that changes a peer has its layout at once.  What ends or begins a conflict from the other side (a service, an
address, the slice, a block) is heard of here, and makes the peers of that scope suspect.
"""

import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from ipaddress import ip_address

from overlayd import keys
from overlayd.daemon.change.node import Node
from overlayd.daemon.upkeep.suspects import Part
from overlayd.model.conflicts import withheld
from overlayd.model.findings import Finding
from overlayd.model.objects import GLOBAL, Network
from overlayd.model.peers import called
from overlayd.model.rows import Change, Lease, Membership, Overlay, Peer, Service, peer_of
from overlayd.model.state import further_blocks

log = logging.getLogger(__name__)


class Conflicts:
    """suspect: has a part of the node looked at soon, and put right."""

    def __init__(self, node: Node, suspect: Callable[[Part, str], None]) -> None:
        self._node = node
        self._suspect = suspect
        self._held: dict[str, dict[Network, str]] = {}  # by the key of the peer's row: what is withheld, and its holder

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow the conflicts, those that are there and those that come, until the block ends."""
        with self._node.subscribe(self.follow):
            self._judge(self._node.state.table(Peer))
            yield

    def findings(self) -> list[Finding]:
        return [
            Finding(
                "allowed-ip-conflict",
                "error",
                f"allowed IP {network} of peer {self._called(key)}",
                f"is not installed, for it is {by}",
                "two nodes of the cluster take the same addresses for theirs",
                f"have one of them give {network} up",
            )
            for key, held in self._held.items()
            for network, by in held.items()
        ]

    def _called(self, key: str) -> str:
        public_key, scope = peer_of(key)
        return called(self._node.state, scope, public_key)

    def follow(self, change: Change) -> None:
        """Judge again what a change that has taken effect may have brought about."""
        announcers, announcers_within = self._node.state.announcers, self._node.state.announcers_within
        affected: dict[str, None] = {}
        own = False
        for (table, key), row in change.items():
            if table == Peer.table:
                affected[key] = None
            elif table == Lease.table:
                address = row.address if isinstance(row, Lease) else ip_address(key)
                affected |= dict.fromkeys(announcers_within(address.packed, address.max_prefixlen))
            elif table in (Service.table, Overlay.table):
                own = True
                if isinstance(row, Service):
                    affected |= dict.fromkeys(announcers(row.subnet))
                elif isinstance(row, Overlay) and row.slice is not None:
                    affected |= dict.fromkeys(announcers(row.slice))
            elif isinstance(row, Membership):
                own = own or bool(further_blocks(row))
                for block in further_blocks(row):
                    affected |= dict.fromkeys(announcers(block))
        if own:
            affected |= dict.fromkeys(self._held)
        changed = {(Peer.table, key) for key in self._judge(affected)} - change.keys()
        for scope in {peer_of(key)[1] for _, key in changed}:
            self._suspect(Part("peers", scope), "conflict")
            if scope != GLOBAL:  # there an allowed IP of the cluster has a route too
                self._suspect(Part("device", scope), "conflict")

    def _judge(self, peers: Iterable[str]) -> list[str]:
        """Judge peers, by the keys of their rows, and log what is new.  Returns those with a difference."""
        state, different = self._node.state, []
        for key in list(peers):
            row = state.get(Peer, key)
            now = withheld(state, row) if row is not None else {}
            before = self._held.pop(key, {})
            if now:
                self._held[key] = now
            if now != before:
                different.append(key)
            if not now and not before:
                continue
            name = keys.text(peer_of(key)[0])
            for network, by in now.items():
                if network not in before:
                    log.warning("allowed IP %s of peer %s is not installed: it is %s", network, name, by)
            for network in before:
                if network not in now and row is not None and network in row.allowed_ips:
                    log.info("allowed IP %s of peer %s is installed: this node has it no longer", network, name)
        return different
