"""Becoming a member of the cluster, and staying the one that the journal says we are.

Owns: our name and our blocks, each claimed by a transaction.  Must not know: connections, other nodes' records, what is
in ours (`own_record`), when it is time to look again (`cluster`).

What is claimed is journalled before it is used.  When we die in between, the next start finds its own instance in the
register of blocks, and keeps that block.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Sequence

from overlayd import fault
from overlayd.daemon.change.node import Node
from overlayd.daemon.change.resources import MEMBERSHIP
from overlayd.daemon.change.resources import NODE as NODE_LOCK
from overlayd.daemon.cluster.configuration import Configuration
from overlayd.daemon.cluster.etcd import Etcd, read_one
from overlayd.daemon.cluster.faults import Conflict, Copied, Refused
from overlayd.daemon.cluster.own_record import OwnRecord
from overlayd.daemon.cluster.presence import last_seen, lives, read_presence
from overlayd.daemon.cluster.settings import Settings
from overlayd.errors import RequestError
from overlayd.model import blocks, joining, membership
from overlayd.model.blocks import MOST_TRIES, Register, block_key
from overlayd.model.cluster_records import BLOCK, PRESENCE, BadRecord, read_holding, read_node, read_register
from overlayd.model.objects import Network
from overlayd.model.rows import Membership
from overlayd.proto.store_answers import Entry, Unavailable

log = logging.getLogger(__name__)

BETWEEN_TRIES = 0.2  # seconds at most, with full jitter


class Joining:
    """machine: which this is, of those that may have a copy of our data directory."""

    def __init__(
        self, node: Node, etcd: Etcd, settings: Settings, configuration: Configuration, own: OwnRecord, *, machine: str
    ) -> None:
        self._node = node
        self._etcd = etcd
        self._settings = settings
        self._configuration = configuration
        self._own = own
        self._machine = machine

    @property
    def membership(self) -> Membership:
        return self._node.state.table(Membership)[""]

    async def confirm(self) -> None:
        """Be in the store what the journal says, or become a member.  Refused, Waiting, Conflict; StoreError when the
        store does not answer; RequestError when there is no block left.
        """
        async with self._own.turn:
            await self._configuration.agree()
            register = await self._look()
            if not await self._take_up(register) and not self.membership.blocks:
                await self._claim_first(register)
            else:
                await self._keep(register)

    async def extend(self, is_full: Callable[[], bool]) -> Network | None:
        """Claim one more block; None when we are not full any more by the time that it is our turn: another has found a
        block of ours in the register.  RequestError: there is none, or we have as many as a node may have.
        """
        async with self._own.turn:
            if not is_full():
                return None
            held = self.membership.blocks
            if len(held) >= 16:
                raise RequestError(f"this node has {len(held)} blocks, as many as a node may have")
            register = await self._look()
            if ours := await self._take_up(register):
                await self._keep(register)
                return ours[0]
            return await self._claim_one(register, held)

    # --- the steps ----------------------------------------------------------------------------------------------------

    async def _require_name(self, record: Entry | None) -> None:
        """Refused when somebody else has our name, or our data directory."""
        name, known = self._settings.node, self.membership
        instance = _instance_of(name, record) if record is not None else known.instance
        if instance not in ("", known.instance):  # a record that cannot be read is nobody's
            seen = await last_seen(self._etcd, name)
            raise Refused(
                f"node {name} is registered by another installation ({seen}): choose --node, or "
                f"`overlayctl cluster remove-node {name}`"
            )
        entry = await read_one(self._etcd, PRESENCE + name)
        if entry is None or record is None:
            return
        there = read_presence(entry.value)
        if there.machine and there.machine != self._machine and await lives(self._etcd, there):
            seen = await last_seen(self._etcd, name)
            raise Copied(
                f"node {name} runs on another machine with a copy of this data directory ({seen}): "
                "end one of the two, and never copy a data directory to a host that runs beside the first"
            )

    async def _look(self) -> dict[Network, blocks.Holding]:
        """Our record as it is now, and the register.  Refused: the name is another's."""
        await self._own.read()
        await self._require_name(self._own.entry)
        return await self.register()

    async def _take_up(self, register: Register) -> list[Network]:
        """Hold what the register has for us beside what we hold, and return it: of a claim whose answer was lost, or
        that a journal was put back from before.
        """
        known = self.membership
        ours = [each for each in blocks.held_by(register, known.instance) if each not in known.blocks]
        if ours:
            log.info("cluster %s: %s is ours from before", known.cluster, ", ".join(map(str, ours)))
            await self._hold([*known.blocks, *ours])
        return ours

    async def _claim_first(self, register: Register) -> None:
        """Claim a block, the one that our overlay lives in from before if nobody has it, and with it its others."""
        known = self.membership
        former = membership.lived_in(self._node.state)
        if former and blocks.standing(register, former[0], known.instance) != "others":
            log.info("cluster %s: this node lives in %s, and asks for that", known.cluster, ", ".join(map(str, former)))
        else:
            former = []
        await self._claim_one(register, (), former)
        for block in former[1:]:
            if blocks.standing(register, block, known.instance) != "others":
                await self._claim_one(register, self.membership.blocks, [block])

    async def _claim_one(self, register: Register, held: tuple[Network, ...], first: Sequence[Network] = ()) -> Network:
        """Claim a block beside those that we hold, journal it, and put our record with it.  first: blocks to try before
        all others.
        """
        known, name = self.membership, self._settings.node
        assert known.cidr is not None
        register = dict(register)
        for attempt in range(MOST_TRIES):
            nobodys = (each for each in first if blocks.standing(register, each, known.instance) != "others")
            block = next(nobodys, None) or blocks.choose(name, known.cidr, known.block_prefix, register)
            freed = register.get(block)
            key = BLOCK + block_key(block)
            claim = [(key, freed.modified if freed is not None else 0)]
            outcome = await self._own.transact(self._own.with_blocks((*held, block)), claim)
            if outcome.done:
                fault.point("cluster:claimed")
                await self._hold([*held, block])
                fault.point("cluster:journaled")
                log.info("cluster %s: claimed %s at try %d", known.cluster, block, attempt + 1)
                return block
            found = {entry.key: entry for entry in outcome.found}
            if (other := found.get(key)) is not None:
                register[block] = read_holding(other.value, other.modified)
                if register[block].instance == known.instance:  # an answer of ours was lost
                    await self._hold([*held, block])
                    return block
            elif freed is not None:
                del register[block]
            await self._require_name(self._own.entry)
            await asyncio.sleep(random.uniform(0, BETWEEN_TRIES))
        raise Unavailable(f"no block could be claimed in {MOST_TRIES} tries: many nodes join at once")

    async def _keep(self, register: Register) -> None:
        """The journal's blocks are ours in the store as well, and our record is there."""
        known, name = self.membership, self._settings.node
        missing = []
        for block in known.blocks:
            whose = blocks.standing(register, block, known.instance)
            if whose == "others":
                other = register[block]
                raise Conflict(
                    f"block {block} is held by node {other.node} in the store, and by this node ({name}) in its "
                    "journal: detach what holds addresses here, then overlayctl cluster rejoin"
                )
            if whose != "ours":
                missing.append(block)
        claims = [(BLOCK + block_key(block), register[block].modified if block in register else 0) for block in missing]
        content = self._own.with_blocks(known.blocks)
        if self._own.entry is not None and not missing and self._own.is_told(content):
            self._own.told = self._own.entry.value
            return
        if self._own.entry is None:
            log.warning("cluster %s: the store had no record of this node, which is put again", known.cluster)
        elif self._own.stored is None:
            log.warning("cluster %s: the store's record of this node made no sense, and is put again", known.cluster)
        await self._own.put(content, claims)
        if missing:
            again = ", ".join(map(str, missing))
            log.warning("cluster %s: %s is claimed again, the store had it no longer", known.cluster, again)

    async def _hold(self, held: list[Network]) -> None:
        await self._node.change(lambda draft: joining.hold(draft, held), exclusive=[NODE_LOCK, MEMBERSHIP])

    async def are_held(self) -> bool:
        """Whether our blocks are ours in the register, as whichever member is asked knows it."""
        known = self.membership
        for block in known.blocks:
            entries = (await self._etcd.read(BLOCK + block_key(block), any_member=True)).entries
            if blocks.standing(_read(entries), block, known.instance) != "ours":
                return False
        return True

    async def register(self) -> dict[Network, blocks.Holding]:
        """The register of blocks as it is now."""
        return _read((await self._etcd.read(BLOCK, prefix=True)).entries)


def _read(entries: Iterable[Entry]) -> dict[Network, blocks.Holding]:
    return read_register((each.key.removeprefix(BLOCK), each.value, each.modified) for each in entries)


def _instance_of(name: str, record: Entry) -> str:
    """Whose a record is; empty when it cannot be read."""
    try:
        return read_node(name, record.value, record.created).instance
    except BadRecord:
        return ""
