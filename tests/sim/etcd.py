"""A model of etcd: revisions, transactions, leases, compaction, members that lag, streams that break or fall silent.

Owns: the keys and their history, and how each node's link to them fails.  Must not know: what keys mean.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence

from overlayd.daemon.cluster.connection import Server
from overlayd.proto.etcd import Lease, Outcome
from overlayd.proto.store import List, Verify, Watch
from overlayd.proto.store_answers import (
    Ahead,
    Change,
    Changes,
    Compacted,
    Entry,
    LeaseGone,
    Page,
    Unavailable,
    Watching,
)

MEMBERS = 3
SILENCE = 10.0  # seconds until who asks a silent store gives up


class ModelEtcd:
    """down: nobody answers.  lossy: the share of answers that are lost though the request was done."""

    def __init__(self) -> None:
        self.keys: dict[str, Entry] = {}
        self.history: list[Change] = []
        self.revision = 1
        self.first = 1
        self.down = False
        self.lossy = 0.0
        self.lag = [0] * MEMBERS
        self.leases: dict[int, tuple[int, float]] = {}
        self.of_lease: dict[int, set[str]] = {}
        self.links: list[Link] = []
        self.epoch = 0  # of wipes and restores: streams of an older one are dead

    def put(self, key: str, value: bytes, revision: int) -> None:
        old = self.keys.get(key)
        entry = Entry(key, value, old.created if old else revision, revision)
        self.keys[key] = entry
        self.history.append(Change(key, entry, revision))

    def delete(self, key: str, revision: int) -> None:
        old = self.keys.pop(key, None)
        if old is not None:
            self.history.append(Change(key, None, revision))

    def expire(self, now: float) -> None:
        for id, (_, until) in list(self.leases.items()):
            if until <= now:
                self.revoke(id)

    def revoke(self, id: int) -> None:
        self.leases.pop(id, None)
        gone = self.of_lease.pop(id, set())
        if gone:
            self.revision += 1
            for key in gone:
                self.delete(key, self.revision)
            self.tell()

    def at(self, revision: int) -> dict[str, Entry]:
        if revision >= self.revision:
            return self.keys
        found = dict(self.keys)
        for change in reversed(self.history):
            if change.revision > revision:
                found.pop(change.key, None)
        for change in self.history:
            if change.revision <= revision and change.entry is not None:
                found[change.key] = change.entry
            elif change.revision <= revision:
                found.pop(change.key, None)
        return found

    def tell(self) -> None:
        """Wake the streams."""
        for link in self.links:
            link.woken.set()

    def saved(self) -> tuple[dict[str, Entry], int]:
        return dict(self.keys), self.revision

    def restore(self, saved: tuple[dict[str, Entry], int]) -> None:
        """A backup is put back, or nothing: `({}, 1)`."""
        self.keys, self.revision = dict(saved[0]), saved[1]
        self.history = [Change(entry.key, entry, entry.modified) for entry in self.keys.values()]
        self.history.sort(key=lambda change: change.revision)
        self.leases, self.of_lease, self.first = {}, {}, self.revision
        self.epoch += 1
        self.tell()


class Link:
    """A node's way to the store, as `daemon.cluster.etcd.Etcd` has it.  cut: nothing gets through; silent: and the
    streams do not notice.
    """

    def __init__(self, etcd: ModelEtcd, name: str) -> None:
        self.servers = [Server(f"http://m{number}", f"m{number}", 2379, False) for number in range(MEMBERS)]
        self.cut = False
        self.silent = False
        self.woken = asyncio.Event()
        self._etcd = etcd
        self._name = name
        etcd.links.append(self)

    def close(self) -> None:
        if self in self._etcd.links:
            self._etcd.links.remove(self)

    async def _way(self) -> None:
        """To the store."""
        await asyncio.sleep(random.uniform(0.001, 0.03))
        if self.cut or self._etcd.down:
            await asyncio.sleep(SILENCE if self.silent else 0.01)
            raise Unavailable(f"{self._name}: the store is away")
        self._etcd.expire(asyncio.get_running_loop().time())

    async def _back(self) -> None:
        """Its answer."""
        if random.random() < self._etcd.lossy:
            raise Unavailable(f"{self._name}: the answer is lost")

    async def read(self, key: str, *, prefix: bool = False, any_member: bool = False) -> Page:
        await self._way()
        etcd = self._etcd
        found = [entry for each, entry in sorted(etcd.keys.items()) if each == key or (prefix and each.startswith(key))]
        await self._back()
        return Page(tuple(found), etcd.revision)

    async def transact(
        self,
        same: Sequence[tuple[str, int]],
        put: Sequence[tuple[str, bytes, int]] = (),
        delete: Sequence[tuple[str, bool]] = (),
    ) -> Outcome:
        await self._way()
        etcd = self._etcd
        if any((etcd.keys[key].modified if key in etcd.keys else 0) != modified for key, modified in same):
            found = tuple(etcd.keys[key] for key, _ in same if key in etcd.keys)
            await self._back()
            return Outcome(False, etcd.revision, found)
        if any(lease and lease not in etcd.leases for _, _, lease in put):
            raise LeaseGone("requested lease not found")
        etcd.revision += 1
        for key, whole in delete:
            for each in [each for each in etcd.keys if each == key or (whole and each.startswith(key))]:
                etcd.delete(each, etcd.revision)
        for key, value, lease in put:
            etcd.put(key, value, etcd.revision)
            if lease:
                etcd.of_lease.setdefault(lease, set()).add(key)
        done = Outcome(True, etcd.revision)
        etcd.tell()
        await self._back()
        return done

    async def grant(self, ttl: int) -> Lease:
        await self._way()
        id = random.getrandbits(60) | 1
        self._etcd.leases[id] = (ttl, asyncio.get_running_loop().time() + ttl)
        await self._back()
        return Lease(id, ttl)

    async def keep_alive(self, lease: int) -> Lease:
        await self._way()
        if lease not in self._etcd.leases:
            raise LeaseGone("gone")
        ttl = self._etcd.leases[lease][0]
        self._etcd.leases[lease] = (ttl, asyncio.get_running_loop().time() + ttl)
        return Lease(lease, ttl)

    async def revoke(self, lease: int) -> None:
        await self._way()
        self._etcd.revoke(lease)

    async def time_to_live(self, lease: int) -> Lease:
        await self._way()
        if lease not in self._etcd.leases:
            raise LeaseGone("gone")
        _ttl, until = self._etcd.leases[lease]
        return Lease(lease, max(1, int(until - asyncio.get_running_loop().time())))

    async def page(self, asked: List, prefix: str) -> Page:
        await self._way()
        etcd = self._etcd
        knows = etcd.revision - (etcd.lag[asked.endpoint] if asked.any_member else 0)
        if asked.revision and asked.revision < etcd.first:
            raise Compacted(etcd.first)
        revision = asked.revision or max(knows, etcd.first)
        keys = sorted(each for each in etcd.at(revision) if each.startswith(prefix) and each > asked.after)
        limit = min(asked.limit, 3)  # small pages: more happens between two
        found = tuple(etcd.at(revision)[each] for each in keys[:limit])
        return Page(found, max(knows, etcd.first), len(keys) > limit)

    async def verify(self, asked: Verify) -> Page:
        await self._way()
        etcd = self._etcd
        if asked.revision > etcd.revision - etcd.lag[asked.endpoint]:
            raise Ahead("future revision")
        if asked.revision < etcd.first:
            raise Compacted(etcd.first)
        entry = etcd.at(asked.revision).get(asked.key)
        return Page((entry,) if entry is not None else (), etcd.revision)

    async def watch(self, asked: Watch, prefix: str) -> AsyncGenerator[Watching | Changes, None]:
        await self._way()
        etcd = self._etcd
        epoch = etcd.epoch
        if asked.revision < etcd.first:
            raise Compacted(etcd.first)
        yield Watching(etcd.revision - etcd.lag[asked.endpoint])
        told = asked.revision - 1
        while True:
            if (self.cut or etcd.down or etcd.epoch != epoch) and not self.silent:
                raise Unavailable("the stream has ended")
            upto = etcd.revision - etcd.lag[asked.endpoint]
            if not (self.cut or etcd.down) and etcd.epoch == epoch and upto > told:
                news = tuple(
                    each for each in etcd.history if told < each.revision <= upto and each.key.startswith(prefix)
                )
                told = upto
                if news:
                    yield Changes(news, max(each.revision for each in news))
                    continue
            self.woken.clear()
            await self.woken.wait()
            await asyncio.sleep(random.uniform(0.001, 0.05))
