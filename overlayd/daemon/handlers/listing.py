"""What this node holds, as rows.

Owns: list.  Must not know: sockets and frames, or how rows are shown.

A large node has ten thousand rows of a kind: they are made in slices, between which the loop does its other work.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, TypeVar

from overlayd import keys, wire
from overlayd.daemon.handlers.context import Daemon
from overlayd.model.ipam import REQUEST
from overlayd.model.layout import endpoint_text, mac
from overlayd.model.objects import GLOBAL
from overlayd.model.rows import Attachment, Isolation, Lease, Peer, Service
from overlayd.model.subnets import first_usable

T = TypeVar("T")
R = TypeVar("R")

SLICE = 200  # rows that are made before the loop looks at its other work


async def list_things(daemon: Daemon, request: wire.ListThings) -> wire.Response:
    return wire.Listing(**{request.what: await KINDS[request.what](daemon)})


async def _services(daemon: Daemon) -> tuple[wire.ListedService, ...]:
    state = daemon.node.state
    members = Counter([each.service async for each in _in_slices(state.table(Attachment).values())])

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


async def _containers(daemon: Daemon) -> tuple[wire.ListedContainer, ...]:
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


async def _pools(daemon: Daemon) -> tuple[wire.ListedPool, ...]:
    state = daemon.node.state

    def row(name: str) -> tuple[wire.ListedPool, ...]:
        return tuple(
            wire.ListedPool(service=name or None, subnet=str(pool.network), size=pool.size, held=pool.held)
            for pool in state.pools(name)
        )

    rows = await _rows(row, [GLOBAL, *state.table(Service)])
    return tuple(pool for each in rows for pool in each)


async def _addresses(daemon: Daemon) -> tuple[wire.ListedAddress, ...]:
    def row(lease: Lease) -> wire.ListedAddress:
        holder = "allocate_ip" if lease.holder == REQUEST else lease.holder
        return wire.ListedAddress(ip=str(lease.address), service=lease.pool or None, holder=holder)

    held = [each async for each in _in_slices(daemon.node.state.table(Lease).values()) if each.holder]
    return await _rows(row, held)


async def _networks(daemon: Daemon) -> tuple[wire.ListedNetwork, ...]:
    state = daemon.node.state
    services: dict[str, Counter[str]] = {name: Counter() for name in state.table(Isolation)}
    async for each in _in_slices(state.table(Attachment).values()):
        if each.isolation_network:
            services.setdefault(each.isolation_network, Counter())[each.service] += 1
    return tuple(
        wire.ListedNetwork(network=name, members=found.total(), services=tuple(sorted(found)))
        for name, found in services.items()
    )


async def _peers(daemon: Daemon) -> tuple[wire.ListedPeer, ...]:
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


async def _in_slices(things: Iterable[T]) -> AsyncIterator[T]:
    """Those that are there now, whatever comes and goes meanwhile."""
    for number, thing in enumerate(list(things), 1):
        yield thing
        if number % SLICE == 0:
            await asyncio.sleep(0)


async def _rows(row: Callable[[T], R], things: Iterable[T]) -> tuple[R, ...]:
    return tuple([row(thing) async for thing in _in_slices(things)])
