"""Containers and guests.

Owns: attach_container, detach_container, and the same for a caller who has a namespace and no request of the wire.
Must not know: sockets and frames.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeVar

from overlayd import keys, wire
from overlayd.daemon import parse
from overlayd.daemon.change.presence import has_link
from overlayd.daemon.change.resources import attachment_locks, peers_locks, service_lock
from overlayd.daemon.handlers.context import Daemon, NodeAsPeer
from overlayd.daemon.upkeep.reclaim import detach
from overlayd.errors import (
    InterfaceExists,
    InvalidValue,
    MechanismError,
    NamespaceGone,
    OwnNamespace,
    RequestError,
    quoted,
)
from overlayd.linux import netns, veth
from overlayd.model import attachments
from overlayd.model.attachments import AttachSpec, Place
from overlayd.model.layout import mac_of
from overlayd.model.names import require_printable
from overlayd.model.objects import GLOBAL, LONGEST_SCOPE, Netns, NetnsPath
from overlayd.model.rows import Attachment, Overlay, Service
from overlayd.model.state import Draft
from overlayd.model.subnets import first_usable

log = logging.getLogger(__name__)

T = TypeVar("T")

# Our own: how often, and after how many seconds, we look whether another namespace is at its end: the kernel gives one
# up some milliseconds after its last process has ended.
LAST_LOOKS, BETWEEN_LOOKS = 20, 0.005
LONGEST_PATH = 1024  # bytes, our own: of the file of a namespace


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
        ip=parse.address(request.ip, "ip") if request.ip is not None else None,
        mac=parse.mac(request.mac, "mac") if request.mac is not None else b"",
        default_route=request.default_route,
    )
    if (spec.mac or not spec.default_route) and not isinstance(request.handle, wire.LinuxPid | wire.LinuxNetns):
        raise RequestError(
            "request.mac and request.default_route are of containers in a network namespace of their own"
        )
    match request.handle:
        case wire.LinuxPid(pid=pid):
            return await _attach_pid(daemon, spec, pid)
        case wire.LinuxNetns() as handle:
            return await attach_namespace(daemon, spec, handle)
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
        # Who was there before may be dead: then it is given up as well, with all that depends on it.
        everything=present is not None and namespace not in present.processes,
    )
    return _attached(attachment, service)


async def attach_namespace(
    daemon: Daemon,
    spec: AttachSpec,
    container: wire.LinuxNetns,
    descriptor: int | None = None,
    *,
    keeps: bool = False,
) -> wire.Attached:
    """Attach an interface of a network namespace; the same again is answered as the first time.

    descriptor: of the namespace, which stays open until this returns, and is kept by nobody; None: it is opened by its
    path.  Beside a descriptor the path is only what the namespace is called; if it leads there for us too, links that
    are lost later are made again.

    NamespaceGone, OwnNamespace: nobody's namespace, or the host's.  InterfaceExists: it has an interface of that name.
    AddressUnavailable, Exhausted: no such address, or none at all.  NotSetUp: the service or the overlay is not.
    InvalidValue, RequestError: another fault of the request.  MechanismError, StateError: of kernel or disk.
    """
    require_printable(_named(container.id), "handle.id", attachments.LONGEST_ID)
    require_printable(container.path, "handle.path", LONGEST_PATH)
    attachments.require_interface(container.ifname)
    if descriptor is None and not container.path.startswith("/"):
        raise InvalidValue(f"request.handle.path: {quoted(container.path)} is not an absolute path of a namespace")
    looks = LAST_LOOKS
    while True:
        try:
            with ExitStack() as opened:
                attachment, service = await _attach_place(daemon, spec, container, descriptor, opened, keeps=keeps)
                break
        except attachments.StillThere:
            if not (looks := looks - 1):
                raise
        await asyncio.sleep(BETWEEN_LOOKS)
    interface = wire.Interface(
        name=container.ifname,
        mac=mac_of(attachment).hex(":"),
        mtu=daemon.node.facts.mtu,
        host_name=attachment.host_end(),
    )
    return _attached(attachment, service, interface)


def _attached(attachment: Attachment, service: Service, interface: wire.Interface | None = None) -> wire.Attached:
    _tell_what_is_open(attachment, service)
    return wire.Attached(
        ip=str(attachment.address),
        subnet=str(service.subnet),
        gateway=str(first_usable(service.subnet)),
        prefix_len=service.subnet.prefixlen,
        interface=interface,
    )


async def _attach_place(
    daemon: Daemon,
    spec: AttachSpec,
    container: wire.LinuxNetns,
    descriptor: int | None,
    opened: ExitStack,
    *,
    keeps: bool,
) -> tuple[Attachment, Service]:
    """opened: what lives as long as the namespace has to be in sight."""
    handle = attachments.namespace(container.id, container.ifname)
    places: list[Place] = []

    def look() -> None:
        file = _open(handle, container.path, descriptor, opened)
        places.append(Place(container.id, container.ifname, file))

    if descriptor is not None:  # which namespace that is of never changes, nor has anybody to wait for it
        look()

    def is_there(present: Attachment) -> bool:
        here = keeps and present.file is not None and present.file.identity == places[-1].file.identity
        return here or has_link(present)

    def decide(draft: Draft) -> tuple[Attachment, Service]:
        attachment = attachments.attach_namespace(draft, spec, places[-1], daemon.boot_id, is_there)
        return attachment, attachments.service_of(draft, spec.service)

    try:
        return await _attach(
            daemon,
            spec,
            decide,
            attachment_locks(handle, NetnsPath(container.path, 0, 0), spec.isolation_network),
            # Who was there before may be dead: then it is given up as well, with all that depends on it.
            everything=daemon.node.state.get(Attachment, handle) is not None,
            prepare=look if descriptor is None else None,
        )
    except veth.Taken as error:
        raise InterfaceExists(f"cannot attach {handle}: {error.detail}") from error


def _open(handle: str, path: str, descriptor: int | None, opened: ExitStack) -> NetnsPath:
    """Have a namespace in sight until `opened` is closed.  By its path in a worker thread: whose it is may let us
    wait.
    """
    try:
        if descriptor is None:
            descriptor = netns.open_file(path)
            opened.callback(os.close, descriptor)
        if os.fstat(descriptor).st_ino == netns.own_inode():
            raise OwnNamespace(
                f"cannot attach {handle}: {path} is the host's own network namespace; give the container one of its own"
            )
        file = netns.identify_file(descriptor, path)
    except MechanismError as error:
        raise NamespaceGone(f"cannot attach {handle}: {error}") from error
    opened.enter_context(netns.lent(file, descriptor))
    return file


def _tell_what_is_open(attachment: Attachment, service: Service) -> None:
    if service.isolated and not attachment.isolation_network:
        what = f"{attachment.handle} joins the isolated service {service.name}"
        log.warning("%s without an isolation_network: not isolated", what)


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
        case wire.LinuxNetns(id=id, ifname=ifname):
            handle = attachments.namespace(id, ifname)
        case wire.GuestManaged(id=id):
            handle = attachments.guest(id)
        case wire.HostShared(id=id):
            handle = attachments.host(id)
        case _:
            return wire.Ok()
    await detach(daemon.node, handle)
    return wire.Ok()
