"""News of the cluster: from the store's changes to rows, in batches.

Owns: the registry of this node, what waits to be taken over, and that it is taken over in order, in spite of a disk or
a kernel that refuses.  Must not know: the store's protocol, or what becomes of rows.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from overlayd import fault, keys
from overlayd.daemon.change.node import Node
from overlayd.daemon.change.resources import MEMBERSHIP, RECORDS, peers_locks
from overlayd.daemon.cluster.following import News as Message
from overlayd.errors import OverlaydError
from overlayd.model import joining
from overlayd.model.cluster_records import CONFIG, NAMES, NODE, PULSE, BadRecord, Config, read_config
from overlayd.model.objects import GLOBAL
from overlayd.model.registry import Registry
from overlayd.model.removals import Removals
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
    """own_record, config: are told what the store has of these, and None when that is gone; own_names: of an entry of
    our names, with its key; went_back: that the store went back, and has this mark still.  list_anew: has all of it
    told again.  pulse: the revision at which the pulse was put last.  foreign: the store has another cluster of our
    name; guarded: nodes that it lacks are kept.  problem: why rows are not taken over, empty when they are.
    """

    def __init__(
        self,
        node: Node,
        *,
        own_record: Callable[[Entry | None], None],
        own_names: Callable[[str, Entry | None], None],
        config: Callable[[Config | None], None],
        list_anew: Callable[[], None],
        went_back: Callable[[str], None],
    ) -> None:
        self.pulse = 0
        self.foreign = False
        self.problem = ""
        self._node = node
        self._own_record = own_record
        self._own_names = own_names
        self._config = config
        self._list_anew = list_anew
        self._went_back = went_back
        self._waiting: deque[Message] = deque()
        self._removals = Removals()
        self._arrived = asyncio.Event()
        state, known = node.state, node.state.table(Membership)[""]
        self._revision, self._history = known.revision, known.history
        self._witness = Witness(*known.witness) if known.witness is not None else None
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
        return self.foreign or self.registry.guarded

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
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._removals.next):
                    await self._arrived.wait()
            self._arrived.clear()
            # Who has just joined is known to the others: first handshakes of those that it does not know are lost, and
            # WireGuard tries again after five seconds.
            if len(self.registry):
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
                await self._take_over()
            await self._take_over()

    def accept(self) -> list[str]:
        """What was withheld goes, by a person's decision."""
        going = self.registry.accept()
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
        doubted = self._is_doubted(snapshot, CONFIG in entries)
        if snapshot.restored and CONFIG in entries and self._history == known.history:
            self._went_back(self._history)
        older = len(self.registry.older)
        nodes_first = sorted(snapshot.entries, key=lambda entry: not entry.key.startswith(NODE))
        for number, entry in enumerate(nodes_first):
            self._read(entry.key, entry, doubted=doubted)
            if number % SLICE == SLICE - 1:
                await asyncio.sleep(0)
        self._removals.clear()
        self.registry.complete(entries, keep=doubted)
        if len(self.registry.older) > older:
            log.warning(
                "cluster %s: the store has older records than are known here of %s: was a backup put back?  They are "
                "passed over until their nodes put others",
                known.cluster,
                ", ".join(sorted(self.registry.older)[:5]),
            )
        if self.registry.disputed:
            log.error(
                "cluster %s: the store went back, and has other installations than are known here of %s: they are "
                "passed over until their nodes put others, or until somebody accepts the store's (overlayctl cluster "
                "accept)",
                known.cluster,
                ", ".join(sorted(self.registry.disputed)[:5]),
            )
        if self.registry.withheld:
            log.error(
                "cluster %s: the store lacks %d of the %d other nodes that are known here%s: they stay until they "
                "return, or until somebody accepts that they are gone (overlayctl cluster accept)",
                known.cluster,
                len(self.registry.withheld),
                len(self.registry),
                ", and it went back: was a backup put back?" if doubted else "",
            )
        if CONFIG not in entries:
            self._config(None)
        if NODE + self.registry.own not in entries or doubted:
            self._own_record(None)
        self._revision, self._witness = snapshot.revision, snapshot.witness
        fault.point("cluster:listed")

    def _is_doubted(self, snapshot: Snapshot, has_config: bool) -> bool:
        """Whether what a listing lacks may be lost only: the store went back since it was followed last, or was in
        doubt then.
        """
        known = self._node.state.table(Membership)[""]
        another = not has_config or self._history != known.history
        return bool(len(self.registry)) and (snapshot.restored or another or not known.revision)

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

    def _read(self, key: str, entry: Entry | None, *, doubted: bool = False) -> None:
        if key == NODE + self.registry.own:
            self._own_record(entry)
        elif _is_names_of(self.registry.own, key):
            self._own_names(key, entry)
        elif key == PULSE:
            self.pulse = entry.modified if entry is not None else 0
        elif entry is None:
            self._removals.remove(key, asyncio.get_running_loop().time())
        else:
            self._removals.put(key)
            known = self.registry.faults.get(key)
            self.registry.put(key, entry.value, entry.created, doubted=doubted)
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
        known = self._node.state.table(Membership)[""]
        self.registry.faults.pop(CONFIG, None)
        self.foreign = config is not None and config.id != known.cluster_id
        if not self.foreign:
            if config is not None:
                self._history = config.history
                if wrong := joining.renumbered(known, config):
                    self.registry.faults[CONFIG] = wrong
                    log.error("cluster: %s: %s", CONFIG, wrong)
            self._config(config)

    # --- taking over --------------------------------------------------------------------------------------------------

    async def _take_over(self) -> None:
        """Make rows of what was read; the revision goes with the last of them, and none while something is withheld, so
        that the next start lists everything, and doubts it.  That of a removal goes when the removal counts.
        """
        for key in self._removals.due(asyncio.get_running_loop().time(), self.registry.is_contested):
            self.registry.remove(key)
        while True:
            change = self.registry.take(BATCH)
            whole = not self.registry.pending
            known = self._node.state.table(Membership)[""]
            revision = 0 if self.guarded else self._revision
            if not change and whole and (bool(revision), self._history) == (bool(known.revision), known.history):
                return
            await self._commit(change, revision if whole and not self._removals else None)
            if whole:
                return

    async def _commit(self, change: Change, revision: int | None) -> None:
        """Until it is done: what the store says later builds on it."""
        pause, witness, history = FIRST_PAUSE, self._witness, self._history
        while True:
            try:
                moved = await self._node.change_together(
                    lambda draft: joining.follow(draft, change, revision, witness, history),
                    [*peers_locks(GLOBAL), RECORDS, MEMBERSHIP],
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


def _is_names_of(node: str, key: str) -> bool:
    return key == NAMES + node or key.startswith(f"{NAMES}{node}/")
