"""How nodes reach each other.

Owns: nat_tick, nat_status.  Must not know: sockets and frames.
"""

from overlayd import wire
from overlayd.daemon.handlers.context import Daemon
from overlayd.model.candidates import host_candidates
from overlayd.model.layout import endpoint_address, endpoint_text
from overlayd.model.objects import GLOBAL
from overlayd.model.peers import text
from overlayd.model.rows import Peer


async def nat_tick(daemon: Daemon, request: wire.NatTick) -> wire.Response:
    await daemon.candidates.refresh()
    daemon.ask_names()
    return wire.Ok()


def nat_status(daemon: Daemon, request: wire.GetNatStatus) -> wire.Response:
    overlay = daemon.node.state.overlay
    if overlay is None or not daemon.node.facts.devices:
        return wire.NatStatus(last_refresh=daemon.candidates.refreshed)
    candidates = host_candidates(daemon.candidates.addresses, overlay.wg_port)
    return wire.NatStatus(
        candidates=tuple(
            wire.NatCandidate(candidate.kind, endpoint_text((candidate.address, candidate.port)), candidate.priority)
            for candidate in candidates
        ),
        peers=tuple(_peer(daemon, peer) for peer in daemon.node.state.peers(GLOBAL).values()),
        last_refresh=daemon.candidates.refreshed,
    )


def _peer(daemon: Daemon, peer: Peer) -> wire.NatPeer:
    """A node is known by its public key: nothing in the contract tells its number."""
    activity = daemon.health.activity(GLOBAL, peer.public_key)
    endpoint = activity.endpoint if activity is not None else endpoint_address(peer, daemon.node.facts)
    return wire.NatPeer(
        node_id=text(peer.public_key),
        connection_type="direct" if daemon.health.is_fresh(GLOBAL, peer.public_key) else "unreachable",
        remote_endpoint=endpoint_text(endpoint) if endpoint is not None else None,
    )
