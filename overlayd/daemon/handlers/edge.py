"""Edge peers: devices outside the cluster that are let in for a while.

Owns: mint_edge_peer, list_edge_peers, revoke_edge_peer.  Must not know: sockets and frames, when a peer expires.
"""

import time

from overlayd import keys, wire
from overlayd.daemon import parse
from overlayd.daemon.change.resources import peers_locks
from overlayd.daemon.handlers.context import Daemon, NodeAsPeer
from overlayd.model import edges
from overlayd.model.objects import GLOBAL
from overlayd.model.rows import Edge
from overlayd.model.state import Draft
from overlayd.proto.wireguard import Activity

# Of the shape of edge_config.
VERSION = 1


async def mint_edge_peer(daemon: Daemon, request: wire.MintEdgePeer) -> wire.Response:
    """The answer is the only place where the private key is."""
    allowed = tuple(dict.fromkeys(parse.network(cidr, "allow") for cidr in request.allow))
    this_node = NodeAsPeer(daemon)
    private = keys.generate()
    public = keys.public(private)

    def decide(draft: Draft) -> Edge:
        now = int(time.time())
        edge = edges.mint(draft, request.name, public_key=public, now=now, ttl=request.ttl_secs, allowed=allowed)
        this_node.require()
        return edge

    edge = await daemon.node.change(decide, exclusive=_locks(request.name), prepare=this_node.look)
    return wire.EdgeConfig(
        version=VERSION,
        name=edge.name,
        overlay_ip=str(edge.address),
        # Not the cluster's: what the device may not reach should not look on-link to it.
        prefix_len=edge.address.max_prefixlen,
        private_key=keys.text(private),
        public_key=keys.text(public),
        peers=(this_node.peer(allowed),),
        expires_at_unix=edge.expires,
    )


async def list_edge_peers(daemon: Daemon, request: wire.ListEdgePeers) -> wire.Response:
    node = daemon.node
    await node.settled(*peers_locks(GLOBAL))
    listed = list(node.state.table(Edge).values())
    seen: dict[bytes, Activity] = {}
    if listed and node.state.overlay is not None and node.kernel.backend is not None:
        seen = await node.run(node.kernel.backend.activity, node.state.overlay.interface)
    return wire.EdgePeers(peers=tuple(_listed(edge, seen) for edge in listed))


async def revoke_edge_peer(daemon: Daemon, request: wire.RevokeEdgePeer) -> wire.Response:
    await daemon.node.change(lambda draft: edges.revoke(draft, request.name), exclusive=_locks(request.name))
    return wire.Ok()


def _listed(edge: Edge, seen: dict[bytes, Activity]) -> wire.EdgePeer:
    activity = seen.get(edge.public_key)
    return wire.EdgePeer(
        name=edge.name,
        overlay_ip=str(edge.address),
        public_key=keys.text(edge.public_key),
        minted_at_unix=edge.minted,
        expires_at_unix=edge.expires,
        last_handshake_unix_secs=activity.last_handshake or None if activity is not None else None,
        allowed=tuple(map(str, edge.allowed)),
    )


def _locks(name: str) -> list[str]:
    return [edges.holder(name), *peers_locks(GLOBAL)]
