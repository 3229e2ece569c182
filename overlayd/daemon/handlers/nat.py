"""How nodes reach each other.

Owns: nat_tick, nat_status.  Must not know: sockets and frames.
"""

from overlayd import keys, wire
from overlayd.daemon.change.slices import Slices, TakesLong
from overlayd.daemon.handlers.context import Daemon
from overlayd.daemon.status import AT_ONCE
from overlayd.model.layout import endpoint_text
from overlayd.model.objects import GLOBAL
from overlayd.model.rows import Peer


async def nat_tick(daemon: Daemon, request: wire.NatTick) -> wire.Response:
    daemon.ask_names()
    await daemon.nat.refresh()
    return wire.Ok()


def nat_status(daemon: Daemon, request: wire.GetNatStatus) -> bytes:
    """TakesLong: there are too many peers to describe them at once."""
    peers = _shown(daemon)
    if len(peers) > AT_ONCE:
        raise TakesLong
    return wire.encode_with(_of_this_node(daemon), "peers", [wire.encode_part(_peer(daemon, peer)) for peer in peers])


async def long_nat_status(daemon: Daemon, request: wire.GetNatStatus) -> bytes:
    """The same, others being served meanwhile."""
    slices, encoded = Slices(), []
    for peer in _shown(daemon):
        encoded.append(wire.encode_part(_peer(daemon, peer)))
        await slices.pause()
    return wire.encode_with(_of_this_node(daemon), "peers", encoded)


def _shown(daemon: Daemon) -> list[Peer]:
    state = daemon.node.state
    up = state.overlay is not None and daemon.node.facts.devices
    return [*state.peers(GLOBAL).values()] if up else []


def _of_this_node(daemon: Daemon) -> wire.NatStatus:
    return wire.NatStatus(
        candidates=tuple(
            wire.NatCandidate(candidate.kind, endpoint_text((candidate.address, candidate.port)), candidate.priority)
            for candidate in daemon.nat.candidates()
        ),
        last_refresh=daemon.nat.refreshed,
        relay_failure=daemon.nat.failure or None,
    )


def _peer(daemon: Daemon, peer: Peer) -> wire.NatPeer:
    """A node is known by its public key: nothing in the contract tells its number."""
    connection, at = daemon.nat.connection(peer)
    condition = daemon.health.condition(GLOBAL, peer.public_key)
    return wire.NatPeer(
        node_id=keys.text(peer.public_key),
        connection_type=connection or "unreachable",
        remote_endpoint=endpoint_text(at) if at is not None else None,
        health="silent" if condition == "silent" else "idle" if condition == "idle" and connection else None,
        name=peer.name or None,
    )
