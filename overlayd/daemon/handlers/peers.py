"""Peers and their allowed IPs.

Owns: add_peer, remove_peer, add_allowed_ip, remove_allowed_ip.  Must not know: sockets and frames.
"""

import logging

from overlayd import keys, wire
from overlayd.daemon import parse
from overlayd.daemon.change.node import Node
from overlayd.daemon.change.resources import peers_locks
from overlayd.daemon.handlers.context import Daemon
from overlayd.errors import RequestError
from overlayd.model import endpoints, membership, peers
from overlayd.model.layout import configured_address
from overlayd.model.names import require_printable
from overlayd.model.objects import GLOBAL, LONGEST_SCOPE, Network
from overlayd.model.rows import Service, numeric_endpoint
from overlayd.model.state import Draft

log = logging.getLogger(__name__)

# Our own constants, allowed IPs of one request.  More than MANY are read in a worker thread, some 10 us each.  Each
# A_FEW are as much work as a usual request.
MANY, A_FEW = 64, 4


def _scope(scope: wire.Scope) -> str:
    return scope.service if isinstance(scope, wire.ServiceScope) else GLOBAL


def _own_key(node: Node, scope: str) -> bytes:
    if scope == GLOBAL:
        return keys.public(node.state.node.private_key)
    service = node.state.get(Service, scope)
    return keys.public(service.private_key) if service is not None and service.dedicated else b""


async def add_peer(daemon: Daemon, request: wire.AddPeer) -> wire.Response:
    scope = _scope(request.scope)
    key = parse.key(request.public_key, "public_key")
    endpoint = parse.endpoint(request.endpoint, "endpoint")
    allowed_ips: list[tuple[Network, ...]] = []

    def read() -> None:
        allowed_ips.append(parse.networks(request.allowed_ips, "allowed_ips", peers.MOST_ALLOWED_IPS))

    if request.persistent_keepalive_secs > parse.KEEPALIVE_MAX:
        raise RequestError(
            f"request.persistent_keepalive_secs: at most {parse.KEEPALIVE_MAX}, got {request.persistent_keepalive_secs}"
        )
    if request.name:
        require_printable(request.name, "name", LONGEST_SCOPE)

    def decide(draft: Draft) -> list[str]:
        membership.require_foreign(draft, scope, key, "public_key")
        return peers.add_peer(
            draft,
            scope,
            key,
            own_key=_own_key(daemon.node, scope),
            endpoint=endpoint,
            keepalive=request.persistent_keepalive_secs,
            allowed_ips=allowed_ips[0],
            candidates=tuple((c.candidate_type, c.address, c.priority) for c in request.candidates),
            host=daemon.surroundings.networks,
            name=request.name,
        )

    number = request.allowed_ips.count(",") + 1
    if number <= MANY:
        read()
        size = max(number // A_FEW, 1)
        moved = await daemon.node.change_together(decide, exclusive=peers_locks(scope), size=size)
    else:
        moved = await daemon.node.change(decide, exclusive=peers_locks(scope), prepare=read)
    _log_moves(moved)
    _tell_misplaced(daemon, key, endpoint)
    if keys.is_nobodys(key):
        log.warning(
            "peer %s is never reached: this is no node's key, and no handshake succeeds with it", keys.text(key)
        )
    return wire.Ok()


async def remove_peer(daemon: Daemon, request: wire.RemovePeer) -> wire.Response:
    scope = _scope(request.scope)
    key = parse.key(request.pubkey, "pubkey")

    def decide(draft: Draft) -> None:
        membership.require_foreign(draft, scope, key, "pubkey")
        peers.remove_peer(draft, scope, key)

    await daemon.node.change_together(decide, exclusive=peers_locks(scope))
    return wire.Ok()


async def add_allowed_ip(daemon: Daemon, request: wire.AddAllowedIp) -> wire.Response:
    scope = _scope(request.scope)
    key = parse.key(request.pubkey, "pubkey")
    network = parse.network(request.cidr, "cidr")
    node = daemon.node

    def decide(draft: Draft) -> list[str]:
        peer = draft.peer(scope, key)
        at = configured_address(peer, node.facts) if peer is not None else None
        resolved = at[0] if at is not None else None
        return peers.add_allowed_ip(draft, scope, key, network, resolved=resolved, host=daemon.surroundings.networks)

    moved = await node.change_together(decide, exclusive=peers_locks(scope))
    _log_moves(moved)
    return wire.Ok()


async def remove_allowed_ip(daemon: Daemon, request: wire.RemoveAllowedIp) -> wire.Response:
    scope = _scope(request.scope)
    key = parse.key(request.pubkey, "pubkey")
    network = parse.network(request.cidr, "cidr")
    await daemon.node.change_together(
        lambda draft: peers.remove_allowed_ip(draft, scope, key, network), exclusive=peers_locks(scope)
    )
    return wire.Ok()


def _tell_misplaced(daemon: Daemon, key: bytes, endpoint: str) -> None:
    """The doctor says it as well: an address may come to this host later, or leave it."""
    at = numeric_endpoint(endpoint)
    if at is not None and (misplaced := endpoints.misplaced(daemon.node.state, at, daemon.surroundings.here)):
        log.warning("the endpoint %s of peer %s %s: packets for the peer end here", endpoint, keys.text(key), misplaced)


def _log_moves(moved: list[str]) -> None:
    for line in moved:
        log.warning("%s", line)
