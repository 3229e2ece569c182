"""The janitor: one of the nodes removes those that have been gone for too long, if the cluster wants that.

Owns: the office, held with the lease of our presence, and how a node is removed.  Must not know: how long a node was
gone (`model.absence`).
"""

import asyncio
import logging
import random

from overlayd.daemon.change.node import Node
from overlayd.daemon.cluster.etcd import Etcd
from overlayd.daemon.cluster.news import News
from overlayd.daemon.cluster.publishing import Publishing
from overlayd.errors import OverlaydError, RequestError
from overlayd.model.absence import SHORTEST_TTL, Absence
from overlayd.model.blocks import block_key
from overlayd.model.cluster_records import (
    BLOCK,
    JANITOR,
    NAMES,
    NODE,
    PRESENCE,
    BadRecord,
    read_holding,
    read_node,
    write_freed,
)
from overlayd.model.rows import Membership
from overlayd.proto.store_answers import Denied, Entry, Unavailable

log = logging.getLogger(__name__)

LONGEST_INTERVAL, SHORTEST_INTERVAL = 60.0, 1.0  # seconds between two readings
TRIES = 5  # of a removal that meets somebody else's write


class NoSuchNode(RequestError):
    """The store has no record of a node."""


async def remove(etcd: Etcd, name: str, instance: str = "") -> None:
    """Remove a node: its record and names, and its blocks are free, all or nothing.  instance: only if it is this one.
    NoSuchNode: there is none of that name.
    """
    for _ in range(TRIES):
        found = (await etcd.read(NODE + name)).entries
        if not found:
            raise NoSuchNode(f"there is no node {name} in the store")
        record = found[0]
        same, put = [(NODE + name, record.modified)], []
        for entry in await _held(etcd, name, record, instance):
            same.append((entry.key, entry.modified))
            put.append((entry.key, write_freed(record.modified), 0))
        gone = [(NODE + name, False), (NAMES + name, False), (f"{NAMES}{name}/", True)]
        if (await etcd.transact(same, put, gone)).done:
            return
    raise Unavailable(f"node {name} was not removed: it is written again and again")


async def _held(etcd: Etcd, name: str, record: Entry, instance: str) -> list[Entry]:
    """What is in the register for a node's blocks: those of its record, or of its name when that makes no sense."""
    try:
        member = read_node(name, record.value, record.created)
    except BadRecord:
        entries = (await etcd.read(BLOCK, prefix=True)).entries
        holdings = [(entry, read_holding(entry.value, entry.modified)) for entry in entries]
        return [entry for entry, held in holdings if held.node == name and instance in ("", held.instance)]
    if instance and member.instance != instance:
        raise RequestError(f"node {name} is another installation by now")
    entries = tuple([entry for block in member.blocks for entry in (await etcd.read(BLOCK + block_key(block))).entries])
    return [each for each in entries if read_holding(each.value, each.modified).instance == member.instance]


class Janitor:
    """denied: what of the office our role in the store does not allow; empty when it allows all, or nobody needs it."""

    def __init__(self, node: Node, etcd: Etcd, news: News, publishing: Publishing) -> None:
        self._node = node
        self._etcd = etcd
        self._news = news
        self._publishing = publishing
        self._absence: Absence | None = None
        self.denied = ""

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            known = self._node.state.get(Membership)
            ttl = known.node_ttl if known is not None else 0
            ttl = max(ttl, SHORTEST_TTL) if ttl else 0  # what hands or an older overlayd wrote
            interval = min(max(ttl / 4, SHORTEST_INTERVAL), LONGEST_INTERVAL)
            await asyncio.sleep(interval * random.uniform(0.9, 1.1) if ttl else LONGEST_INTERVAL / 10)
            if known is None or not ttl or self._news.guarded:
                self._absence, self.denied = None, ""
                continue
            try:
                if not await self._hold_office(known.node):
                    self._absence, self.denied = None, ""
                    continue
                if self._absence is None or self._absence.ttl != ttl:
                    self._absence = Absence(ttl, interval)
                page = await self._etcd.read(PRESENCE, prefix=True)
                present = {entry.key.removeprefix(PRESENCE) for entry in page.entries}
                members = {member.name for member in self._news.registry.members()}
                now = asyncio.get_running_loop().time()
                for name in self._absence.read(members, present, now):
                    await self._remove(name)
                self.denied = ""
            except OverlaydError as error:
                if isinstance(error, Denied):
                    self._deny(str(error))
                if self._absence is not None:
                    self._absence.failed()
                log.debug("cluster: janitor: %s", error)

    def _deny(self, why: str) -> None:
        if why != self.denied:
            log.warning("cluster: nodes that are gone are not removed: %s", why)
        self.denied = why

    async def _hold_office(self, own: str) -> bool:
        lease = self._publishing.lease
        if not lease:
            return False
        holder = (await self._etcd.read(JANITOR, any_member=True)).entries
        if holder and holder[0].value == own.encode():
            return True
        if holder and self._news.registry.member(holder[0].value.decode(errors="replace")) is not None:
            return False
        if holder:
            log.warning("cluster: %s was held by no node that is known, and is ours now", JANITOR)
        there = holder[0].modified if holder else 0
        return (await self._etcd.transact([(JANITOR, there)], [(JANITOR, own.encode(), lease)])).done

    async def _remove(self, name: str) -> None:
        member = self._news.registry.member(name)
        if member is None:
            return
        log.warning("cluster: node %s has not been seen for its time, and is removed", name)
        try:
            await remove(self._etcd, name, member.instance)
        except RequestError as error:
            log.info("cluster: %s", error)
