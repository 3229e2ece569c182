"""The node and its global overlay.

Owns: set_local_node_id, set_local_wg_pubkey, setup and teardown of the global overlay, status, shutdown.  Must not
know: sockets and frames.
"""

import logging

import msgspec
from msgspec.structs import replace

from overlayd import keys, wire
from overlayd.daemon import parse
from overlayd.daemon.change.resources import NODE
from overlayd.daemon.handlers.context import Daemon
from overlayd.errors import RequestError
from overlayd.model import overlay
from overlayd.model.rows import Overlay
from overlayd.model.state import Draft

log = logging.getLogger(__name__)

STUN_PORT = 3478  # RFC 8489, section 8.1; also TURN's (RFC 8656, section 4.1)


async def set_local_node_id(daemon: Daemon, request: wire.SetLocalNodeId) -> wire.Response:
    await daemon.node.change(lambda draft: overlay.set_node_id(draft, request.node_id), exclusive=[NODE])
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
    nat = _nat(request.nat) if request.nat is not None else None
    node = daemon.node
    if request.host_adapter_mandatory and node.kernel.backend is None:
        raise RequestError(
            "no WireGuard backend on this node: load the kernel's wireguard module, or install wireguard-go and "
            "provide /dev/net/tun"
        )

    def decide(draft: Draft) -> Overlay:
        return overlay.setup_global(
            draft,
            deployment=request.deployment,
            instance_id=request.instance_id,
            cluster=cluster,
            slice=slice,
            wg_port=request.wg_port,
            nat=msgspec.to_builtins(nat) if nat is not None else None,
        )

    offered = nat if nat is not None else wire.NatConfig()
    daemon.nat.relay.require(offered.relay_server if offered.enabled else None, cluster)
    try:
        row = await node.change(decide, everything=True, verify=[(Overlay.table, "")])
    except BaseException:
        daemon.nat.restore_relay()
        raise
    return wire.BridgeName(name=row.interface)


def _nat(nat: wire.NatConfig) -> wire.NatConfig:
    """The configuration with all servers as `host:port`."""
    stun = (parse.server(server, "nat.stun_servers", STUN_PORT) for server in nat.stun_servers)
    turn = (
        replace(each, addr=parse.server(each.addr, "nat.turn_servers.addr", STUN_PORT)) for each in nat.turn_servers
    )
    return replace(nat, stun_servers=tuple(stun), turn_servers=tuple(turn))


async def teardown_global_overlay(daemon: Daemon, request: wire.TeardownGlobalOverlay) -> wire.Response:
    await daemon.node.change(overlay.teardown_global, everything=True)
    return wire.Ok()


def status(daemon: Daemon, request: wire.Request) -> bytes:
    return daemon.status.encoded()


async def shutdown(daemon: Daemon, request: wire.Shutdown) -> wire.Response:
    await daemon.node.change(overlay.teardown_global, everything=True)
    daemon.stop()
    return wire.Ok()
