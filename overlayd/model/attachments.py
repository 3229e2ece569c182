"""Containers and guests: who is attached where, with which addresses.

Owns: Attachment and Isolation rows.  Must not know: veths, namespaces beyond their identity, key generation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_network

from msgspec.structs import replace

from overlayd.errors import NotSetUp, RequestError
from overlayd.model import ipam, overlay
from overlayd.model.objects import GLOBAL, Address, Netns
from overlayd.model.rows import Attachment, Isolation, Peer, Service
from overlayd.model.state import Draft, State

ADOPTED = "adopted"  # what the names begin with that an adoption could not tell


@dataclass(frozen=True, slots=True)
class AttachSpec:
    """What an attach asks for, beside its handle.  now: Unix seconds."""

    service: str
    join_global: bool = False
    ephemeral: bool = False
    isolation_network: str = ""
    dns_server: Address | None = None
    dns_domain: str = ""
    now: int = 0


def container(pid: int) -> str:
    return f"pid:{pid}"


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


def attach_host(draft: Draft, spec: AttachSpec, id: str) -> Attachment:
    """A container that shares the host's network: an address of the node's pool."""
    overlay.require(draft)
    present = draft.get(Attachment, host(id))
    if present is not None:
        return _again(draft, present, spec)
    address = ipam.allocate(draft, GLOBAL, host(id))
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
        address = ipam.allocate(draft, pool, guest(id))
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
        raise NotSetUp(f"service {name} is not set up on this node: send setup_service_overlay first")
    overlay.require(draft)
    return service


def _again(draft: Draft, present: Attachment, spec: AttachSpec) -> Attachment:
    if present.service != spec.service:
        raise RequestError(
            f"already attached to service {present.service} with {present.address}: "
            f"detach it before attaching to {spec.service}"
        )
    if (present.global_address is not None) != spec.join_global and present.netns is not None:
        now = "with" if present.global_address is not None else "without"
        raise RequestError(
            f"already attached to service {present.service} {now} join_global: detach it first to change that"
        )
    if spec.isolation_network and present.isolation_network.startswith(f"{ADOPTED}-"):
        return _name_network(draft, present, spec.isolation_network)
    if present.isolation_network != spec.isolation_network:
        now = present.isolation_network or "none"
        raise RequestError(f"already attached with isolation network {now}: detach it first to change that")
    return present


def _attach(draft: Draft, service: Service, spec: AttachSpec, handle: str, *, netns: Netns, boot_id: str) -> Attachment:
    address = ipam.allocate(draft, service.name, handle)
    global_address = ipam.allocate(draft, GLOBAL, handle) if spec.join_global else None
    attachment = Attachment(
        handle=handle,
        service=service.name,
        address=address,
        netns=netns,
        boot_id=boot_id,
        global_address=global_address,
    )
    return _put(draft, spec, attachment)


def _name_network(draft: Draft, present: Attachment, name: str) -> Attachment:
    """The name of an adopted container's network is told: its number, and so the packet filter, stays."""
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
    return attachment
