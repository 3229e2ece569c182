"""NAT traversal as it is configured: what is at work, and for how long.

Owns: the parts that find out where this node is, look for peers, and relay, from one configuration to the next.  Must
not know: requests, or how the parts do it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace

import msgspec

from overlayd import keys, wire
from overlayd.daemon.change.node import Node
from overlayd.daemon.change.resources import peers_locks
from overlayd.daemon.nat.allocation import Allocation
from overlayd.daemon.nat.checks import Checks
from overlayd.daemon.nat.known_nodes import KnownNodes
from overlayd.daemon.nat.own_addresses import Candidates
from overlayd.daemon.nat.port_mapping import PortMapping
from overlayd.daemon.nat.reflexive import Reflexive
from overlayd.daemon.nat.relay_offer import RelayOffer
from overlayd.daemon.nat.selection import Selection
from overlayd.daemon.nat.stun_port import StunPort
from overlayd.daemon.nat.traversal import Traversal
from overlayd.daemon.peers.health import Health, Listener
from overlayd.daemon.peers.lookup import Lookups
from overlayd.daemon.tasks import KeepUp, Spawn
from overlayd.linux import capability
from overlayd.model.candidates import Candidate, ConnectionType, Endpoint, node_candidates
from overlayd.model.health import Condition
from overlayd.model.layout import endpoint_address, endpoint_text
from overlayd.model.objects import GLOBAL
from overlayd.model.rows import Change, Overlay, Peer
from overlayd.model.rows import Node as NodeRow
from overlayd.model.traversal import Way
from overlayd.proto.wireguard import Activity

log = logging.getLogger(__name__)

# Our own constant: seconds between two tries to start a relay that should be there.
RELAY_PAUSE = 30.0


def config_of(overlay: Overlay | None) -> wire.NatConfig:
    """The configuration of an overlay: what the request brought, or the built-in one."""
    if overlay is None or not overlay.nat:
        return wire.NatConfig()
    try:
        return msgspec.convert(overlay.nat, wire.NatConfig)
    except msgspec.ValidationError as error:  # another version took it
        log.error("the NAT configuration cannot be taken over, and is the built-in one until the next setup: %s", error)
        return wire.NatConfig()


class Nat(Listener):
    """At work within `running`.  host: this host's addresses.  relay: the one that we offer.  lacking: the
    capability without which WireGuard's port cannot be shared; empty when nothing lacks.

    spawn, keep_up: see `Tasks`.
    """

    def __init__(self, node: Node, health: Health, lookups: Lookups, spawn: Spawn, keep_up: KeepUp) -> None:
        self.host = Candidates(node)
        self._nodes = KnownNodes(lambda: node.state.peers(GLOBAL).values())
        self.relay = RelayOffer(self._nodes.__contains__)
        self.lacking = capability.missing("CAP_NET_RAW")
        self._node = node
        self._health = health
        self._lookups = lookups
        self._spawn = spawn
        self._keep_up = keep_up
        self._setting: tuple[wire.NatConfig, int, bytes] | None = None  # with our key, by which peers check ways
        self._session: Session | None = None

    @property
    def is_cut_off(self) -> bool:
        """Whether peers do not answer, and none does."""
        return self._health.count("silent") > 0 and not self._health.count("answers")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Do what the configuration says, and follow it, until the block ends."""
        with self._health.subscribe(self), self._node.subscribe(self.follow):
            watches = [self._keep_up(self.host.watch), self._keep_up(self._keep_relay)]
            try:
                self._configure()
                yield
            finally:
                for task in watches:
                    task.cancel()
                self._end_session()
                self.relay.close()

    def follow(self, change: Change) -> None:
        """Follow the configuration, and the peers."""
        self._nodes.follow(change)
        if (Overlay.table, "") in change or (NodeRow.table, "") in change:
            self._configure()
        if self._session is not None:
            self._session.traversal.follow(change)

    async def refresh(self) -> None:
        """Find out again where this node is, and look for all peers that do not answer.  MechanismError: the kernel
        does not say what addresses there are.
        """
        self.restore_relay()
        if self._session is not None:
            self._session.reflexive.refresh_soon()
            self._session.traversal.retry()
        await self.host.refresh()

    # --- what is shown ------------------------------------------------------------------------------------------------

    @property
    def refreshed(self) -> int:
        """When this node's candidates were last found out, Unix seconds."""
        return max(self.host.refreshed, self._session.reflexive.refreshed if self._session else 0)

    @property
    def failure(self) -> str:
        """Why there is no address on any TURN server though some are configured, in words."""
        return self._session.allocation.failure if self._session is not None else ""

    @property
    def unmapped(self) -> str:
        """Why the router sends no port here though it was to be asked, in words."""
        return self._session.port_mapping.failure if self._session is not None else ""

    def candidates(self) -> list[Candidate]:
        """Where this node may be reached; nowhere without a device."""
        overlay = self._node.state.overlay
        if overlay is None or not self._node.facts.devices:
            return []
        mapped: list[Endpoint] = []
        relayed: list[Endpoint] = []
        opened: list[Endpoint] = []
        if self._session is not None:
            mapped = self._session.reflexive.mapped
            relayed = list(self._session.allocation.relayed.values())
            if self._session.port_mapping.opened is not None:
                opened.append(self._session.port_mapping.opened)
        return node_candidates(self.host.addresses, overlay.wg_port, mapped, relayed, opened)

    def connection(self, peer: Peer) -> tuple[ConnectionType | None, Endpoint | None]:
        """How a peer is reached, or was before it went idle, None when it is not; and where."""
        activity = self._health.activity(GLOBAL, peer.public_key)
        at = activity.endpoint if activity is not None else endpoint_address(peer, self._node.facts)
        never_heard = activity is None or not activity.last_handshake
        looked_for = never_heard and bool(peer.candidates)
        if at is None or looked_for or self._health.condition(GLOBAL, peer.public_key) == "silent":
            return None, None if at is None else self.seen_as(at)
        return self._session.selection.connection(peer, at) if self._session else "direct", self.seen_as(at)

    def seen_as(self, endpoint: Endpoint) -> Endpoint:
        """An endpoint of the device as it is told to others: where a relayed peer is, rather than our socket for it."""
        remote = self._session.allocation.loopback.remote(endpoint) if self._session is not None else None
        return remote or endpoint

    # --- from one configuration to the next ---------------------------------------------------------------------------

    def _configure(self) -> None:
        """Work as the state says."""
        self.restore_relay()
        overlay = self._node.state.overlay
        setting = None
        if overlay is not None and self._node.facts.devices:
            config = msgspec.structs.replace(config_of(overlay), relay_server=None)
            setting = (config, overlay.wg_port, self._node.state.node.private_key) if config.enabled else None
        if setting == self._setting:
            return
        self._setting = setting
        self._end_session()
        if setting is not None:
            if self.lacking:
                log.warning("missing capability %s: it is not found out where this node is seen from", self.lacking)
            config, wg_port, _ = setting
            self._session = Session(
                self._node,
                self._health,
                self._lookups,
                self.host,
                config=config,
                wg_port=wg_port,
                spawn=self._spawn,
                keep_up=self._keep_up,
            )
        elif self._node.facts.selected:
            self._spawn(self._forget_selected())

    def _end_session(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def restore_relay(self) -> None:
        """Offer the relay that the state names, and no other."""
        overlay = self._node.state.overlay
        config = config_of(overlay)
        if overlay is None:
            self.relay.close()
        else:
            self.relay.restore(config.relay_server if config.enabled else None, overlay.cluster)

    async def _keep_relay(self) -> None:
        while True:
            await asyncio.sleep(RELAY_PAUSE)
            if self.relay.failure:
                self.restore_relay()

    async def _forget_selected(self) -> None:
        """Let peers that do not answer go back to what is configured; the others stay where they are."""
        silent = [
            peer.id for key, peer in self._node.state.peers(GLOBAL).items() if not self._health.is_fresh(GLOBAL, key)
        ]
        await self._node.update_facts(lambda facts: replace(facts, selected={}), silent, exclusive=peers_locks(GLOBAL))

    # --- what `Health` tells ------------------------------------------------------------------------------------------

    def activity_read(self, scope: str, activity: Mapping[bytes, Activity]) -> None:
        if self._session is not None:
            self._session.traversal.activity_read(scope, activity)

    def peer_moved(self, scope: str, public_key: bytes, endpoint: Endpoint) -> None:
        shown = endpoint_text(self.seen_as(endpoint))
        log.info("peer %s has moved to %s", keys.text(public_key), shown)
        self._health.publish(wire.NatEndpointChanged(keys.text(public_key), shown))
        if self._session is not None:
            self._session.traversal.peer_moved(scope, public_key, endpoint)

    def condition_changed(self, scope: str, public_key: bytes, condition: Condition) -> None:
        if self._session is not None:
            self._session.traversal.condition_changed(scope, public_key, condition)


class Session:
    """What is at work under one configuration, from its making until `close`."""

    def __init__(
        self,
        node: Node,
        health: Health,
        lookups: Lookups,
        host: Candidates,
        *,
        config: wire.NatConfig,
        wg_port: int,
        spawn: Spawn,
        keep_up: KeepUp,
    ) -> None:
        self._host = host
        self._port = StunPort(wg_port)
        self._checks = Checks(node.state.node.private_key, self._send)
        self._hearing = ExitStack()
        self._hearing.enter_context(self._port.subscribe(self._checks.hear))
        self.reflexive = Reflexive(self._port, lookups, config.stun_servers, config.stun_refresh_interval_secs)
        self.allocation = Allocation(config.turn_servers, lookups, wg_port, self._heard_through_relay)
        self.port_mapping = PortMapping(node, wg_port)
        self.selection = Selection(node, self.allocation, self._is_behind_nat)
        self.traversal = Traversal(
            node,
            health,
            config,
            port=self._port,
            checks=self._checks,
            reflexive=self.reflexive,
            allocation=self.allocation,
            selection=self.selection,
            spawn=spawn,
        )
        self._tasks = [spawn(self.traversal.resume())]
        if config.stun_servers:
            self._tasks.append(keep_up(self.reflexive.watch))
        if config.port_mapping:
            self._tasks.append(keep_up(self.port_mapping.watch))
        if config.turn_servers:
            self._tasks.append(keep_up(self.allocation.watch))

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self.traversal.close()
        self.allocation.close()
        self._hearing.close()

    def _send(self, datagram: bytes, way: Way) -> None:
        if way.through_relay:
            self.allocation.send(datagram, way.endpoint)
        else:
            self._port.send(datagram, way.endpoint)

    def _heard_through_relay(self, datagram: bytes, sender: Endpoint) -> None:
        self._checks.hear(datagram, sender, through_relay=True)

    def _is_behind_nat(self) -> bool:
        return any(address not in self._host.addresses for address, _ in self.reflexive.mapped)
