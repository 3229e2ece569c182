"""What each request does: one short handler a request, in the module of its subject.

Owns: the table that finds a handler, and the one place where errors become responses.  Must not know: sockets and
frames.

A handler turns strings into values, asks the node for a change or reads the state, and turns the outcome into a
response.
"""

import logging
import time
from collections.abc import Awaitable, Callable
from errno import EAGAIN, EMFILE, ENFILE, ENOBUFS, ENOMEM
from functools import partial
from typing import Any

from overlayd import wire
from overlayd.daemon.change.slices import TakesLong
from overlayd.daemon.handlers import (
    cluster,
    containers,
    devices,
    doctor,
    edge,
    hello,
    listing,
    names,
    nat,
    overlay,
    peers,
    services,
)
from overlayd.daemon.handlers.context import Daemon
from overlayd.errors import MechanismError, RequestError, StateError

log = logging.getLogger(__name__)


class Handlers:
    """The dispatch table, bound to a daemon.

    quick: what answers a request that only reads the state, by its type; bytes: encoded already.  Unlike `read` it may
    raise.
    """

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.quick: dict[type[wire.Request], Callable[[Any], wire.Response | bytes]] = {
            kind: partial(handler, daemon) for kind, handler in QUICK.items()
        }
        self._record: Record | None = None

    def observe(self, record: "Record") -> None:
        """Tell of every request from now on: its op, the tag of its answer, and the seconds that it took."""
        self._record = record
        for kind, handler in self.quick.items():
            self.quick[kind] = partial(_observed, handler, record, str(kind.__struct_config__.tag))

    def is_quick(self, request: wire.Request) -> bool:
        """Whether the request only reads the state: `read` answers it; `run` does every other one."""
        return type(request) in self.quick

    def read(self, request: wire.Request) -> wire.Response | bytes | None:
        """Answer a quick request on the spot; bytes: an answer that is encoded already; None: not now, for it takes
        long, and `run` does it.  Never raises.
        """
        try:
            return self.quick[type(request)](request)
        except TakesLong:
            return None
        except Exception as error:
            return _failure(request, error)

    async def run(self, request: wire.Request) -> wire.Response | bytes:
        """Do a request and answer it.  Never raises."""
        began = time.monotonic()
        response: wire.Response | bytes
        try:
            response = await HANDLERS[type(request)](self.daemon, request)
        except Exception as error:
            response = _failure(request, error)
        if self._record is not None:
            tag = "ok" if isinstance(response, bytes) else str(response.__struct_config__.tag)
            self._record(_op(request), tag, time.monotonic() - began)
        return response


Record = Callable[[str, str, float], None]
# Shortages for which any system call may fail: no bugs of ours.
_SHORTAGES = (EMFILE, ENFILE, ENOMEM, ENOBUFS, EAGAIN)


def _observed(
    handler: Callable[[Any], wire.Response | bytes], record: Record, op: str, request: Any
) -> wire.Response | bytes:
    began = time.monotonic()
    response = handler(request)
    record(op, "ok", time.monotonic() - began)
    return response


def _failure(request: wire.Request, error: Exception) -> wire.Err:
    """Where errors become responses."""
    if isinstance(error, RequestError):
        return wire.Err(str(error), error.code)
    if isinstance(error, (MechanismError, StateError)):
        log.error("%s: %s", _op(request), error)
        return wire.Err(str(error), "kernel" if isinstance(error, MechanismError) else "disk")
    if isinstance(error, OSError) and error.errno in _SHORTAGES:
        at = f" ({error.filename})" if error.filename else ""
        message = f"cannot do that now: {error.strerror} (errno {error.errno}){at}"
        log.error("%s: %s", _op(request), message)
        return wire.Err(message, "kernel")
    log.error("%s: unexpected error", _op(request), exc_info=error)
    return wire.Err(f"internal error: {type(error).__name__}: {error}", "internal")


def _op(request: wire.Request) -> str:
    return str(request.__struct_config__.tag)


Quick = Callable[[Daemon, Any], wire.Response | bytes]
Slow = Callable[[Daemon, Any], Awaitable[wire.Response | bytes]]

# Requests that only read the state: answered on the spot.
QUICK: dict[type[wire.Request], Quick] = {
    wire.GetStatus: overlay.status,
    wire.GetNatStatus: nat.nat_status,
}

# Requests that change something, or wait, or take long.
HANDLERS: dict[type[wire.Request], Slow] = {
    wire.GetStatus: overlay.long_status,
    wire.GetNatStatus: nat.long_nat_status,
    wire.SetLocalNodeId: overlay.set_local_node_id,
    wire.SetLocalWgPubkey: overlay.set_local_wg_pubkey,
    wire.SetupGlobalOverlay: overlay.setup_global_overlay,
    wire.TeardownGlobalOverlay: overlay.teardown_global_overlay,
    wire.SetupServiceOverlay: services.setup_service_overlay,
    wire.TeardownServiceOverlay: services.teardown_service_overlay,
    wire.AllocateIp: services.allocate_ip,
    wire.ReleaseIp: services.release_ip,
    wire.AttachContainer: containers.attach_container,
    wire.DetachContainer: containers.detach_container,
    wire.AddPeer: peers.add_peer,
    wire.RemovePeer: peers.remove_peer,
    wire.AddAllowedIp: peers.add_allowed_ip,
    wire.RemoveAllowedIp: peers.remove_allowed_ip,
    wire.RegisterDns: names.register_dns,
    wire.UnregisterDns: names.unregister_dns,
    wire.ListDns: names.list_dns,
    wire.QueryDns: names.query_dns,
    wire.FlushDns: names.flush_dns,
    wire.WriteScopedResolver: names.write_scoped_resolver,
    wire.RemoveScopedResolver: names.remove_scoped_resolver,
    wire.PruneOrphanBridges: services.prune_orphan_bridges,
    wire.NatTick: nat.nat_tick,
    wire.Shutdown: overlay.shutdown,
    wire.MintEdgePeer: edge.mint_edge_peer,
    wire.ListEdgePeers: edge.list_edge_peers,
    wire.RevokeEdgePeer: edge.revoke_edge_peer,
    wire.Doctor: doctor.examine,
    wire.ListThings: listing.list_things,
    wire.RenewDevices: devices.renew_devices,
    wire.Hello: hello.hello,
    wire.Watch: hello.watch,
    wire.InitCluster: cluster.ask,
    wire.ListNodes: cluster.ask,
    wire.SetCluster: cluster.ask,
    wire.LeaveCluster: cluster.ask,
    wire.RemoveNode: cluster.ask,
    wire.RotateKey: cluster.ask,
    wire.RejoinCluster: cluster.ask,
    wire.AcceptCluster: cluster.ask,
    wire.CheckCluster: cluster.ask,
}
