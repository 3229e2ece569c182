"""Containers and guests.

Owns: attach_container, detach_container.  Must not know: sockets and frames.
"""

from overlayd import wire
from overlayd.daemon import parse
from overlayd.daemon.handlers.context import Daemon, service_lock
from overlayd.daemon.node import Node
from overlayd.errors import MechanismError, RequestError
from overlayd.linux import netns
from overlayd.model import attachments
from overlayd.model.attachments import Wish
from overlayd.model.objects import Netns
from overlayd.model.rows import Attachment, Service
from overlayd.model.state import Draft


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
        exclusive=[*locks, service_lock(wish.service)] if settles else locks,
        shared=[service_lock(wish.service)],
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
    service = service_lock(attachment.service)
    await node.change(decide, exclusive=[*locks, service] if attachment.ephemeral else locks, shared=[service])


def _container_locks(namespace: Netns | None, isolation_network: str) -> list[str]:
    """What an attach or a detach must have for itself."""
    locks = [f"pid {namespace.pid}", f"namespace {namespace.inode}"] if namespace is not None else []
    return [*locks, f"isolation {isolation_network}"] if isolation_network else locks
