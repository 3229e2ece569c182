"""News of the cluster: from the store's changes to rows, in batches.

Owns: the registry of this node, what waits to be taken over, and that it is taken over in order, in spite of a disk or
a kernel that refuses.  Must not know: the store's protocol, or what becomes of rows.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from overlayd import fault, keys
from overlayd.daemon.change.node import Node
from overlayd.daemon.change.resources import RECORDS, peers_locks
from overlayd.daemon.cluster.following import News as Message
from overlayd.errors import OverlaydError
from overlayd.model import joining
from overlayd.model.cluster_records import CONFIG, NODE, PULSE, BadRecord, Config, read_config
from overlayd.model.objects import GLOBAL
from overlayd.model.registry import Registry
from overlayd.model.rows import Change, Member, MemberNames, Membership
from overlayd.proto.store import Delta, Snapshot, Witness
from overlayd.proto.store_answers import Entry

log = logging.getLogger(__name__)

# From the specification: changes are gathered so long, or until there are so many.
GATHER, MOST_GATHERED = 0.05, 1000

# Our own constants.
SLICE = 100  # records that are read before the loop looks at its other work
BATCH = 400  # nodes whose rows are changed together
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds, after the disk or the kernel refused


class News:
    """own_record, config: are told what the store has of these, and None when that is gone; restored: that the store
    went back.  list_anew: has all of it told again.  pulse: the revision at which the pulse was put last.  foreign: the
    store has another cluster of our name; guarded: nodes that it lacks are kept.  problem: why rows are not taken
    over, empty when they are.
    """

    def __init__(
        self,
        node: Node,
        own_record: Callable[[Entry | None], None],
        config: Callable[[Config | None], None],
        list_anew: Callable[[], None],
        restored: Callable[[], None],
    ) -> None:
        self.pulse = 0
        self.foreign = False
        self.problem = ""
        self._node = node
        self._own_record = own_record
        self._config = config
        self._list_anew = list_anew
        self._restored = restored
        self._waiting: deque[Message] = deque()
        self._arrived = asyncio.Event()
        self._revision = 0
        self._restored_at: int  # what was put up to this revision is of a backup, and not all of it is accepted
        self._witness: Witness | None = None
        state, known = node.state, node.state.table(Membership)[""]
        self._restored_at = known.restored_at
        assert known.cidr is not None
        self.registry = Registry(
            known.node,
            keys.public(state.node.private_key),
            known.cidr,
            known.block_prefix,
            members=list(state.table(Member).values()),
            names=list(state.table(MemberNames).values()),
            peers=list(state.peers(GLOBAL).values()),
        )
        self.registry.claim_for_ourselves(known.blocks)

    @property
    def guarded(self) -> bool:
        return self.foreign or bool(self.registry.withheld or self.registry.outdated)

    def tell(self, message: Message) -> None:
        """There are news."""
        self._waiting.append(message)
        self._arrived.set()

    def look(self) -> None:
        """What the registry was told from elsewhere (NAT, blocks) is to become rows."""
        self._arrived.set()

    async def run(self) -> None:
        """Take over what comes, until it is cancelled."""
        await self._take_over()
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            await asyncio.sleep(GATHER)
            while self._waiting:
                message = self._waiting.popleft()
                if isinstance(message, Snapshot):
                    await self._read_snapshot(message)
                elif isinstance(message, Delta):
                    gathered = self._read_delta(message)
                    while self._waiting and isinstance(self._waiting[0], Delta) and gathered < MOST_GATHERED:
                        following = self._waiting.popleft()
                        assert isinstance(following, Delta)
                        gathered += self._read_delta(following)
                if not self.guarded:
                    self._restored_at = 0
                await self._take_over()
            await self._take_over()

    def accept(self) -> list[str]:
        """What was withheld goes, by a person's decision."""
        going = self.registry.accept()
        self._restored_at = 0
        self._list_anew()
        self._arrived.set()
        return going

    # --- reading ------------------------------------------------------------------------------------------------------

    async def _read_snapshot(self, snapshot: Snapshot) -> None:
        known = self._node.state.table(Membership)[""]
        entries = {entry.key: entry for entry in snapshot.entries}
        self._read_config(entries.get(CONFIG))
        if self.foreign:
            log.error(
                "cluster %s: the store has another cluster of that name: nothing is taken from there; accept it "
                "(overlayctl cluster accept), or put the backup back",
                known.cluster,
            )
            return
        created = {key.removeprefix(NODE): entry.created for key, entry in entries.items() if key.startswith(NODE)}
        if snapshot.restored or self.registry.is_of_another_history(created, known.revision):
            self._restored_at = snapshot.revision
            self._restored()
        for number, entry in enumerate(snapshot.entries):
            self._read(entry.key, entry)
            if number % SLICE == SLICE - 1:
                await asyncio.sleep(0)
        restored = bool(self._restored_at)
        self.registry.complete(entries, keep=CONFIG not in entries or restored, restored=restored)
        if self.registry.outdated:
            log.error(
                "cluster %s: the store has older records than are known here of %s; its revision went back: was a "
                "backup put back?  They stay until their nodes put them anew, or until somebody accepts the store's "
                "(overlayctl cluster accept)",
                known.cluster,
                ", ".join(sorted(self.registry.outdated)[:5]),
            )
        if self.registry.withheld:
            log.error(
                "cluster %s: the store lacks %d of the %d other nodes that are known here%s: they stay until they "
                "return, or until somebody accepts that they are gone (overlayctl cluster accept)",
                known.cluster,
                len(self.registry.withheld),
                len(self.registry),
                ", and its revision went back: was a backup put back?" if snapshot.restored else "",
            )
        if CONFIG not in entries:
            self._config(None)
        if NODE + self.registry.own not in entries or snapshot.restored:
            self._own_record(None)
        self._revision, self._witness = snapshot.revision, snapshot.witness
        fault.point("cluster:listed")

    def _read_delta(self, delta: Delta) -> int:
        for change in delta.changes:
            if change.key == CONFIG:
                was_foreign = self.foreign
                self._read_config(change.entry)
                if was_foreign and not self.foreign:
                    self._list_anew()
            elif not self.foreign:
                self._read(change.key, change.entry)
        self._revision, self._witness = delta.revision, delta.witness
        return len(delta.changes)

    def _read(self, key: str, entry: Entry | None) -> None:
        if key == NODE + self.registry.own:
            self._own_record(entry)
        elif key == PULSE:
            self.pulse = entry.modified if entry is not None else 0
        elif entry is None:
            self.registry.remove(key)
        else:
            known = self.registry.faults.get(key)
            restored = entry.modified <= self._restored_at
            self.registry.put(key, entry.value, entry.created, restored=restored)
            fault_now = self.registry.faults.get(key)
            if fault_now is not None and fault_now != known:
                log.warning("cluster: %s is skipped: %s", key, fault_now)

    def _read_config(self, entry: Entry | None) -> None:
        try:
            config = read_config(entry.value) if entry is not None else None
        except BadRecord as error:
            self.registry.faults[CONFIG] = str(error)
            log.error("cluster: %s", error)
            return
        self.registry.faults.pop(CONFIG, None)
        self.foreign = config is not None and config.id != self._node.state.table(Membership)[""].cluster_id
        if not self.foreign:
            self._config(config)

    # --- taking over --------------------------------------------------------------------------------------------------

    async def _take_over(self) -> None:
        """Make rows of what was read; the revision goes with the last of them, and not at all while something is
        withheld, so that the next start looks at all of it again.
        """
        while True:
            change = self.registry.take(BATCH)
            whole = not self.registry.pending
            if not change and whole and self._restored_at == self._node.state.table(Membership)[""].restored_at:
                return
            revision = self._revision if whole and not self.guarded else 0
            await self._commit(change, revision)
            if whole:
                return

    async def _commit(self, change: Change, revision: int) -> None:
        """Until it is done: what the store says later builds on it."""
        pause, witness = FIRST_PAUSE, self._witness
        while True:
            try:
                moved = await self._node.change_together(
                    lambda draft: joining.follow(draft, change, revision, witness, self._restored_at),
                    [*peers_locks(GLOBAL), RECORDS],
                )
            except OverlaydError as error:
                self.problem = str(error)
                log.error("cluster: news of %d rows are not taken over, again in %g s: %s", len(change), pause, error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
            else:
                self.problem = ""
                for line in moved:
                    log.warning("cluster: %s", line)
                fault.point("cluster:applied")
                return
