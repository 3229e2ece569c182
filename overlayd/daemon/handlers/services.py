"""Services on this node, and addresses handed out without a container.

Owns: setup and teardown of services, prune_orphan_bridges, allocate_ip, release_ip.  Must not know: sockets and frames.
"""

import logging
import time
from collections.abc import Sequence
from typing import NamedTuple

from overlayd import keys, wire
from overlayd.daemon import parse
from overlayd.daemon.change.node import Node
from overlayd.daemon.change.presence import lives
from overlayd.daemon.change.resources import NODE, RECORDS, peers_locks, service_lock
from overlayd.daemon.handlers.context import Daemon
from overlayd.errors import MechanismError, RequestError
from overlayd.linux import link, netns, veth_removal
from overlayd.linux.observe import NamedBridge, bridges_named
from overlayd.linux.wireguard.backend import udp_port_is_free
from overlayd.model import ipam, membership, services
from overlayd.model.names import BRIDGE, PREFIX, is_bridge_name
from overlayd.model.objects import Address, Network
from overlayd.model.rows import Attachment, Lease, Overlay, Service
from overlayd.model.state import Draft, State
from overlayd.model.subnets import first_usable

log = logging.getLogger(__name__)

NAMES_AT_ONCE = 2048  # our own constant: some 0.1 ms


async def setup_service_overlay(daemon: Daemon, request: wire.SetupServiceOverlay) -> wire.Response:
    subnet = parse.network(request.subnet, "subnet") if request.subnet is not None else None
    dedicated = request.mode == "dedicated"
    if dedicated and daemon.node.kernel.backend is None:
        raise RequestError(
            "a dedicated service needs a WireGuard device, and this node has no backend for one: load the kernel's "
            "wireguard module, or install wireguard-go and provide /dev/net/tun"
        )
    key = keys.generate() if dedicated else None
    is_new = daemon.node.state.get(Service, request.service) is None
    service = await daemon.node.change(
        lambda draft: services.setup_service(
            draft,
            request.service,
            subnet=subnet,
            dedicated_key=key,
            isolated=request.mode == "isolated",
            port_is_free=udp_port_is_free,
            host=daemon.surroundings.networks,
            now=int(time.time()),
            ranges=membership.service_ranges(draft),
        ),
        exclusive=[service_lock(request.service), *(peers_locks(request.service) if dedicated else ())],
        shared=[NODE],  # its number says where the subnet is looked for
        everything=subnet is not None and _is_slice(daemon.node.state, subnet),
        verify=[(Service.table, request.service)],
        prepare=daemon.surroundings.read if is_new else None,
    )
    if not service.dedicated:
        return wire.BridgeName(
            name=service.bridge,
            subnet=str(service.subnet),
            gateway=str(first_usable(service.subnet)),
            prefix_len=service.subnet.prefixlen,
        )
    return wire.ServiceOverlay(
        name=service.bridge,
        mode="dedicated",
        wg_public_key=keys.text(keys.public(service.private_key)),
        wg_port=service.wg_port,
        overlay_ip=str(first_usable(service.subnet)),
        subnet=str(service.subnet),
    )


def _is_slice(state: State, subnet: Network) -> bool:
    """Whether a service of that subnet shares the node's addresses: then all that has one depends on it."""
    overlay = state.get(Overlay)
    return overlay is not None and overlay.slice == subnet


async def teardown_service_overlay(daemon: Daemon, request: wire.TeardownServiceOverlay) -> wire.Response:
    # What is attached goes as well: their own locks are too many to name, so nobody else may change anything.
    await daemon.node.change(lambda draft: services.teardown_service(draft, request.service), everything=True)
    return wire.Ok()


async def prune_orphan_bridges(daemon: Daemon, request: wire.PruneOrphanBridges) -> wire.Response:
    """Remove bridges with our form of name, ours or not, that are not listed and to which nobody is attached; any of a
    bridge's names spares it, also one that it only should have.

    An orchestrator lists the services that it has stored, and prunes every few minutes: what it does not list may be a
    bridge that it had made for one job, whose containers run.
    """
    node = daemon.node
    orphans: dict[str, _Found] = {}

    def look() -> None:
        bridges = _find_bridges(node.state)
        live = _listed(request.live_bridge_names, {name for found in bridges for name in found.names})
        unlisted = [found for found in bridges if live.isdisjoint(found.names)]
        occupied = _occupied(node.state, {found.service for found in unlisted} - {""})
        # To look at every process is for those bridges alone that nothing else keeps.
        doubtful = [found for found in unlisted if found.service not in occupied and not found.bridge.carrier]
        elsewhere = frozenset[int]().union(*(found.bridge.namespaces for found in doubtful))
        inhabited = netns.inhabited(elsewhere) if elsewhere else elsewhere
        for found in doubtful:
            if found.bridge.namespaces.isdisjoint(inhabited):
                orphans[next(filter(is_bridge_name, found.bridge.names))] = found
        spared = len(unlisted) - len(orphans)
        log.debug("prune: %d bridges that are not listed stay, for somebody lives on them", spared)
        _remove_foreign(node.state, [found.bridge for found in orphans.values()])

    def decide(draft: Draft) -> None:
        for found in orphans.values():
            services.teardown_service(draft, found.service)

    # What is foreign goes before the decision, not in a turn of its own after it: requests that came later would be
    # done in between.
    await node.change(decide, everything=True, prepare=look)
    for name in orphans:
        log.info("pruned %s: it is not among the live bridges, and no living container is attached to it", name)
    return wire.PrunedBridges(reclaimed=tuple(sorted(orphans)))


class _Found(NamedTuple):
    """A bridge with our form of name.  service: of ours, whose bridge it is; empty when it is of none.  names: those
    that it has, and the one that the service's should have.
    """

    bridge: NamedBridge
    service: str
    names: set[str]


def _listed(live: Sequence[str], present: set[str]) -> set[str]:
    """Those of the present names that are listed.  In parts, for the interpreter is kept while one is compared."""
    parts = (live[at : at + NAMES_AT_ONCE] for at in range(0, len(live), NAMES_AT_ONCE))
    return set().union(*(present.intersection(part) for part in parts))


def _find_bridges(state: State) -> list[_Found]:
    """By name; by our mark alone where no link has the name that the service's bridge should have."""
    bridges = [each for each in bridges_named(PREFIX, f"-{BRIDGE}") if any(map(is_bridge_name, each.names))]
    present = {name for each in bridges for name in each.names}
    rows = state.table(Service)
    by_name = {service.bridge: service for service in rows.values()}
    found = []
    for each in bridges:
        service = next((by_name[name] for name in each.names if name in by_name), None)
        marked = rows.get(each.service) if each.service is not None else None
        if service is None and marked is not None and marked.bridge not in present:
            service = marked
        names = {*each.names, service.bridge} if service is not None else set(each.names)
        found.append(_Found(each, service.name if service is not None else "", names))
    return found


def _occupied(state: State, names: set[str]) -> set[str]:
    """Those of the services that a living container is attached to, whatever its links look like now, or a guest."""
    occupied: set[str] = set()
    for each in state.table(Attachment).values():
        if each.service in names - occupied and (each.namespace is None or _lives(each)):
            occupied.add(each.service)
    return occupied


def _lives(container: Attachment) -> bool:
    try:
        return lives(container)
    except MechanismError as error:  # then it is spared
        log.warning("whether a container lives cannot be seen: %s", error)
        return True


def _remove_foreign(state: State, bridges: list[NamedBridge]) -> None:
    """Remove what we have no record of: of these bridges, and of the veths on them."""
    recorded = {service.bridge for service in state.table(Service).values()}
    attached = {it.host_end() for it in state.table(Attachment).values() if it.namespace is not None}
    for bridge in bridges:
        ports = [port for port in bridge.ports if port not in attached]
        veth_removal.delete(ports)  # those with our mark go together, others one by one
        for name in ports:
            link.delete(name)
        if recorded.isdisjoint(bridge.names):
            link.delete(bridge.names[0])


async def allocate_ip(daemon: Daemon, request: wire.AllocateIp) -> wire.Response:
    if daemon.cluster is not None:
        daemon.cluster.require_attachable()
    address = await daemon.node.change(
        lambda draft: ipam.allocate_ip(draft, request.service), shared=[service_lock(request.service)]
    )
    return wire.Ip(ip=str(address))


async def release_ip(daemon: Daemon, request: wire.ReleaseIp) -> wire.Response:
    address = parse.address(request.ip, "ip")
    closing = _may_close(daemon.node, address)

    def decide(draft: Draft) -> None:
        if not services.release_ip(draft, address, closing=closing):
            holder = ipam.holder_of(draft, address) or "nobody"
            log.info("release_ip %s: left alone, held by %s", address, holder)

    locks = [service_lock(closing), *peers_locks(closing)] if closing else []
    await daemon.node.change(decide, exclusive=[f"address {address}", *locks], shared=[RECORDS])
    return wire.Ok()


def _may_close(node: Node, address: Address) -> str:
    """The service that may go with an address: one that all have left, or may have by the time that it is our turn."""
    lease = node.state.get(Lease, str(address))
    service = node.state.get(Service, lease.pool) if lease is not None else None
    if service is None or service.lasting or (not service.left and node.is_settled(service_lock(service.name))):
        return ""
    return service.name
