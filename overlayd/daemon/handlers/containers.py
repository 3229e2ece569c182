"""Containers and guests.

Owns: attach_container, detach_container.  Must not know: sockets and frames.
"""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from overlayd import keys, wire
from overlayd.daemon import parse
from overlayd.daemon.change.resources import attachment_locks, peers_locks, service_lock
from overlayd.daemon.handlers.context import Daemon, NodeAsPeer
from overlayd.daemon.upkeep.reclaim import detach
from overlayd.errors import MechanismError, RequestError
from overlayd.linux import netns
from overlayd.model import attachments
from overlayd.model.attachments import AttachSpec
from overlayd.model.names import require_printable
from overlayd.model.objects import GLOBAL, LONGEST_SCOPE, Netns
from overlayd.model.rows import Attachment, Overlay, Service
from overlayd.model.state import Draft
from overlayd.model.subnets import first_usable

log = logging.getLogger(__name__)

T = TypeVar("T")


async def attach_container(daemon: Daemon, request: wire.AttachContainer) -> wire.Response:
    if daemon.cluster is not None:
        daemon.cluster.require_attachable()
    require_printable(request.isolation_network or "", "isolation_network", LONGEST_SCOPE)
    spec = AttachSpec(
        service=request.service,
        join_global=request.join_global,
        ephemeral=request.ephemeral,
        isolation_network=request.isolation_network or "",
        dns_server=parse.address(request.dns_server, "dns_server") if request.dns_server is not None else None,
        dns_domain=parse.dns_name(request.dns_domain, "dns_domain") if request.dns_domain else "",
        now=int(time.time()),
    )
    match request.handle:
        case wire.LinuxPid(pid=pid):
            return await _attach_pid(daemon, spec, pid)
        case wire.WindowsContainer():
            raise RequestError("windows_container handles are only supported on Windows")
        case wire.GuestManaged(id=id):
            return await _attach_guest(daemon, spec, _named(id))
        case wire.HostShared(id=id):
            return await _attach_host(daemon, spec, _named(id))


async def _attach_pid(daemon: Daemon, spec: AttachSpec, pid: int) -> wire.Response:
    namespace = _living(pid)
    pid = namespace.pid
    handle = attachments.container(pid)
    present = attachments.find(daemon.node.state, handle, namespace.inode)

    def decide(draft: Draft) -> tuple[Attachment, Service]:
        attachment = attachments.attach_container(draft, spec, namespace, daemon.boot_id, netns.is_alive)
        return attachment, attachments.service_of(draft, spec.service)

    attachment, service = await _attach(
        daemon,
        spec,
        decide,
        attachment_locks(handle, namespace, spec.isolation_network),
        # Who was there before may be dead: then it is given up as well, with all that hangs on it.
        everything=present is not None and namespace not in present.processes,
    )
    if service.isolated and not attachment.isolation_network:
        log.warning("%s joins the isolated service %s without an isolation_network: not isolated", handle, service.name)
    return wire.Attached(
        ip=str(attachment.address),
        subnet=str(service.subnet),
        gateway=str(first_usable(service.subnet)),
        prefix_len=service.subnet.prefixlen,
    )


async def _attach_host(daemon: Daemon, spec: AttachSpec, id: str) -> wire.Response:
    if not daemon.node.facts.devices:
        raise RequestError("a host_shared container's address is on the global device, and this node has none")
    locks = attachment_locks(attachments.host(id), None, spec.isolation_network)
    attachment = await _attach(daemon, spec, lambda draft: attachments.attach_host(draft, spec, id), locks)
    return wire.Attached(ip=str(attachment.address))


async def _attach_guest(daemon: Daemon, spec: AttachSpec, id: str) -> wire.Response:
    this_node = NodeAsPeer(daemon)
    private = keys.generate()

    def decide(draft: Draft) -> Attachment:
        attachment = attachments.attach_guest(draft, spec, id, private, keys.public(private))
        this_node.require()
        return attachment

    attachment = await _attach(
        daemon,
        spec,
        decide,
        [*attachment_locks(attachments.guest(id), None, spec.isolation_network), *peers_locks(GLOBAL)],
        prepare=this_node.look,
    )
    overlay = daemon.node.state.table(Overlay)[""]
    server, domain = daemon.nameserver.announced_to([attachment.service])
    server = attachment.dns_server or server
    return wire.GuestConfig(
        overlay_ip=str(attachment.address),
        prefix_len=overlay.cluster.prefixlen,
        private_key=keys.text(attachment.private_key),
        public_key=keys.text(attachment.public_key),
        listen_port=overlay.wg_port,
        peers=(this_node.peer(None),),
        dns_server=str(server) if server is not None else None,
        dns_domain=attachment.dns_domain or domain or None,
    )


async def _attach(
    daemon: Daemon,
    spec: AttachSpec,
    decide: Callable[[Draft], T],
    locks: list[str],
    *,
    everything: bool = False,
    prepare: Callable[[], None] | None = None,
) -> T:
    service = daemon.node.state.get(Service, spec.service)
    # The service's row may change too; one that is not there may be about to be set up by a request ahead of us.
    settles = not spec.ephemeral and not (service is not None and service.lasting)
    return await daemon.node.change(
        decide,
        exclusive=[*locks, service_lock(spec.service)] if settles else locks,
        shared=[service_lock(spec.service)],
        everything=everything,
        prepare=prepare,
    )


def _named(id: str) -> str:
    if not id:
        raise RequestError("request.handle.id must not be empty")
    require_printable(id, "handle.id", LONGEST_SCOPE)
    return id


def _living(pid: int) -> Netns:
    """The namespace of a container's process; RequestError when it cannot be a container's."""
    try:
        namespace = netns.identify(netns.process_of(pid))
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
            handle = attachments.container(netns.process_of(pid))
        case wire.GuestManaged(id=id):
            handle = attachments.guest(id)
        case wire.HostShared(id=id):
            handle = attachments.host(id)
        case _:
            return wire.Ok()
    await detach(daemon.node, handle)
    return wire.Ok()
