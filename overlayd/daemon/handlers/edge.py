"""Edge peers: devices outside the cluster that are let in for a while.

Owns: mint_edge_peer, list_edge_peers, revoke_edge_peer.  Must not know: sockets and frames, when a peer expires.
"""

import time
from collections.abc import Sequence
from functools import cache, partial

from overlayd import keys, wire
from overlayd.daemon import parse
from overlayd.daemon.change.resources import peers_locks
from overlayd.daemon.handlers.context import Daemon, NodeAsPeer
from overlayd.errors import RequestError
from overlayd.model import edges
from overlayd.model.objects import GLOBAL, Network
from overlayd.model.rows import Edge, numeric_endpoint
from overlayd.model.state import Draft, State
from overlayd.proto.wireguard import Activity

# Of the shape of edge_config.
VERSION = 1


async def mint_edge_peer(daemon: Daemon, request: wire.MintEdgePeer) -> wire.Response:
    """The answer is the only place where the private key is."""
    grants = cache(partial(_grants, request.allow))
    endpoint = _dialed(request.node_endpoint) if request.node_endpoint is not None else None
    this_node = NodeAsPeer(daemon)
    private = keys.generate()
    public = keys.public(private)

    def look() -> None:
        grants()
        if endpoint is None:
            this_node.look()

    def decide(draft: Draft) -> tuple[Edge, tuple[Network, ...]]:
        allowed, services = grants()
        edge = edges.mint(
            draft,
            request.name,
            public_key=public,
            now=int(time.time()),
            ttl=request.ttl_secs,
            allowed=allowed,
            services=services,
        )
        if endpoint is None:
            this_node.require()
        elif numeric := numeric_endpoint(endpoint):
            edges.require_dialable(draft, numeric[0])
        return edge, edges.reach(draft.state, edge)

    # What it is granted depends on services, too, of which those of an older edge peer of this name are not known yet.
    edge, reach = await daemon.node.change(decide, everything=True, prepare=look)
    server, domain = daemon.nameserver.announced_to(edge.services, reach)
    return wire.EdgeConfig(
        version=VERSION,
        name=edge.name,
        overlay_ip=str(edge.address),
        # Not the cluster's: what the device may not reach should not look on-link to it.
        prefix_len=edge.address.max_prefixlen,
        private_key=keys.text(private),
        public_key=keys.text(public),
        peers=(this_node.peer(reach, endpoint),),
        dns_server=str(server) if server is not None else None,
        dns_domain=domain or None,
        expires_at_unix=edge.expires,
    )


async def list_edge_peers(daemon: Daemon, request: wire.ListEdgePeers) -> wire.Response:
    node = daemon.node
    await node.settled(*peers_locks(GLOBAL))
    listed = list(node.state.table(Edge).values())
    seen: dict[bytes, Activity] = {}
    if listed and node.state.overlay is not None and node.kernel.backend is not None:
        seen = await node.run(node.kernel.backend.activity, node.state.overlay.interface)
    return wire.EdgePeers(peers=tuple(_listed(node.state, edge, seen) for edge in listed))


async def revoke_edge_peer(daemon: Daemon, request: wire.RevokeEdgePeer) -> wire.Response:
    await daemon.node.change(lambda draft: edges.revoke(draft, request.name), everything=True)
    return wire.Ok()


def _listed(state: State, edge: Edge, seen: dict[bytes, Activity]) -> wire.EdgePeer:
    activity = seen.get(edge.public_key)
    return wire.EdgePeer(
        name=edge.name,
        overlay_ip=str(edge.address),
        public_key=keys.text(edge.public_key),
        minted_at_unix=edge.minted,
        expires_at_unix=edge.expires,
        last_handshake_unix_secs=activity.last_handshake or None if activity is not None else None,
        allowed=tuple(map(str, edges.reach(state, edge))),
        services=edge.services,
    )


def _grants(allow: Sequence[str]) -> tuple[list[Network], list[str]]:
    """The CIDRs, and the rest, which are names of services."""
    allowed, services = [], []
    for each in allow:
        try:
            allowed.append(parse.network(each, "allow"))
        except RequestError:
            services.append(each)
    return allowed, services


def _dialed(endpoint: str) -> str:
    """An endpoint that is one: without it an edge peer outside of this network would dial an address inside it."""
    if not endpoint:
        raise RequestError("request.node_endpoint: '' is not host:port; leave the key out for this host's own address")
    return parse.endpoint(endpoint, "node_endpoint")
