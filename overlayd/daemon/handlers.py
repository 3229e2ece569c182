"""What each request does.

Owns: one short handler a request, the table that finds it, and the one place where errors become responses.  Must
not know: sockets and frames.

A handler turns strings into values, asks `node` for a change or reads the state, and turns the outcome into a response.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import msgspec

from overlayd import wire
from overlayd.daemon import parse
from overlayd.daemon.node import Node
from overlayd.daemon.status import StatusView
from overlayd.errors import MechanismError, RequestError, StateError
from overlayd.linux import netns
from overlayd.linux.wireguard import public_key
from overlayd.model import attachments, ipam, overlay, peers, services
from overlayd.model.attachments import Wish
from overlayd.model.objects import GLOBAL, Netns
from overlayd.model.rows import Attachment, Overlay, Service
from overlayd.model.state import Draft
from overlayd.model.subnets import first_usable

log = logging.getLogger(__name__)


class Daemon(NamedTuple):
    """What handlers work with."""

    node: Node
    status: StatusView
    boot_id: str
    stop: Callable[[], None]


class Handlers:
    """The dispatch table, bound to a daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon

    def quick(self, request: wire.Request) -> Callable[[], wire.Response | bytes] | None:
        """How to answer a request that only reads the state; None for every other one."""
        handler = QUICK.get(type(request))
        if handler is None:
            return None
        return lambda: handler(self.daemon, request)

    async def run(self, request: wire.Request) -> wire.Response:
        """Do a request and answer it.  Never raises: this is where errors become responses."""
        try:
            return await HANDLERS[type(request)](self.daemon, request)
        except RequestError as error:
            return wire.Err(message=str(error))
        except (MechanismError, StateError) as error:
            log.error("%s: %s", _op(request), error)
            return wire.Err(message=str(error))
        except Exception as error:
            log.exception("%s: unexpected error", _op(request))
            return wire.Err(message=f"internal error: {type(error).__name__}: {error}")


def _op(request: wire.Request) -> str:
    return str(request.__struct_config__.tag)


async def set_local_node_id(daemon: Daemon, request: wire.SetLocalNodeId) -> wire.Response:
    await daemon.node.change(lambda draft: overlay.set_node_id(draft, request.node_id), exclusive=["node"])
    return wire.Ok()


async def set_local_wg_pubkey(daemon: Daemon, request: wire.SetLocalWgPubkey) -> wire.Response:
    key = parse.key(request.pubkey, "pubkey")
    own = public_key(daemon.node.state.node.private_key)
    if key != own:
        log.warning("the orchestrator takes our public key for %s; it is %s", request.pubkey, peers.text(own))
    await daemon.node.change(lambda draft: overlay.announce_key(draft, key), exclusive=["node"])
    return wire.Ok()


async def setup_global_overlay(daemon: Daemon, request: wire.SetupGlobalOverlay) -> wire.Response:
    if not request.deployment or not request.instance_id:
        raise RequestError(
            "request.deployment and request.instance_id must not be empty: our links are named after them"
        )
    cluster = parse.network(request.cluster_cidr, "cluster_cidr")
    slice = parse.network(request.slice_cidr, "slice_cidr") if request.slice_cidr is not None else None
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
            nat=msgspec.to_builtins(request.nat) if request.nat is not None else None,
        )

    row = await node.change(decide, everything=True, verify=[(Overlay.table, "")])
    return wire.BridgeName(name=row.interface)


async def teardown_global_overlay(daemon: Daemon, request: wire.TeardownGlobalOverlay) -> wire.Response:
    await daemon.node.change(overlay.teardown_global, everything=True)
    return wire.Ok()


async def setup_service_overlay(daemon: Daemon, request: wire.SetupServiceOverlay) -> wire.Response:
    subnet = parse.network(request.subnet, "subnet") if request.subnet is not None else None
    if request.mode == "dedicated":
        raise RequestError("not supported yet: setup_service_overlay with mode dedicated")
    dedicated_key = None
    service = await daemon.node.change(
        lambda draft: services.setup_service(draft, request.service, subnet=subnet, dedicated_key=dedicated_key),
        exclusive=[_service(request.service)],
        verify=[(Service.table, request.service)],
    )
    if not service.dedicated:
        return wire.BridgeName(name=service.bridge)
    return wire.ServiceOverlay(
        name=service.bridge,
        mode="dedicated",
        wg_public_key=peers.text(public_key(service.private_key)),
        wg_port=service.wg_port,
        overlay_ip=str(first_usable(service.subnet)),
        subnet=str(service.subnet),
    )


async def teardown_service_overlay(daemon: Daemon, request: wire.TeardownServiceOverlay) -> wire.Response:
    # Whoever is attached goes as well: their own locks are too many to name, so nobody else may change anything.
    await daemon.node.change(lambda draft: services.teardown_service(draft, request.service), everything=True)
    return wire.Ok()


async def allocate_ip(daemon: Daemon, request: wire.AllocateIp) -> wire.Response:
    address = await daemon.node.change(
        lambda draft: ipam.allocate_ip(draft, request.service), shared=[_service(request.service)]
    )
    return wire.Ip(ip=str(address))


async def release_ip(daemon: Daemon, request: wire.ReleaseIp) -> wire.Response:
    address = parse.address(request.ip, "ip")

    def decide(draft: Draft) -> None:
        if not ipam.release(draft, address, ipam.REQUEST):
            holder = ipam.holder_of(draft, address) or "nobody"
            log.info("release_ip %s: left alone, held by %s", address, holder)

    await daemon.node.change(decide, exclusive=[f"address {address}"])
    return wire.Ok()


async def attach_container(daemon: Daemon, request: wire.AttachContainer) -> wire.Response:
    wish = Wish(
        service=request.service,
        join_global=request.join_global,
        ephemeral=request.ephemeral,
        isolation_network=request.isolation_network or "",
        dns_server=parse.address(request.dns_server, "dns_server") if request.dns_server is not None else None,
        dns_domain=parse.dns_name(request.dns_domain, "dns_domain") if request.dns_domain else "",
    )
    match request.handle:
        case wire.LinuxPid(pid=pid):
            return await _attach_pid(daemon, wish, pid)
        case wire.WindowsContainer():
            raise RequestError("windows_container handles are only supported on Windows")
        case _:
            raise RequestError("not supported yet: attach_container of this handle")


async def _attach_pid(daemon: Daemon, wish: Wish, pid: int) -> wire.Response:
    namespace = _living(pid)
    locks = _container_locks(namespace, wish.isolation_network)
    service = daemon.node.state.get(Service, wish.service)
    settles = service is not None and not service.lasting and not wish.ephemeral  # then the service's row changes too
    attachment = await daemon.node.change(
        lambda draft: attachments.attach_container(draft, wish, namespace, daemon.boot_id),
        exclusive=[*locks, _service(wish.service)] if settles else locks,
        shared=[_service(wish.service)],
    )
    return wire.Attached(ip=str(attachment.address))


def _living(pid: int) -> Netns:
    """The namespace of a container's process; RequestError when it cannot be a container's."""
    try:
        namespace = netns.identify(pid)
    except MechanismError as error:
        raise RequestError(f"cannot attach pid {pid}: {error}") from error
    if namespace.inode == netns.own_inode():
        raise RequestError(
            f"pid {pid} lives in the host's own network namespace: refused; start the container with a network "
            "namespace of its own"
        )
    return namespace


async def detach_container(daemon: Daemon, request: wire.DetachContainer) -> wire.Response:
    match request.handle:
        case wire.LinuxPid(pid=pid):
            handle = attachments.container(pid)
        case wire.GuestManaged(id=id):
            handle = attachments.guest(id)
        case wire.HostShared(id=id):
            handle = attachments.host(id)
        case _:
            return wire.Ok()
    attachment = daemon.node.state.get(Attachment, handle) or _in_namespace_of(daemon, request.handle)
    if attachment is not None:
        await detach(daemon.node, attachment)
    return wire.Ok()


def _in_namespace_of(daemon: Daemon, handle: wire.Handle) -> Attachment | None:
    """The attachment that another process of the same namespace was attached under."""
    if not isinstance(handle, wire.LinuxPid):
        return None
    try:
        return daemon.node.state.in_namespace(netns.identify(handle.pid).inode)
    except MechanismError:
        return None


async def detach(node: Node, attachment: Attachment) -> None:
    """Take an attachment back, unless somebody else did meanwhile."""

    def decide(draft: Draft) -> None:
        present = draft.get(Attachment, attachment.handle)
        if present is not None and present.netns == attachment.netns:
            attachments.detach(draft, present)

    locks = _container_locks(attachment.netns, attachment.isolation_network)
    service = _service(attachment.service)
    await node.change(decide, exclusive=[*locks, service] if attachment.ephemeral else locks, shared=[service])


def _container_locks(namespace: Netns | None, isolation_network: str) -> list[str]:
    """What an attach or a detach must have for itself."""
    locks = [f"pid {namespace.pid}", f"namespace {namespace.inode}"] if namespace is not None else []
    return [*locks, f"isolation {isolation_network}"] if isolation_network else locks


def _scope(scope: wire.Scope) -> str:
    return scope.service if isinstance(scope, wire.ServiceScope) else GLOBAL


def _own_key(node: Node, scope: str) -> bytes:
    if scope == GLOBAL:
        return public_key(node.state.node.private_key)
    service = node.state.get(Service, scope)
    return public_key(service.private_key) if service is not None and service.dedicated else b""


def _peers(scope: str) -> str:
    return f"peers {scope}"


async def add_peer(daemon: Daemon, request: wire.AddPeer) -> wire.Response:
    scope = _scope(request.scope)
    key = parse.key(request.public_key, "public_key")
    endpoint = parse.endpoint(request.endpoint, "endpoint")
    allowed_ips = parse.networks(request.allowed_ips, "allowed_ips")
    if request.persistent_keepalive_secs > parse.KEEPALIVE_MAX:
        raise RequestError(
            f"request.persistent_keepalive_secs: at most {parse.KEEPALIVE_MAX}, got {request.persistent_keepalive_secs}"
        )
    moved = await daemon.node.change(
        lambda draft: peers.add_peer(
            draft,
            scope,
            key,
            own_key=_own_key(daemon.node, scope),
            endpoint=endpoint,
            keepalive=request.persistent_keepalive_secs,
            allowed_ips=allowed_ips,
            candidates=tuple((c.candidate_type, c.address, c.priority) for c in request.candidates),
        ),
        exclusive=[_peers(scope)],
    )
    _log_moves(moved)
    return wire.Ok()


async def remove_peer(daemon: Daemon, request: wire.RemovePeer) -> wire.Response:
    scope = _scope(request.scope)
    key = parse.key(request.pubkey, "pubkey")
    await daemon.node.change(lambda draft: peers.remove_peer(draft, scope, key), exclusive=[_peers(scope)])
    return wire.Ok()


async def add_allowed_ip(daemon: Daemon, request: wire.AddAllowedIp) -> wire.Response:
    scope = _scope(request.scope)
    key = parse.key(request.pubkey, "pubkey")
    network = parse.network(request.cidr, "cidr")
    moved = await daemon.node.change(
        lambda draft: peers.add_allowed_ip(draft, scope, key, network), exclusive=[_peers(scope)]
    )
    _log_moves(moved)
    return wire.Ok()


async def remove_allowed_ip(daemon: Daemon, request: wire.RemoveAllowedIp) -> wire.Response:
    scope = _scope(request.scope)
    key = parse.key(request.pubkey, "pubkey")
    network = parse.network(request.cidr, "cidr")
    await daemon.node.change(
        lambda draft: peers.remove_allowed_ip(draft, scope, key, network), exclusive=[_peers(scope)]
    )
    return wire.Ok()


def _log_moves(moved: list[str]) -> None:
    for line in moved:
        log.warning("%s", line)


async def shutdown(daemon: Daemon, request: wire.Shutdown) -> wire.Response:
    await daemon.node.change(overlay.teardown_global, everything=True)
    daemon.stop()
    return wire.Ok()


async def not_yet(daemon: Daemon, request: wire.Request) -> wire.Response:
    raise RequestError(f"not supported yet: {_op(request)}")


def status(daemon: Daemon, request: wire.Request) -> bytes:
    return daemon.status.encoded()


def _service(name: str) -> str:
    return f"service {name}"


Quick = Callable[[Daemon, Any], wire.Response | bytes]
Slow = Callable[[Daemon, Any], Awaitable[wire.Response]]

# Requests that only read the state: answered on the spot.
QUICK: dict[type[wire.Request], Quick] = {
    wire.GetStatus: status,
}

# Requests that change something, or wait.
HANDLERS: dict[type[wire.Request], Slow] = {
    wire.SetLocalNodeId: set_local_node_id,
    wire.SetLocalWgPubkey: set_local_wg_pubkey,
    wire.SetupGlobalOverlay: setup_global_overlay,
    wire.TeardownGlobalOverlay: teardown_global_overlay,
    wire.SetupServiceOverlay: setup_service_overlay,
    wire.TeardownServiceOverlay: teardown_service_overlay,
    wire.AllocateIp: allocate_ip,
    wire.ReleaseIp: release_ip,
    wire.AttachContainer: attach_container,
    wire.DetachContainer: detach_container,
    wire.AddPeer: add_peer,
    wire.RemovePeer: remove_peer,
    wire.AddAllowedIp: add_allowed_ip,
    wire.RemoveAllowedIp: remove_allowed_ip,
    wire.RegisterDns: not_yet,
    wire.UnregisterDns: not_yet,
    wire.WriteScopedResolver: not_yet,
    wire.RemoveScopedResolver: not_yet,
    wire.PruneOrphanBridges: not_yet,
    wire.NatTick: not_yet,
    wire.GetNatStatus: not_yet,
    wire.Shutdown: shutdown,
    wire.MintEdgePeer: not_yet,
    wire.ListEdgePeers: not_yet,
    wire.RevokeEdgePeer: not_yet,
}
