"""Our record in the store, and the entries of our names: written together, under one number.

Owns: what the store was last seen to have of us, and how it gets something else.  Must not know: what is in these
(`publishing`), which blocks we should hold (`joining`), or when it is time to tell.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from overlayd import keys
from overlayd.daemon.change.node import Node
from overlayd.daemon.change.resources import MEMBERSHIP
from overlayd.daemon.cluster.etcd import Etcd, read_one
from overlayd.daemon.cluster.faults import Conflict
from overlayd.daemon.cluster.presence import last_seen
from overlayd.daemon.cluster.settings import Settings
from overlayd.model import joining
from overlayd.model.cluster_records import NAMES, NODE, BadRecord, read_node, write_holding, write_node
from overlayd.model.objects import Network
from overlayd.model.rows import Member, Membership
from overlayd.proto.etcd import Outcome
from overlayd.proto.store_answers import Entry, Unavailable

Content = Callable[[tuple[Network, ...]], Member]  # our record as it should be, with these blocks
Names = Callable[[], dict[str, bytes]]


class OwnRecord:
    """content, own_names: what is to be in our record, and in the entries of our names.

    entry, names: these as they were last seen in the store, None when it has no record, or when it is not known what
    names it has; putting: our record as it was put last, though no answer came yet; told: as the store is known to have
    had it from us.
    """

    def __init__(self, node: Node, etcd: Etcd, settings: Settings, content: Content, own_names: Names) -> None:
        self.entry: Entry | None = None
        self.names: dict[str, bytes] | None = None
        self.putting = self.told = b""
        self.turn = asyncio.Lock()  # who changes our blocks or our record in the store builds on what both are
        self._own_names = own_names
        self._node = node
        self._etcd = etcd
        self._settings = settings
        self._content = content

    @property
    def _membership(self) -> Membership:
        return self._node.state.table(Membership)[""]

    async def read(self) -> None:
        """Look at it in the store."""
        self.entry = await read_one(self._etcd, NODE + self._settings.node)

    async def publish(self, *, turned: bool = False) -> None:
        """Put our record as it is to be, unless it is there.  turned: with our next key in the place of ours.

        Conflict: it is another's by now.
        """
        async with self.turn:
            await self._see()
            content = self.with_blocks(self._membership.blocks, turned=turned)
            if not self.is_told(content):
                await self.put(content)

    async def publish_names(self) -> int:
        """Put our names as they are to be, unless they are there; returns the revision at which, or 0."""
        async with self.turn:
            await self._see()
            there = self.stored
            if there is None or there.instance != self._membership.instance:
                raise Unavailable("our record is not there")
            return 0 if self.names == self._own_names() else await self.put(there)

    async def _see(self) -> None:
        """Look at our record and names in the store, unless these are known: what was put may have been put, though no
        answer came.
        """
        if self.names is None:
            await self.read()
            self.names = await self._stored_names()

    @property
    def is_turned(self) -> bool:
        """Whether our record has the next key already, which the device is to get."""
        soon, there = self._node.state.node.next_key, self.stored
        return bool(soon) and there is not None and there.public_key == keys.public(soon)

    @property
    def stored(self) -> Member | None:
        """Our record in the store; None when there is none that can be read."""
        try:
            return read_node(self._settings.node, self.entry.value, 0) if self.entry is not None else None
        except BadRecord:
            return None

    def is_told(self, content: Member) -> bool:
        """Whether the store has this of us, with the number of what we put last."""
        if self.entry is None:
            return False
        return self.entry.value == write_node(replace(content, seq=self._membership.seq), self.entry.value)

    def with_blocks(self, held: tuple[Network, ...], *, turned: bool = False) -> Member:
        """What is to be in it, with these blocks.  turned: with the next key as ours, which does not turn back."""
        content = self._content(held)
        if turned or self.is_turned:
            content = replace(content, public_key=content.next_key, next_key=b"")
        return content

    async def put(self, content: Member, claims: Sequence[tuple[str, int]] = ()) -> int:
        """Put it, and with it claims; returns the revision.  Conflict, or Unavailable: it is another by now."""
        name = self._settings.node
        outcome = await self.transact(content, claims)
        if outcome.done:
            return outcome.revision
        if self.stored is not None and self.stored.instance != self._membership.instance:
            raise Conflict(f"node {name} was registered by another installation ({await last_seen(self._etcd, name)})")
        raise Unavailable("our record or block was written meanwhile")

    async def transact(self, content: Member, claims: Sequence[tuple[str, int]]) -> Outcome:
        """Put it with the next number, and with it what differs of our names, so that these are as new as it; all
        of them if the store's record is not the one that we put last.  claims: keys of the register, with the
        revision at which each was put last.
        """
        known, name, there = self._membership, self._settings.node, self.stored
        seq = there.seq if there is not None else 0
        names, wanted = self.names if self.names is not None else await self._stored_names(), self._own_names()
        same = there is not None and seq == known.seq
        changed = [(key, value, 0) for key, value in wanted.items() if not same or names.get(key) != value]
        gone = [(key, False) for key in names if key not in wanted]
        number = await self._node.change(
            lambda draft: joining.raise_seq(draft, seq, int(time.time())), exclusive=[MEMBERSHIP]
        )
        before = self.entry.value if self.entry is not None else b""
        self.putting = write_node(replace(content, seq=number), before)
        self.names = None
        holding = write_holding(name, known.instance)
        outcome = await self._etcd.transact(
            [*claims, (NODE + name, self.entry.modified if self.entry is not None else 0)],
            [*((key, holding, 0) for key, _ in claims), (NODE + name, self.putting, 0), *changed],
            gone,
        )
        if outcome.done:
            self.entry, self.names = Entry(NODE + name, self.putting, 0, outcome.revision), wanted
            self.told = self.putting
        else:
            self.entry, self.names = next((each for each in outcome.found if each.key == NODE + name), None), names
        return outcome

    async def _stored_names(self) -> dict[str, bytes]:
        """The entries that the store has of our names."""
        base = NAMES + self._settings.node
        found = [*(await self._etcd.read(base)).entries, *(await self._etcd.read(base + "/", prefix=True)).entries]
        return {entry.key: entry.value for entry in found}
