"""Where peers are sent to in place of what was configured, and how that reaches them.

Owns: `Facts.selected`.  Must not know: when a peer is looked for (`traversal`).

It is a fact of the outside, like where a host name points: it takes the one way that all changes take to the device,
and a repeated add_peer finds nothing to change.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from overlayd.daemon.change.node import Node
from overlayd.daemon.change.resources import peers_locks
from overlayd.daemon.nat.allocation import Allocation
from overlayd.model.candidates import RELAY, ConnectionType, Endpoint, connection_type, peer_candidates
from overlayd.model.layout import Facts, Selected, configured_address
from overlayd.model.objects import GLOBAL
from overlayd.model.rows import Peer, RowId
from overlayd.model.traversal import Way

KEEPALIVE = 25  # our own constant, seconds, through a NAT: most of these forget a silent flow after 30 s


class Selection:
    """What is selected of the global overlay's peers.  behind_nat: whether we are."""

    def __init__(self, node: Node, allocation: Allocation, behind_nat: Callable[[], bool]) -> None:
        self._node = node
        self._allocation = allocation
        self._behind_nat = behind_nat
        self._relays: dict[bytes, Endpoint] = {}  # of peers which were found there, and had not told

    def of(self, peer: Peer) -> Selected | None:
        return self._node.facts.selected.get((peer.key, peer.endpoint))

    async def put(self, peer: Peer, selected: Selected | None) -> None:
        """Change it, and forget what was selected of peers that are gone.  MechanismError: it is as it was."""
        id = (peer.key, peer.endpoint)
        table = self._node.state.table(Peer)

        def is_current(key: str, endpoint: str) -> bool:
            row = table.get(key)
            return row is not None and row.endpoint == endpoint

        def update(facts: Facts) -> Facts:
            rest = {key: value for key, value in facts.selected.items() if key != id and is_current(*key)}
            return replace(facts, selected=rest | ({id: selected} if selected is not None else {}))

        if self.of(peer) != selected:
            await self._learn(update, [peer.id])

    async def hold_on(self, found: Mapping[RowId, tuple[Peer, Selected]]) -> None:
        """Let peers stay where they were found, by their rows.  MechanismError: nothing has changed."""
        selected = {(peer.key, peer.endpoint): where for peer, where in found.values()}
        if selected:
            await self._learn(lambda facts: replace(facts, selected={**facts.selected, **selected}), list(found))

    async def point(self, peer: Peer, way: Way, *, silently: bool = False) -> None:
        """Let the device send to a peer by a way: at once, as it does when a keepalive is switched on, or silently.
        OSError: the way's end has no socket to be had.
        """
        if way.kind == RELAY and not way.through_relay:
            self._relays[peer.public_key] = way.endpoint
        await self.put(peer, Selected(self.endpoint_of(way), 0 if silently else KEEPALIVE))

    def endpoint_of(self, way: Way) -> Endpoint:
        """Where the device sends for a way.  OSError: the way's end has no socket to be had."""
        return self._allocation.loopback.local(way.endpoint) if way.through_relay else way.endpoint

    def settled(self, peer: Peer, at: Endpoint) -> Selected | None:
        """What to hold on to for a peer that is reached at `at`: the NATs between us forget it without a keepalive."""
        keepalive = KEEPALIVE if self._behind_nat() or self.connection(peer, at) != "direct" else 0
        if at == configured_address(peer, self._node.facts) and not keepalive:
            return None
        return Selected(at, keepalive)

    def connection(self, peer: Peer, at: Endpoint) -> ConnectionType:
        """How a peer is reached whose packets come from `at`."""
        if self._allocation.loopback.remote(at) is not None or self._relays.get(peer.public_key) == at:
            return "relayed"
        return connection_type(at, configured_address(peer, self._node.facts), peer_candidates(peer.candidates))

    def is_cut_off(self, peer: Peer, at: Endpoint) -> bool:
        """Whether `at` is a socket of an earlier daemon, by which it reached the peer through a relay."""
        if not at[0].is_loopback or self._allocation.loopback.remote(at) is not None:
            return False
        return at != configured_address(peer, self._node.facts)

    def forget(self, key: bytes) -> None:
        """A peer is gone; what was selected of it goes with the next change."""
        self._relays.pop(key, None)

    async def _learn(self, update: Callable[[Facts], Facts], rows: Collection[RowId]) -> None:
        """Cancelling the caller does not stop it: the kernel would be left half-way."""
        await asyncio.shield(self._node.update_facts(update, rows, exclusive=peers_locks(GLOBAL)))
