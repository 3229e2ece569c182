"""What a person asks of the cluster, by `overlayctl cluster`.

Owns: the checks before, and the sentences after.  Must not know: how the store is spoken to, or what is told in which
order at other times (`cluster`).
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from ipaddress import ip_network
from typing import Any

import msgspec
from msgspec.structs import replace

from overlayd import keys, wire
from overlayd.daemon.change.node import Node
from overlayd.daemon.cluster.cluster import Cluster
from overlayd.daemon.cluster.configuration import new_config
from overlayd.daemon.cluster.etcd import Etcd
from overlayd.daemon.cluster.faults import Waiting
from overlayd.daemon.cluster.janitor import NoSuchNode, remove
from overlayd.daemon.cluster.presence import lives, read_presence
from overlayd.daemon.cluster.publishing import Place
from overlayd.daemon.cluster.report import Report
from overlayd.daemon.cluster.settings import Settings, as_known, machine_id
from overlayd.daemon.nat.session import Nat
from overlayd.errors import MechanismError, RequestError
from overlayd.model import absence, blocks, joining, membership
from overlayd.model.cluster_records import (
    HIGHEST_RATE,
    LONGEST_TTL,
    NODE,
    PRESENCE,
    BadRecord,
    read_config,
    read_node,
    rewritten,
)
from overlayd.model.objects import GLOBAL
from overlayd.model.rows import Member, MemberNames, Membership, Peer, Record
from overlayd.proto.store_answers import StoreError
from overlayd.spelling import perhaps_meant

JOINED_WITHIN = 5.0  # our own: seconds for which the answer to init waits for this node


def _zone(text: str) -> str:
    return text.lower().removesuffix(".")


def _ttl(text: str) -> int:
    ttl = int(text)
    if not 0 <= ttl <= LONGEST_TTL:
        raise ValueError
    absence.require_sensible(ttl)
    return ttl


def _rate(text: str) -> float:
    rate = float(text)
    if not 0 < rate <= HIGHEST_RATE:  # nor "nan", which compares as false
        raise ValueError
    return rate


# What can be set, and what values it takes.
SETTABLE: dict[str, tuple[Callable[[str], object], str]] = {
    "node_ttl_secs": (_ttl, "a whole number of seconds, 0 for never"),
    "rate": (_rate, "a number of events a second, above 0"),
    "zone": (_zone, "a DNS name"),
}


async def init(cluster: Cluster, request: wire.InitCluster) -> wire.Response:
    try:
        cidr = ip_network(request.cluster_cidr)
    except ValueError as error:
        raise RequestError(f"request.cluster_cidr: {error}") from error
    prefix = request.block_prefix or blocks.DEFAULT_PREFIX[cidr.version]
    blocks.require_sensible(cidr, prefix, request.service_share)
    absence.require_sensible(request.node_ttl_secs)
    await cluster.configuration.require_room(cidr)
    settings: dict[str, int | str] = {
        "service_share": request.service_share,
        "node_ttl_secs": request.node_ttl_secs,
    }
    if request.zone:
        settings["zone"] = _zone(request.zone)
    config = new_config(cidr, prefix, **settings)
    try:
        read_config(msgspec.json.encode(config))
    except BadRecord as error:
        raise RequestError(f"request: {error}") from error
    if not await cluster.configuration.make(config):
        raise RequestError(f"cluster {cluster.settings.cluster} is made already (overlayctl cluster status)")
    cluster.look_again()
    with suppress(TimeoutError):  # so that who looks next sees this node; others follow within seconds
        async with asyncio.timeout(JOINED_WITHIN):
            await cluster.joined.wait()
    return wire.Ok()


async def nodes(cluster: Cluster, request: wire.ListNodes) -> wire.Response:
    known, news = cluster.membership, cluster.news
    alive: dict[str, int] | None = None
    try:
        page = await cluster.etcd.read(PRESENCE, prefix=True, any_member=True)
        alive = {each.key.removeprefix(PRESENCE): read_presence(each.value).since for each in page.entries}
    except StoreError:
        pass  # then nobody knows
    counts: dict[str, int] = {}
    for part in cluster.node.state.table(MemberNames).values():
        name = part.part.partition("/")[0]
        counts[name] = counts.get(name, 0) + len(part.names)
    shown = []
    members = list(news.registry.members()) if news is not None else []
    if known.blocks:
        members.append(cluster.publishing.content(known.blocks))
        counts[known.node] = len(cluster.node.state.table(Record))
    for member in sorted(members, key=lambda each: each.name):
        shown.append(
            wire.ClusterNode(
                name=member.name,
                node_id=member.node_id,
                public_key=keys.text(member.public_key),
                endpoint=member.endpoint,
                blocks=tuple(map(str, member.blocks)),
                nat=member.nat,
                version=member.version,
                own=member.name == known.node,
                present=member.name in alive if alive is not None else None,
                since=alive.get(member.name) if alive is not None else None,
                names=counts.get(member.name, 0),
                withheld=news is not None and member.name in news.registry.withheld,
                problem=news.registry.faults.get(NODE + member.name) if news is not None else None,
            )
        )
        if len(shown) % 200 == 0:
            await asyncio.sleep(0)
    return wire.ClusterNodes(tuple(shown))


async def set_value(cluster: Cluster, request: wire.SetCluster) -> wire.Response:
    if request.key not in SETTABLE:
        meant = perhaps_meant(request.key, SETTABLE) or f"there is {', '.join(SETTABLE)}"
        raise RequestError(f"request.key: {request.key!r} cannot be set; {meant}")
    convert, takes = SETTABLE[request.key]
    try:
        value = convert(request.value)
    except ValueError as error:
        raise RequestError(f"request.value: {request.value!r} is not a value of {request.key}: give {takes}") from error

    def change(before: bytes) -> bytes:
        now = rewritten(before, {request.key: value}, [request.key])
        try:
            read_config(now)
        except BadRecord as error:
            raise RequestError(f"request.value: {error}") from error
        return now

    await cluster.configuration.rewrite(change)
    return wire.Ok()


async def leave(cluster: Cluster, request: wire.LeaveCluster) -> wire.Response:
    held = membership.holders(cluster.node.state)
    if held and not request.force:
        raise RequestError(
            f"this node still has {_some(held)}: detach and tear down first, or leave by --force, which keeps them "
            "without the other nodes"
        )
    await cluster.leave()
    return wire.Ok()


async def remove_node(cluster: Cluster, request: wire.RemoveNode) -> wire.Response:
    name = request.node
    if name == cluster.membership.node and cluster.membership.blocks:
        raise RequestError(f"{name} is this node: overlayctl cluster leave")
    page = await cluster.etcd.read(PRESENCE + name)
    there = read_presence(page.entries[0].value) if page.entries else None
    if there is not None and await lives(cluster.etcd, there):
        where = f" at {there.address}" if there.address else ""
        raise RequestError(
            f"node {name} lives{where}: overlayctl cluster leave on it, or end it; one that ended counts as gone after "
            "60 s"
        )
    try:
        await remove(cluster.etcd, name)
    except NoSuchNode as error:
        known = [each.name for each in cluster.news.registry.members()] if cluster.news is not None else []
        meant = perhaps_meant(name, known) or "overlayctl cluster nodes shows all"
        raise RequestError(f"{error}; {meant}") from None
    return wire.Ok()


async def rejoin(cluster: Cluster, request: wire.RejoinCluster) -> wire.Response:
    if not cluster.conflict:
        raise RequestError("this node is at one with the cluster: there is nothing to rejoin for")
    held = membership.holders(cluster.node.state)
    if held:
        raise RequestError(f"addresses of this node's block are held by {_some(held)}: detach and tear down first")
    await cluster.node.change(lambda draft: joining.hold(draft, ()), everything=True)
    cluster.look_again()
    return wire.Ok()


async def accept(cluster: Cluster, request: wire.AcceptCluster) -> wire.Response:
    news = cluster.news
    if news is None or not news.guarded:
        raise RequestError("nothing is withheld: there is nothing to accept")
    if news.foreign:
        await cluster.node.change(joining.forget_id, everything=True)
        cluster.look_again()
    news.accept()
    return wire.Ok()


async def rotate_key(cluster: Cluster, request: wire.RotateKey) -> wire.Response:
    knowing = membership.knowing_our_key(cluster.node.state)
    if knowing and not request.force:
        raise RequestError(
            f"this node's key is known to {_some(knowing)}, which do not hear of another one: rotate by --force, and "
            "give them the new one (overlayctl status) as soon as it is used"
        )
    if not cluster.membership.blocks:
        raise RequestError("this node has not joined the cluster yet: nobody knows its key")
    await cluster.rotation.begin(request.after_secs)
    return wire.Ok()


async def check(cluster: Cluster, request: wire.CheckCluster) -> wire.Response:
    """etcd with the journal, and the journal with the device."""
    state, known = cluster.node.state, cluster.membership
    page = await cluster.etcd.read(NODE, prefix=True)
    found: list[str] = []
    stored: dict[str, Member] = {}
    for entry in page.entries:
        name = entry.key.removeprefix(NODE)
        try:
            stored[name] = read_node(name, entry.value, entry.created)
        except BadRecord as error:
            found.append(f"the store's record of node {name} is not believed: {error}")
    journalled = state.table(Member)
    if known.node not in stored:
        found.append("the store has no record of this node")
    for name in sorted(stored.keys() - journalled.keys() - {known.node}):
        found.append(f"node {name} is in the store, and not in the journal")
    for name in sorted(journalled.keys() - stored.keys()):
        found.append(f"node {name} is in the journal, and not in the store")
    for name in sorted(stored.keys() & journalled.keys()):
        if stored[name] != replace(journalled[name], seq=stored[name].seq):  # which each change of names raises
            found.append(f"node {name} is another in the store than in the journal")
    found += _check_register(await cluster.joining.register(), known, stored)
    found += await _check_device(cluster)
    return wire.ClusterDifferences(tuple(found))


def _check_register(register: blocks.Register, known: Membership, stored: Mapping[str, Member]) -> list[str]:
    """The register of blocks and the records that claim them."""
    ours = [(known.node, block, known.instance) for block in known.blocks]
    others = [(each.name, block, each.instance) for each in stored.values() for block in each.blocks]
    found = []
    for name, block, instance in (*ours, *(each for each in others if each[0] != known.node)):
        match blocks.standing(register, block, instance):
            case "absent" | "freed":
                found.append(
                    f"block {block} of node {name} is not in the register: the daemon there claims it again "
                    "within minutes, and until then another node may"
                )
            case "others":
                found.append(f"block {block} of node {name} is that of node {register[block].node} in the register")
    return found


async def _check_device(cluster: Cluster) -> list[str]:
    """The journal's peers and the device's."""
    node, state = cluster.node, cluster.node.state
    overlay, backend = state.overlay, node.kernel.backend
    if overlay is None or backend is None:
        return ["there is no device"]
    try:
        device = await node.run(backend.read, overlay.interface)
    except MechanismError as error:
        return [f"the device cannot be read: {error}"]
    wanted: dict[bytes, Peer] = {key: peer for key, peer in state.peers(GLOBAL).items() if peer.member}
    return [
        f"node {peer.member} is in the journal, and not a peer of {overlay.interface}"
        for key, peer in wanted.items()
        if key not in device.peers
    ]


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


_ANSWERS: dict[type[wire.ClusterRequest], Callable[[Cluster, Any], Awaitable[wire.Response]]] = {
    wire.InitCluster: init,
    wire.ListNodes: nodes,
    wire.SetCluster: set_value,
    wire.LeaveCluster: leave,
    wire.RemoveNode: remove_node,
    wire.RejoinCluster: rejoin,
    wire.AcceptCluster: accept,
    wire.RotateKey: rotate_key,
    wire.CheckCluster: check,
}


class InCluster:
    """What the rest of the daemon has of the cluster."""

    def __init__(self, node: Node, nat: Nat, settings: Settings, boot: str, stop: Callable[[], None]) -> None:
        settings = as_known(settings, node.state.get(Membership))
        etcd = Etcd(settings.servers, settings.node, settings.prefix, settings.files, settings.user)
        place = Place(machine_id(), boot)
        self._cluster = Cluster(node, nat, settings, etcd=etcd, place=place, stop=stop)
        self.running = self._cluster.running
        self._report = Report(self._cluster)
        self.findings = self._report.findings

    async def ask(self, request: wire.ClusterRequest) -> wire.Response:
        """Do what a person asks.  RequestError: it cannot be done, or the store did not do it."""
        if self._cluster.node.state.get(Membership) is None:
            raise RequestError(self._cluster.error)
        try:
            return await _ANSWERS[type(request)](self._cluster, request)
        except (StoreError, Waiting, BadRecord) as error:
            raise RequestError(f"the store of cluster {self._cluster.settings.cluster}: {error}") from error

    def status(self) -> wire.StatusCluster:
        """As `status` shows it."""
        return self._report.status()

    def require_attachable(self) -> None:
        """RequestError while no address may be handed out."""
        self._cluster.require_attachable()

    @property
    def refusal(self) -> str:
        """Why the daemon has to end; empty when it has not."""
        return self._cluster.refusal

    async def joined(self) -> None:
        """Wait until this node has its block, which an earlier start may have journalled."""
        await self._cluster.joined.wait()
