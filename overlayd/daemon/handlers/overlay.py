"""The node and its global overlay.

Owns: set_local_node_id, set_local_wg_pubkey, setup and teardown of the global overlay, status, shutdown.  Must not
know: sockets and frames.
"""

import logging
from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from overlayd import keys, wire
from overlayd.daemon import parse
from overlayd.daemon.change.resources import NODE
from overlayd.daemon.handlers.context import Daemon
from overlayd.errors import RequestError, quoted
from overlayd.linux import forwarding
from overlayd.model import membership, overlay
from overlayd.model.rows import Overlay
from overlayd.model.state import Draft
from overlayd.proto import turn_uri

log = logging.getLogger(__name__)

STUN_PORT = 3478  # RFC 8489, section 8.1; also TURN's (RFC 8656, section 4.1)
NOBODY = "none"  # in place of STUN servers, from the contract
RELAY_SESSIONS = 100  # our own constant: of a relay whose max_sessions is 0


async def set_local_node_id(daemon: Daemon, request: wire.SetLocalNodeId) -> wire.Response:
    before = daemon.node.state.node.node_id
    await daemon.node.change(lambda draft: overlay.set_node_id(draft, request.node_id), exclusive=[NODE])
    if before not in (0, request.node_id):
        log.warning("another node id: %d -> %d", before, request.node_id)
    return wire.Ok()


async def set_local_wg_pubkey(daemon: Daemon, request: wire.SetLocalWgPubkey) -> wire.Response:
    key = parse.key(request.pubkey, "pubkey")
    own = keys.public(daemon.node.state.node.private_key)
    if key != own:
        log.warning("the orchestrator takes our public key for %s; it is %s", request.pubkey, keys.text(own))
    await daemon.node.change(lambda draft: overlay.announce_key(draft, key), exclusive=[NODE])
    return wire.Ok()


async def setup_global_overlay(daemon: Daemon, request: wire.SetupGlobalOverlay) -> wire.Response:
    if not request.deployment or not request.instance_id:
        raise RequestError(
            "request.deployment and request.instance_id must not be empty: our links are named after them"
        )
    cluster = parse.network(request.cluster_cidr, "cluster_cidr")
    slice = parse.network(request.slice_cidr, "slice_cidr") if request.slice_cidr is not None else None
    nat = effective(request.nat) if request.nat is not None else None
    node = daemon.node
    if request.host_adapter_mandatory and node.kernel.backend is None:
        raise RequestError(
            "no WireGuard backend on this node: load the kernel's wireguard module, or install wireguard-go and "
            "provide /dev/net/tun"
        )

    found: list[tuple[list[int], list[int]]] = []

    def look() -> None:
        daemon.surroundings.read()
        found.append((forwarding.closed(), forwarding.bridged()))

    before: list[Overlay | None] = []

    def decide(draft: Draft) -> Overlay:
        before.append(draft.get(Overlay))
        overlay.note_host(draft, daemon.boot_id, *found[-1])
        membership.require_own_range(draft, cluster, slice)
        return overlay.setup_global(
            draft,
            deployment=request.deployment,
            instance_id=request.instance_id,
            cluster=cluster,
            slice=slice,
            wg_port=request.wg_port,
            nat=msgspec.to_builtins(nat) if nat is not None else None,
            host=daemon.surroundings.networks,
        )

    offered = nat if nat is not None else wire.NatConfig()
    daemon.nat.relay.require(offered.relay_server if offered.enabled else None, cluster)
    try:
        row = await node.change(decide, everything=True, verify=[(Overlay.table, "")], prepare=look)
    except BaseException:
        daemon.nat.restore_relay()
        raise
    _tell_what_is_another(before[-1], row)
    return wire.BridgeName(name=row.interface)


def _tell_what_is_another(before: Overlay | None, now: Overlay) -> None:
    """Log what a setup changed of who this node is: its links and addresses follow."""
    for field in ("deployment", "instance_id", "cluster", "slice") if before is not None else ():
        old, new = getattr(before, field), getattr(now, field)
        if old != new:
            log.warning(
                "another %s: %s -> %s", field, old if old is not None else "none", new if new is not None else "none"
            )


def effective(nat: wire.NatConfig) -> wire.NatConfig:
    """The configuration as it takes effect: all servers with their ports, none of STUN if nobody is to be asked, and
    the built-in values for what is empty or 0.  RequestError names what is no server.
    """
    built_in = wire.NatConfig()
    turn = []
    for number, server in enumerate(nat.turn_servers):
        if server.addr:
            turn.append(_turn_server(server))
        else:
            log.warning("nat.turn_servers[%d] has no addr, and is left out", number)
    relay = nat.relay_server
    if relay is not None:
        port, sessions = relay.listen_port or STUN_PORT, relay.max_sessions or RELAY_SESSIONS
        relay = replace(relay, listen_port=port, max_sessions=sessions)
    return replace(
        nat,
        stun_servers=_stun_servers(nat.stun_servers) if nat.stun_servers else built_in.stun_servers,
        turn_servers=tuple(turn),
        hole_punch_timeout_secs=nat.hole_punch_timeout_secs or built_in.hole_punch_timeout_secs,
        stun_refresh_interval_secs=nat.stun_refresh_interval_secs or built_in.stun_refresh_interval_secs,
        max_candidate_pairs=nat.max_candidate_pairs or built_in.max_candidate_pairs,
        relay_server=relay,
    )


def _turn_server(server: wire.TurnServer) -> wire.TurnServer:
    """As `host:port`, or a URI where it is not UDP."""
    try:
        written = turn_uri.read(server.addr)
    except ValueError as error:
        raise RequestError(f"request.nat.turn_servers.addr: {quoted(server.addr)}: {error}") from None
    if server.ca_file and written.transport != "tls":
        raise RequestError(
            f"request.nat.turn_servers.ca_file: {quoted(server.addr)} has no certificate; with TLS it is turns:"
        )
    if server.ca_file and not server.ca_file.startswith("/"):
        raise RequestError(f"request.nat.turn_servers.ca_file: {quoted(server.ca_file)} is not an absolute path")
    at = parse.server(written.at, "nat.turn_servers.addr", written.default_port)
    return replace(server, addr=str(written._replace(at=at)))


def _stun_servers(servers: Sequence[str]) -> tuple[str, ...]:
    if tuple(servers) == (NOBODY,):
        return ()
    if NOBODY in servers:
        raise RequestError(
            f"request.nat.stun_servers: {NOBODY!r} means to ask nobody, and stands alone; a host of that name is "
            f"written {NOBODY}:{STUN_PORT}"
        )
    return tuple(parse.server(server, "nat.stun_servers", STUN_PORT) for server in servers)


async def teardown_global_overlay(daemon: Daemon, request: wire.TeardownGlobalOverlay) -> wire.Response:
    await daemon.node.change(overlay.teardown_global, everything=True)
    return wire.Ok()


def status(daemon: Daemon, request: wire.GetStatus) -> bytes:
    return daemon.status.encoded()


async def long_status(daemon: Daemon, request: wire.GetStatus) -> bytes:
    return await daemon.status.described()


async def shutdown(daemon: Daemon, request: wire.Shutdown) -> wire.Response:
    await daemon.node.change(overlay.teardown_global, everything=True)
    daemon.stop()
    return wire.Ok()
