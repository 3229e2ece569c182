"""A simulated cluster, its bad day, and what must hold all day and at its end.

Owns: nodes from start to crash and start, faults by a schedule, the invariants, and the planted bugs that show that the
invariants see something.  Must not know: how a node works.
"""

import asyncio
import logging
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import NamedTuple

from overlayd import fault
from overlayd.daemon.cluster import janitor
from overlayd.daemon.cluster.cluster import Cluster
from overlayd.daemon.cluster.publishing import Place
from overlayd.daemon.cluster.refusal import Files
from overlayd.daemon.cluster.report import Report
from overlayd.daemon.cluster.settings import Settings
from overlayd.errors import OverlaydError
from overlayd.model import records
from overlayd.model.cluster_records import BLOCK, NODE, PRESENCE, read_holding, read_register
from overlayd.model.registry import Registry
from overlayd.model.rows import Change, Membership, Overlay, Peer, Row
from sim.clock import VirtualLoop
from sim.etcd import Link, ModelEtcd
from sim.node import Crash, Journal, NoNat, SimNode, current

CIDR = ip_network("10.200.0.0/16")
SETTLE = 150.0  # seconds after the last fault
FEW = 8  # nodes of an ordinary day
PLANTED = ("lease", "unjournalled", "empty")
POINTS = ("cluster:claimed", "cluster:journaled", "cluster:applied", "cluster:listed", "cluster:published")


class Fault(NamedTuple):
    """at: seconds from the beginning; node: its number, of those there are; length: seconds."""

    at: float
    kind: str
    node: int
    length: float


class Violation(AssertionError):
    """An invariant does not hold."""


@dataclass
class Host:
    """A node's disk, and its process while it runs."""

    name: str
    number: int
    journal: Journal = field(default_factory=Journal)
    cluster: Cluster | None = None
    link: Link | None = None
    node: SimNode | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    crash_at: str = ""
    refused: str = ""
    stopped: bool = False  # for good


class World:
    """planted: one of PLANTED, or none."""

    def __init__(self, seed: int, nodes: int, faults: list[Fault], planted: str = "") -> None:
        self.random = random.Random(seed)
        self.hosts = [Host(f"n{number}", number) for number in range(nodes)]
        self.faults = sorted(faults)
        self.crowding = max(1.0, nodes / FEW)  # names change so much less often that the cluster has as many to tell
        self.block_prefix = 20 if nodes <= FEW else 26
        self.planted = planted
        self.etcd = ModelEtcd()
        self.removed: set[str] = set()
        self.ever_held: dict[object, set[str]] = {}
        self.went_back = False
        self.violations: list[str] = []
        self.backup = ({}, 1)

    # --- the day ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        lives = [loop.create_task(self._life(host), context=_named(host.name)) for host in self.hosts]
        pending: list[asyncio.Task[None]] = []
        for each in self.faults:
            await asyncio.sleep(max(0.0, began + each.at - loop.time()))
            pending.append(loop.create_task(self._strike(each)))
        await asyncio.gather(*pending)
        self.etcd.lag = [0, 0, 0]
        self.etcd.lossy = 0.0
        self.etcd.tell()
        await asyncio.sleep(SETTLE)
        for task in lives:
            if task.done() and not task.cancelled() and task.exception() is not None:
                raise task.exception()  # type: ignore[misc]
        self._judge_the_end()
        for task in lives:
            task.cancel()
        await asyncio.gather(*lives, return_exceptions=True)

    async def _life(self, host: Host) -> None:
        await asyncio.sleep(self.random.uniform(0, 8))
        while not host.stopped:
            await self._live(host)
            await asyncio.sleep(self.random.choice((0.5, 5.0, 90.0)))

    async def _live(self, host: Host) -> None:
        """From a start to a crash."""
        loop = asyncio.get_running_loop()
        host.ended.clear()
        host.node = SimNode(host.name, host.journal, lambda now, old: self._changed(host, now, old), self._forgetful)
        host.link = Link(self.etcd, host.name)
        settings = Settings((), "sim", host.name, "", Files(), None, CIDR, self.block_prefix, "")
        place = Place(f"machine{host.number}", "boot")
        host.cluster = cluster = Cluster(
            host.node,  # type: ignore[arg-type]
            NoNat(),  # type: ignore[arg-type]
            settings,
            etcd=host.link,  # type: ignore[arg-type]
            place=place,
            stop=host.ended.set,
        )

        def keep_up(work: Callable[[], object]) -> asyncio.Task[None]:
            return loop.create_task(self._kept(host, work))

        extra: list[asyncio.Task[None]] = []
        if self.planted == "lease":
            extra.append(loop.create_task(self._planted_lease(host, cluster)))
        try:
            async with cluster.running(host.node.answer, keep_up):  # type: ignore[arg-type]
                extra.append(loop.create_task(self._names(host)))
                await host.ended.wait()
        finally:
            for task in extra:
                task.cancel()
            host.refused = cluster.refusal
            host.cluster = None
            host.link.close()

    async def _kept(self, host: Host, work: Callable[[], object]) -> None:
        try:
            await work()  # type: ignore[misc]
        except Crash:
            host.ended.set()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.violations.append(f"{host.name}: a bug: {error!r}")
            host.ended.set()

    async def _names(self, host: Host) -> None:
        """Containers come and go, and their names with them."""
        assert host.node is not None
        while True:
            await asyncio.sleep(self.random.uniform(5, 40) * self.crowding)
            name = f"{host.name}-{self.random.randrange(3)}"
            address = CIDR[self.random.randrange(1, 60000)]
            await host.node.change(lambda draft, name=name, address=address: records.register(draft, name, address))

    async def _strike(self, each: Fault) -> None:
        host = self.hosts[each.node % len(self.hosts)]
        match each.kind:
            case "outage" | "silence":
                await self._away(list(self.etcd.links), each)
            case "partition" | "pause":
                if host.link is not None:
                    await self._away([host.link], each)
            case "crash":
                host.ended.set()
            case "crash at claim" | "crash at point":
                host.crash_at = POINTS[0] if each.kind == "crash at claim" else self.random.choice(POINTS)
                host.ended.set()
            case "compact":
                self.etcd.first = self.etcd.revision
            case "lag":
                self.etcd.lag[each.node % 3] = 1 + each.node % 4
                await asyncio.sleep(each.length)
                self.etcd.lag[each.node % 3] = 0
                self.etcd.tell()
            case "lossy":
                self.etcd.lossy = 0.3
                await asyncio.sleep(each.length)
                self.etcd.lossy = 0.0
            case "backup":
                self.backup = self.etcd.saved()
            case "wipe":
                self.went_back = True
                self.etcd.restore(({}, 1))
            case "restore":
                self.went_back = True
                self.etcd.restore(self.backup)
            case "remove":
                await self._remove(host)

    async def _away(self, links: list[Link], each: Fault) -> None:
        for link in links:
            link.cut, link.silent = True, each.kind in ("silence", "pause")
            link.woken.set()
        await asyncio.sleep(each.length)
        for link in links:
            link.cut = link.silent = False
            link.woken.set()

    async def _remove(self, host: Host) -> None:
        """A node ends for good, and a person removes it."""
        host.stopped = True
        host.ended.set()
        await asyncio.sleep(70)
        self.removed.add(host.name)
        link = Link(self.etcd, "operator")
        for _ in range(20):
            try:
                await janitor.remove(link, host.name)  # type: ignore[arg-type]
                break
            except OverlaydError:
                await asyncio.sleep(3)
        link.close()

    # --- planted bugs -------------------------------------------------------------------------------------------------

    async def _planted_lease(self, host: Host, cluster: Cluster) -> None:
        """A lease that has run out removes a peer."""
        assert host.link is not None
        while True:
            await asyncio.sleep(5)
            try:
                page = await host.link.read(PRESENCE, prefix=True)
            except OverlaydError:
                continue
            present = {entry.key.removeprefix(PRESENCE) for entry in page.entries}
            if cluster.news is not None:
                for member in list(cluster.news.registry.members()):
                    if member.name not in present:
                        cluster.news.registry.remove(NODE + member.name)
                cluster.news.look()

    def _forgetful(self, change: Change) -> bool:
        """A claim is not journalled before it is used."""
        row = change.get((Membership.table, ""))
        return self.planted == "unjournalled" and isinstance(row, Membership) and bool(row.blocks)

    # --- what must hold -----------------------------------------------------------------------------------------------

    def _changed(self, host: Host, now: Change, old: Change) -> None:
        """Told of every change of a node's rows: 1, no block is used that is not claimed and journalled; 2, no peer
        goes but by a decision; 3, revisions do not fall.
        """
        for id, row in now.items():
            before: Row | None = old.get(id)
            if isinstance(before, Peer) and before.member and row is None:
                self._lost_peer(host, now, before)
            elif isinstance(row, Membership) and isinstance(before, Membership):
                if 0 < row.revision < before.revision and not self.went_back:
                    self.violations.append(f"{host.name}: revision {before.revision} -> {row.revision}")
                for block in set(row.blocks) - set(before.blocks):
                    self._claimed(host, row, block)
            elif isinstance(row, Overlay):
                durable = host.journal.rows.get((Membership.table, ""), b"")
                blocks = host.node.state.table(Membership)[""].blocks if host.node is not None else ()
                if not blocks or str(blocks[0]).encode() not in durable:
                    self.violations.append(f"{host.name}: {row.slice} is used before its block is journalled")

    def _lost_peer(self, host: Host, now: Change, peer: Peer) -> None:
        renewed = any(isinstance(row, Peer) and row.member == peer.member for row in now.values())
        if not renewed and peer.member not in self.removed:
            self.violations.append(f"{host.name}: peer {peer.member} is gone, and nobody decided that")

    def _claimed(self, host: Host, row: Membership, block: object) -> None:
        entry = self.etcd.keys.get(BLOCK + str(block).replace("/", "-"))
        holder = read_holding(entry.value, entry.modified).instance if entry is not None else ""
        if holder != row.instance and not self.went_back:
            self.violations.append(f"{host.name}: journals {block}, which the store gives to {holder or 'nobody'}")

    def _judge_the_end(self) -> None:
        """4: every node knows what the store has, beside those that it has lost and that ended for good, or are in
        another cluster: these wait for a person; and no two of them use one block.
        """
        register = read_register(
            (key.removeprefix(BLOCK), entry.value, entry.modified)
            for key, entry in self.etcd.keys.items()
            if key.startswith(BLOCK)
        )
        stored = {key.removeprefix(NODE) for key in self.etcd.keys if key.startswith(NODE)}
        used: dict[object, str] = {}
        lost = {host.name for host in self.hosts if host.stopped or _is_elsewhere(host)}
        for host in self.hosts:
            cluster, node = host.cluster, host.node
            if cluster is None or node is None or host.name in lost:
                continue
            known = node.state.table(Membership)[""]
            if not known.blocks:
                self.violations.append(f"{host.name}: has no block in the end: {cluster.error}")
                continue
            registry = cluster.news.registry if cluster.news is not None else None
            withheld = registry.withheld if registry is not None else set()
            if registry is not None and (registry.disputed or not withheld <= lost):
                self.violations.append(f"{host.name}: waits for a person: {withheld - lost}, {registry.disputed}")
            if cluster.state not in ("connected", "guarded"):
                self.violations.append(f"{host.name}: is {cluster.state} in the end: {Report(cluster).status().error}")
            for block in known.blocks:
                if (other := used.setdefault(block, host.name)) != host.name:
                    self.violations.append(f"{block} is used by {other} and {host.name}")
                if block not in register or register[block].instance != known.instance:
                    self.violations.append(f"{host.name}: {block} is not its in the register")
            if host.name not in stored:
                self.violations.append(f"{host.name}: has no record in the end")
            peers = {peer.member for peer in node.state.peers("").values() if peer.member}
            if peers - withheld != stored - {host.name}:
                self.violations.append(f"{host.name}: knows {sorted(peers)}, the store has {sorted(stored)}")


def _is_elsewhere(host: Host) -> bool:
    """Whether somebody made the cluster anew in a store that was wiped, which a person has to accept here; or the node
    disagrees with the store about what is its, for which one is needed as well.
    """
    cluster = host.cluster
    return cluster is not None and (bool(cluster.conflict) or (cluster.news is not None and cluster.news.foreign))


@contextmanager
def _patched(world: World) -> Iterator[None]:
    """Crashes at fault points, and the planted bug of the registry."""
    point, complete = fault.point, Registry.complete

    def strike(name: str) -> None:
        host = next((each for each in world.hosts if each.name == current.get()), None)
        if host is not None and host.crash_at == name:
            host.crash_at = ""
            raise Crash(name)

    def forgetting(self: Registry, listed: object, *, keep: bool) -> None:
        complete(self, listed, keep=False)  # type: ignore[arg-type]

    fault.point = strike
    if world.planted == "empty":
        Registry.complete = forgetting  # type: ignore[method-assign]
    try:
        yield
    finally:
        fault.point, Registry.complete = point, complete  # type: ignore[method-assign]


def _named(name: str) -> Context:
    """A context in which `current` is this node."""
    context = copy_context()
    context.run(current.set, name)
    return context


KINDS = (
    *("outage", "silence", "partition", "pause", "crash", "crash", "crash at claim", "crash at point"),
    *("compact", "lag", "lossy", "backup", "wipe", "restore", "remove"),
)


def bad_day(seed: int) -> tuple[int, list[Fault]]:
    """How many nodes, and what befalls them."""
    chance = random.Random(seed)
    faults = [
        Fault(chance.uniform(0, 150), chance.choice(KINDS), chance.randrange(64), chance.choice((1.0, 20.0, 70.0)))
        for _ in range(chance.randrange(1, 8))
    ]
    return chance.randrange(2, FEW), faults


def long_day(seed: int, nodes: int, steps: int) -> list[Fault]:
    """So many faults of a large cluster, one every two seconds."""
    chance = random.Random(seed)
    return [
        Fault(chance.uniform(0, 2.0 * steps), chance.choice(KINDS), chance.randrange(nodes), chance.choice((1.0, 20.0)))
        for _ in range(steps)
    ]


def violations(seed: int, nodes: int, faults: list[Fault], planted: str = "") -> list[str]:
    """Simulate a day; returns what did not hold."""
    random.seed(seed)
    world = World(seed, nodes, faults, planted)
    with _patched(world), asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(world.run())
    return world.violations


def shrunk(seed: int, nodes: int, faults: list[Fault], planted: str = "") -> list[Fault]:
    """As few of the faults as still show a violation."""
    left = list(faults)
    for each in faults:
        fewer = [other for other in left if other is not each]
        if violations(seed, nodes, fewer, planted):
            left = fewer
    return left


def main() -> int:
    """`python -m sim.world FIRST COUNT`: many days; `--long NODES STEPS`: one of a large cluster."""
    logging.disable()
    if sys.argv[1] == "--long":
        nodes, steps = int(sys.argv[2]), int(sys.argv[3])
        found = violations(1, nodes, long_day(1, nodes, steps))
        print(*found or [f"{nodes} nodes: {steps} faults hold"], sep="\n  ")
        return bool(found)
    first, count = int(sys.argv[1]), int(sys.argv[2])
    for seed in range(first, first + count):
        nodes, faults = bad_day(seed)
        if found := violations(seed, nodes, faults):
            print(seed, nodes, shrunk(seed, nodes, faults), *found, sep="\n  ")
            return 1
    print(f"{count} days hold")
    return 0


if __name__ == "__main__":
    sys.exit(main())
