"""What this node holds, as rows.

Owns: list.  Must not know: sockets and frames, or how rows are shown.

A large node has ten thousand rows of a kind: they are made and encoded in slices, between which the loop does its other
work.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from msgspec import Struct

from overlayd import keys, wire
from overlayd.daemon.change.slices import Slices
from overlayd.daemon.handlers.context import Daemon
from overlayd.model.ipam import REQUEST
from overlayd.model.layout import endpoint_text, mac
from overlayd.model.objects import GLOBAL
from overlayd.model.pool import Pool
from overlayd.model.rows import Attachment, Isolation, Lease, Peer, Service
from overlayd.model.subnets import first_usable

T = TypeVar("T")


async def list_things(daemon: Daemon, request: wire.ListThings) -> bytes:
    return wire.encode_with(wire.Listing(), request.what, await KINDS[request.what](daemon))


async def _services(daemon: Daemon) -> list[bytes]:
    state = daemon.node.state
    members = Counter([each.service async for each in Slices().each(state.table(Attachment).values())])

    def row(service: Service) -> wire.ListedService:
        return wire.ListedService(
            service=service.name,
            mode=service.mode,
            subnet=str(service.subnet),
            gateway=str(first_usable(service.subnet)),
            bridge=service.bridge,
            device=service.device or None,
            members=members[service.name],
            held=sum(pool.held for pool in state.pools(service.name)),
            since_unix=service.since or None,
        )

    return await _rows(row, state.table(Service).values())


async def _containers(daemon: Daemon) -> list[bytes]:
    state = daemon.node.state

    def row(attachment: Attachment) -> wire.ListedContainer:
        own = attachment.namespace is not None
        second = attachment.global_address
        names = state.names_of(attachment.address) + (state.names_of(second) if second is not None else ())
        return wire.ListedContainer(
            handle=attachment.handle,
            service=attachment.service,
            ip=str(attachment.address),
            global_ip=str(second) if second is not None else None,
            isolation_network=attachment.isolation_network or None,
            link=attachment.host_end() if own else None,
            mac=(attachment.mac or mac(attachment.address)).hex(":") if own else None,
            interface=attachment.interface or None,
            namespace=attachment.file.path if attachment.file is not None else None,
            network=attachment.network or None,
            names=tuple(dict.fromkeys(names)),
            since_unix=attachment.since or None,
        )

    return await _rows(row, state.table(Attachment).values())


async def _pools(daemon: Daemon) -> list[bytes]:
    state = daemon.node.state

    found = [
        (name, pool) async for name in Slices().each([GLOBAL, *state.table(Service)]) for pool in state.pools(name)
    ]

    def row(of: tuple[str, Pool]) -> wire.ListedPool:
        name, pool = of
        return wire.ListedPool(service=name or None, subnet=str(pool.network), size=pool.size, held=pool.held)

    return await _rows(row, found)


async def _addresses(daemon: Daemon) -> list[bytes]:
    def row(lease: Lease) -> wire.ListedAddress:
        holder = "allocate_ip" if lease.holder == REQUEST else lease.holder
        return wire.ListedAddress(ip=str(lease.address), service=lease.pool or None, holder=holder)

    held = [each async for each in Slices().each(daemon.node.state.table(Lease).values()) if each.holder]
    return await _rows(row, held)


async def _networks(daemon: Daemon) -> list[bytes]:
    state = daemon.node.state
    services: dict[str, Counter[str]] = {name: Counter() for name in state.table(Isolation)}
    async for each in Slices().each(state.table(Attachment).values()):
        if each.isolation_network:
            services.setdefault(each.isolation_network, Counter())[each.service] += 1

    def row(of: tuple[str, Counter[str]]) -> wire.ListedNetwork:
        name, found = of
        return wire.ListedNetwork(network=name, members=found.total(), services=tuple(sorted(found)))

    return await _rows(row, services.items())


async def _peers(daemon: Daemon) -> list[bytes]:
    return await _rows(lambda peer: _peer(daemon, peer), daemon.node.state.table(Peer).values())


def _peer(daemon: Daemon, peer: Peer) -> wire.ListedPeer:
    health, scope = daemon.health, peer.scope
    activity = health.activity(scope, peer.public_key)
    condition = health.condition(scope, peer.public_key)
    guest = daemon.node.state.guest(peer.public_key) if scope == GLOBAL else None
    path = None
    if scope == GLOBAL:
        path, at = daemon.nat.connection(peer)
        endpoint = endpoint_text(at) if at is not None else peer.endpoint
    elif activity is not None and activity.endpoint is not None:
        endpoint = endpoint_text(activity.endpoint)
    else:
        endpoint = peer.endpoint
    shaken = activity.last_handshake if activity is not None else 0
    return wire.ListedPeer(
        name=peer.name or (guest.handle.partition(":")[2] if guest is not None else None),
        public_key=keys.text(peer.public_key),
        service=scope or None,
        kind="guest" if guest is not None else "node",
        endpoint=endpoint or None,
        allowed_ips=tuple(map(str, dict.fromkeys((*peer.listed, *peer.added)))),
        path=None if scope != GLOBAL else path or "unreachable",
        health="silent" if condition == "silent" else "idle" if condition == "idle" and shaken else None,
        last_handshake_unix_secs=shaken,
        rx_bytes=activity.rx_bytes if activity is not None else 0,
        tx_bytes=activity.tx_bytes if activity is not None else 0,
        persistent_keepalive_secs=peer.keepalive,
    )


KINDS: dict[str, Callable[[Daemon], Any]] = {
    "services": _services,
    "containers": _containers,
    "pools": _pools,
    "addresses": _addresses,
    "networks": _networks,
    "peers": _peers,
}


async def _rows(row: Callable[[T], Struct], things: Iterable[T]) -> list[bytes]:
    return [wire.encode_part(row(thing)) async for thing in Slices().each(things)]
