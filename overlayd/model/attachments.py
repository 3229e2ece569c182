"""Containers and guests: who is attached where, with which addresses.

Owns: Attachment and Isolation rows.  Must not know: veths, namespaces beyond their identity, key generation.

A container is attached by a process of it, once, with all its interfaces; or by its network namespace, once for each
interface that it is to have, under the id of who asked and the interface's name.
"""

from collections.abc import Callable
from ipaddress import ip_network
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from overlayd.errors import InvalidValue, NotSetUp, RequestError
from overlayd.model import ipam, overlay, records
from overlayd.model.names import LONGEST, namespace_veth_name, require_printable
from overlayd.model.objects import GLOBAL, Address, Netns, NetnsPath
from overlayd.model.rows import Attachment, Isolation, Peer, Service
from overlayd.model.state import Draft, State

LONGEST_ID = 200  # bytes: so that an id and all that belongs to it have room in a link's alias

MAC_LENGTH = 6
OWN_MACS = b"\x02\x6f"  # what the MACs begin with that follow from addresses

ADOPTED = "adopted"  # what the names begin with that an adoption could not tell


class AttachSpec(msgspec.Struct, frozen=True):
    """What an attach asks for, beside its handle.  now: Unix seconds.

    ip: the address that it is to have, None for any.  mac: of the container's interface, empty for the one that follows
    from the address.  default_route: its traffic to the outside goes through us.  network: see the row.  names: that
    are registered for the address, until it is given back.
    """

    service: str
    join_global: bool = False
    ip: Address | None = None
    mac: bytes = b""
    default_route: bool = True
    network: str = ""
    names: tuple[str, ...] = ()
    ephemeral: bool = False
    isolation_network: str = ""
    dns_server: Address | None = None
    dns_domain: str = ""
    now: int = 0


class StillThere(RequestError):
    """What was attached under this id before is in another namespace, which lives."""


class Place(NamedTuple):
    """An interface of a network namespace.  id: of the container, as the caller who attaches it calls it."""

    id: str
    interface: str
    file: NetnsPath


def container(pid: int) -> str:
    return f"pid:{pid}"


def namespace(id: str, interface: str) -> str:
    return f"netns:{id}/{interface}"


def guest(id: str) -> str:
    return f"guest:{id}"


def host(id: str) -> str:
    return f"host:{id}"


def attach_container(
    draft: Draft, spec: AttachSpec, netns: Netns, boot_id: str, lives: Callable[[Netns], bool] = lambda _netns: True
) -> Attachment:
    """Attach the namespace of a container to a service, or join the attachment it has there already: it stays until the
    last process that was attached has ended or is detached.  lives: whether a process is still there, and in its
    namespace.
    """
    service = service_of(draft, spec.service)
    for present in (draft.state.in_namespace(netns.inode), draft.get(Attachment, container(netns.pid))):
        if present is None or present.netns is None or draft.get(Attachment, present.handle) is None:
            continue
        if netns in present.processes:
            return _again(draft, present, spec)
        living = [process for process in present.processes if process.pid != netns.pid and lives(process)]
        if not living:
            detach(draft, present)  # pids and the numbers of namespaces are reused, and faster than the dead are buried
        elif present.netns.inode == netns.inode:
            return _join(draft, _again(draft, present, spec), (*living, netns))
        else:
            keepers = ", ".join(str(process.pid) for process in living)
            raise RequestError(
                f"the links named after process {netns.pid} are those of another container, which process {keepers} "
                "keeps: detach that one first"
            )
    return _attach(draft, service, spec, container(netns.pid), netns=netns, boot_id=boot_id)


def attach_namespace(
    draft: Draft, spec: AttachSpec, place: Place, boot_id: str, lives: Callable[[Attachment], bool]
) -> Attachment:
    """Attach an interface of a namespace to a service.  The same again is what is there; what was attached in another
    namespace under the same id, which must be dead, is given up before.  lives: whether an attachment's interface is
    there.
    """
    id, interface, file = place
    handle = namespace(id, interface)
    service = service_of(draft, spec.service)
    present = draft.get(Attachment, handle)
    if present is not None and lives(present):
        if present.file is None or present.file.identity not in (0, file.identity):
            raise StillThere(
                f"{handle} is attached with {present.address}, in another network namespace that still lives: detach "
                "that one first"
            )
        found = replace(_again(draft, present, spec), file=file)  # it may be in sight by another path now
        draft.put(found)
        return found
    if present is not None:
        detach(draft, present)
    link = namespace_veth_name(id, interface, "s")
    other = draft.state.of_link(link)
    if other is not None and other.handle != handle:
        raise RequestError(f"{handle}: its link would be {link}, which is that of {other.handle}: use another id")
    if spec.join_global:
        _require_alone(draft, handle, file)
    return _attach(draft, service, spec, handle, file=file, interface=interface, boot_id=boot_id)


def _require_alone(draft: Draft, handle: str, file: NetnsPath) -> None:
    """RequestError when a namespace has joined the global overlay already: it has one route there, and the answers of
    another interface would leave by it too, with an address that its port does not pass.
    """
    for other in draft.all(Attachment):
        here = other.file is not None and other.file.identity == file.identity
        here = here or (other.netns is not None and other.netns.inode == file.inode)
        if here and (other.joined or other.global_address is not None) and other.handle != handle:
            raise RequestError(
                f"{other.handle}, in the same network namespace, has joined the global overlay with "
                f"{other.global_address or other.address}: attach {handle} without join_global"
            )


def require_interface(name: str) -> None:
    """InvalidValue when Linux takes no interface of that name (dev_valid_name() in net/core/dev.c), or we cannot."""
    require_printable(name, "handle.ifname", LONGEST)
    if not name or name in (".", "..") or any(each in "/:%" or each.isspace() for each in name):
        raise InvalidValue(f"request.handle.ifname: {name!a} is not a name for an interface")
    if name == "lo":
        raise InvalidValue("request.handle.ifname: lo is the loopback interface of every namespace")


def attach_host(draft: Draft, spec: AttachSpec, id: str) -> Attachment:
    """A container that shares the host's network: an address of the node's pool."""
    overlay.require(draft)
    present = draft.get(Attachment, host(id))
    if present is not None:
        return _again(draft, present, spec)
    address = _address(draft, spec, GLOBAL, host(id))
    return _put(draft, spec, Attachment(handle=host(id), service=spec.service, address=address))


def attach_guest(draft: Draft, spec: AttachSpec, id: str, private_key: bytes, public_key: bytes) -> Attachment:
    """A guest that runs its own WireGuard: an address of the service's subnet (of the node's pool when the service is
    not set up here), a key pair (used if the guest is new), and a peer of the global device.
    """
    overlay.require(draft)
    present = draft.get(Attachment, guest(id))
    if present is not None:
        attachment = _again(draft, present, spec)
    else:
        pool = spec.service if draft.state.pools(spec.service) else GLOBAL
        address = _address(draft, spec, pool, guest(id))
        attachment = Attachment(
            handle=guest(id), service=spec.service, address=address, private_key=private_key, public_key=public_key
        )
        attachment = _put(draft, spec, attachment)
    if draft.peer(GLOBAL, attachment.public_key) is None:
        draft.put(Peer(public_key=attachment.public_key, listed=(ip_network(attachment.address),)))
    return attachment


def find(state: State, handle: str, inode: int = 0) -> Attachment | None:
    """The attachment of a handle, or of the namespace the handle's process lives in."""
    return state.get(Attachment, handle) or (state.in_namespace(inode) if inode else None)


def of_handle(state: State, handle: str) -> Attachment | None:
    """What was attached by this handle, alone or with others, and is to be taken back by it."""
    kind, _, name = handle.partition(":")
    return state.of_process(int(name)) if kind == "pid" else state.get(Attachment, handle)


def leave(draft: Draft, attachment: Attachment, stays: Callable[[Netns], bool]) -> tuple[Netns, ...]:
    """Forget the processes that do not stay, and take the attachment back if none does, as of a guest, which has none.
    Returns those that stay.
    """
    staying = tuple(filter(stays, attachment.processes))
    if staying:
        _join(draft, attachment, staying)
    else:
        detach(draft, attachment)
    return staying


def _join(draft: Draft, attachment: Attachment, processes: tuple[Netns, ...]) -> Attachment:
    joined = replace(attachment, netns=processes[0], others=processes[1:])
    draft.put(joined)
    return joined


def detach(draft: Draft, attachment: Attachment) -> None:
    """Take an attachment back with all it has: addresses, peer, isolation number, and the bridge of an ephemeral
    service.
    """
    ipam.release(draft, attachment.address, attachment.handle)
    if attachment.global_address is not None:
        ipam.release(draft, attachment.global_address, attachment.handle)
    if attachment.public_key:
        peer = draft.peer(GLOBAL, attachment.public_key)
        if peer is not None:
            draft.drop(peer)
    draft.drop(attachment)
    network = draft.get(Isolation, attachment.isolation_network) if attachment.isolation_network else None
    if network is not None and not any(other.isolation_network == network.name for other in draft.all(Attachment)):
        draft.drop(network)
    service = draft.get(Service, attachment.service)
    if service is not None and attachment.ephemeral and not service.lasting:
        drop_if_empty(draft, service)


def drop_if_empty(draft: Draft, service: Service) -> None:
    """An ephemeral service's bridge goes when nobody is left on it: neither attached nor holding an address of its
    subnet.  Addresses alone are remembered to keep it.
    """
    if any(other.service == service.name for other in draft.all(Attachment)):
        return
    leases = draft.state.leases(service.name).values()
    current = [draft.get(type(lease), lease.key) for lease in leases]
    if any(lease is not None and lease.holder for lease in current):
        draft.put(replace(service, left=True))
        return
    for lease in current:
        if lease is not None:
            draft.drop(lease)
    for peer in list(draft.state.peers(service.name).values()):
        draft.drop(peer)
    draft.drop(service)


def service_of(draft: Draft, name: str) -> Service:
    """The service of that name; RequestError when containers cannot be attached to it."""
    service = draft.get(Service, name)
    if service is None:
        raise NotSetUp(
            f"service {name} is not set up on this node: send setup_service_overlay first"
            f"{ipam.in_other_case(draft, name)}"
        )
    overlay.require(draft)
    return service


def _again(draft: Draft, present: Attachment, spec: AttachSpec) -> Attachment:
    if present.service != spec.service:
        raise RequestError(
            f"already attached to service {present.service} with {present.address}: "
            f"detach it before attaching to {spec.service}"
        )
    joined = present.joined or present.global_address is not None
    if joined != spec.join_global and present.namespace is not None:
        now = "with" if joined else "without"
        raise RequestError(
            f"already attached to service {present.service} {now} join_global: detach it first to change that"
        )
    if spec.isolation_network and present.isolation_network.startswith(f"{ADOPTED}-"):
        return _name_network(draft, present, spec.isolation_network)
    if present.isolation_network != spec.isolation_network:
        now = present.isolation_network or "none"
        raise RequestError(f"already attached with isolation network {now}: detach it first to change that")
    for field, asked, has in (("ip", spec.ip, present.address), ("mac", spec.mac, present.mac)):
        if asked and asked != has:
            raise RequestError(f"already attached with {present.address}: detach it first to give it another {field}")
    if present.namespace is not None and present.default_route != spec.default_route:
        now = "with" if present.default_route else "without"
        raise RequestError(f"already attached {now} a default route: detach it first to change that")
    return present


def _attach(
    draft: Draft,
    service: Service,
    spec: AttachSpec,
    handle: str,
    *,
    netns: Netns | None = None,
    file: NetnsPath | None = None,
    interface: str = "",
    boot_id: str,
) -> Attachment:
    if spec.mac:
        _require_mac(draft, service, spec.mac)
    address = _address(draft, spec, service.name, handle)
    # An address of the slice is one of the global overlay already.
    twofold = spec.join_global and draft.state.pool_of(service.name) != GLOBAL
    attachment = Attachment(
        handle=handle,
        service=service.name,
        address=address,
        netns=netns,
        file=file,
        interface=interface,
        boot_id=boot_id,
        global_address=ipam.allocate(draft, GLOBAL, handle) if twofold else None,
        joined=spec.join_global and not twofold,
        mac=spec.mac,
        default_route=spec.default_route,
        network=spec.network,
    )
    return _put(draft, spec, attachment)


def _address(draft: Draft, spec: AttachSpec, pool: str, handle: str) -> Address:
    if spec.ip is None:
        return ipam.allocate(draft, pool, handle)
    ipam.claim(draft, pool, spec.ip, handle)
    return spec.ip


def _require_mac(draft: Draft, service: Service, mac: bytes) -> None:
    """InvalidValue for a MAC that cannot be: a bridge knows each container by it, and we make others of it
    (`layout.mac`, `veth.host_mac`).
    """
    text = mac.hex(":")
    if len(mac) != MAC_LENGTH or mac[0] & 1 or not any(mac):
        raise InvalidValue(f"request.mac: {text} is not the MAC of one interface, like 02:00:00:00:00:01")
    if mac[0] == 0xFE or mac[1] == OWN_MACS[1]:
        raise InvalidValue(f"request.mac: {text} is of those that overlayd gives itself (fe:..., and 6f second)")
    for other in draft.all(Attachment):
        if other.service == service.name and other.mac[1:] == mac[1:]:
            raise InvalidValue(f"request.mac: {text} is too much like that of {other.handle}, {other.mac.hex(':')}")


def _name_network(draft: Draft, present: Attachment, name: str) -> Attachment:
    """Name the network of an adopted container: its number, and so the packet filter, stays."""
    adopted = draft.get(Isolation, present.isolation_network)
    if draft.get(Isolation, name) is None:
        others = [row.number for row in draft.all(Isolation) if row != adopted]
        kept = adopted is not None and adopted.number not in others
        draft.put(Isolation(name=name, number=adopted.number if adopted and kept else _free_number(draft)))
    named = replace(present, isolation_network=name)
    draft.put(named)
    if adopted is not None and all(each.isolation_network != adopted.name for each in draft.all(Attachment)):
        draft.drop(adopted)
    return named


def _free_number(draft: Draft) -> int:
    used = {row.number for row in (*draft.all(Isolation), *draft.departing(Isolation))}
    return next(number for number in range(1, len(used) + 2) if number not in used)


def _put(draft: Draft, spec: AttachSpec, attachment: Attachment) -> Attachment:
    service = draft.get(Service, spec.service)
    if service is not None and not spec.ephemeral and not service.lasting:
        draft.put(replace(service, lasting=True))
    if spec.isolation_network and draft.get(Isolation, spec.isolation_network) is None:
        draft.put(Isolation(name=spec.isolation_network, number=_free_number(draft)))
    attachment = replace(
        attachment,
        ephemeral=spec.ephemeral,
        isolation_network=spec.isolation_network,
        dns_server=spec.dns_server,
        dns_domain=spec.dns_domain,
        since=spec.now,
    )
    draft.put(attachment)
    for name in spec.names:
        records.register(draft, name, attachment.address)
    return attachment
