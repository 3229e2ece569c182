"""Becoming a member of the cluster, and staying the one that the journal says we are.

Owns: the cluster's configuration, our name, our blocks, and our record, each claimed by a transaction.  Must not know:
connections, other nodes' records, when it is time to look again (`cluster`).

What is claimed is journalled before it is used.  When we die in between, the next start finds its own instance in the
register of blocks, and keeps that block.
"""

import asyncio
import logging
import random
from collections.abc import Callable

import msgspec
from msgspec.structs import replace

from overlayd import fault, keys
from overlayd.daemon.change.node import Node
from overlayd.daemon.change.resources import NODE as NODE_LOCK
from overlayd.daemon.cluster.etcd import Etcd
from overlayd.daemon.cluster.settings import Settings
from overlayd.errors import OverlaydError, RequestError
from overlayd.model import blocks, joining
from overlayd.model.blocks import MOST_TRIES, Register, block_key
from overlayd.model.cluster_records import (
    BLOCK,
    CONFIG,
    FORMAT,
    NODE,
    PRESENCE,
    BadRecord,
    Config,
    read_config,
    read_holding,
    read_node,
    read_register,
    write_holding,
    write_node,
)
from overlayd.model.objects import Network
from overlayd.model.rows import Member, Membership
from overlayd.proto.store_answers import Entry, LeaseGone, Unavailable

log = logging.getLogger(__name__)

PRESENCE_TTL = 60  # seconds, from the specification
BETWEEN_TRIES = 0.2  # seconds at most, with full jitter

Content = Callable[[tuple[Network, ...]], Member]  # our record as it should be, with these blocks


class Refused(OverlaydError):
    """This node cannot be in the cluster as it was started; the daemon ends."""


class Copied(Refused):
    """The same data directory is at work on another machine: this one must not use the keys and addresses in it."""


class Waiting(OverlaydError):
    """There is no cluster yet."""


class Conflict(OverlaydError):
    """What the journal says is ours, the store says is another's."""


class Presence(msgspec.Struct, kw_only=True):
    """That a node lives: `p/<name>`.  since: Unix seconds; lease: its own, in decimal; machine, boot: where it runs."""

    since: int = 0
    address: str = ""
    version: str = ""
    machine: str = ""
    boot: str = ""
    lease: str = ""


_PRESENCE = msgspec.json.Decoder(Presence)


def read_presence(value: bytes) -> Presence:
    """What cannot be read says nothing."""
    try:
        return _PRESENCE.decode(value)
    except msgspec.MsgspecError:
        return Presence()


class Joining:
    """record: our record as it was last seen in the store, None when it is not there.  content: what is to be in it."""

    def __init__(self, node: Node, etcd: Etcd, settings: Settings, content: Content, machine: str) -> None:
        self.record: Entry | None = None
        self.put_again = False  # though it is there
        self._node = node
        self._etcd = etcd
        self._settings = settings
        self._content = content
        self._machine = machine
        self.turn = asyncio.Lock()  # who changes our blocks or our record in the store builds on what both are

    @property
    def membership(self) -> Membership:
        return self._node.state.table(Membership)[""]

    async def confirm(self) -> None:
        """Be in the store what the journal says, or become a member.  Refused, Waiting, Conflict; StoreError when the
        store does not answer; RequestError when there is no block left.
        """
        async with self.turn:
            await self._agree_on_config()
            register = await self._look()
            if not await self._take_up(register) and not self.membership.blocks:
                await self._claim_one(register, ())
            else:
                await self._keep(register)

    async def extend(self, is_full: Callable[[], bool]) -> Network | None:
        """Claim one more block; None when we are not full any more by the time that it is our turn: another has found a
        block of ours in the register.  RequestError: there is none, or we have as many as a node may have.
        """
        async with self.turn:
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

    async def publish(self, *, turned: bool = False) -> None:
        """Put our record as it is to be, unless it is there.  turned: with our next key in the place of ours.

        Conflict: it is another's by now.
        """
        async with self.turn:
            value = self._record_with(self.membership.blocks, turned=turned)
            if self.record is None or self.record.value != value:
                await self._put_record(value, [])

    async def read_record(self) -> None:
        """Look at our record in the store: what was put may have been put, though no answer came."""
        self.record = await self._one(NODE + self._settings.node)

    @property
    def is_turned(self) -> bool:
        """Whether our record has the next key already, which the device is to get."""
        soon = self._node.state.node.next_key
        return bool(soon) and self.record is not None and _key_of(self.record) == keys.public(soon)

    async def set_config(self, change: Callable[[bytes], bytes]) -> None:
        """Rewrite the cluster's configuration.  change: the value as it is to what it is to be."""
        while True:
            entry = await self._one(CONFIG)
            if entry is None:
                raise Waiting("there is no cluster: make one (overlayctl cluster init)")
            value = change(entry.value)
            if (await self._etcd.transact([(CONFIG, entry.modified)], [(CONFIG, value, 0)])).done:
                return

    async def make(self, config: Config) -> bool:
        """Make the cluster; False when there is one."""
        outcome = await self._etcd.transact([(CONFIG, 0)], [(CONFIG, msgspec.json.encode(config), 0)])
        return outcome.done

    # --- the steps ----------------------------------------------------------------------------------------------------

    async def _agree_on_config(self) -> None:
        known, settings = self.membership, self._settings
        entry = await self._one(CONFIG)
        if entry is None:
            config = _config_of(known) or _config_asked_for(settings)
            if config is None:
                raise Waiting("waiting for cluster init (overlayctl cluster init, or --cluster-cidr)")
            if await self.make(config):
                log.info("cluster %s: made, with %s in /%d", known.cluster, config.cluster_cidr, config.block_prefix)
            entry = await self._one(CONFIG)
            if entry is None:
                raise Unavailable("the cluster's configuration was removed just now")
        try:
            config = read_config(entry.value)
        except BadRecord as error:
            raise Conflict(f"{error}: repair or remove that key") from error
        if known.cluster_id not in ("", config.id):
            raise Conflict(
                f"cluster {known.cluster} was made anew ({config.id}, and this node is of {known.cluster_id}): accept "
                "that (overlayctl cluster accept), or put the store's backup back"
            )
        asked = settings.cidr
        if (
            not known.blocks
            and asked is not None
            and (asked, settings.block_prefix)
            != (
                config.cidr,
                config.block_prefix,
            )
        ):
            raise Refused(
                f"cluster {known.cluster} has {config.cluster_cidr} in blocks of /{config.block_prefix}, not "
                f"{asked} in /{settings.block_prefix}: start without --cluster-cidr, or with the same"
            )
        await self._node.change(lambda draft: joining.learn(draft, config), exclusive=[NODE_LOCK])

    async def _require_name(self, record: Entry | None) -> None:
        """Refused when somebody else has our name, or our data directory."""
        name, known = self._settings.node, self.membership
        instance = _instance_of(name, record) if record is not None else known.instance
        if instance not in ("", known.instance):  # a record that cannot be read is nobody's
            raise Refused(
                f"node {name} is registered by another installation ({await self._seen(name)}): choose --node, or "
                f"`overlayctl cluster remove-node {name}`"
            )
        entry = await self._one(PRESENCE + name)
        if entry is None or record is None:
            return
        there = read_presence(entry.value)
        if there.machine and there.machine != self._machine and await self._lives(there):
            raise Copied(
                f"node {name} runs on another machine with a copy of this data directory ({await self._seen(name)}): "
                "end one of the two, and never copy a data directory to a host that runs beside the first"
            )

    async def _lives(self, there: Presence) -> bool:
        try:
            await self._etcd.time_to_live(int(there.lease))
        except (LeaseGone, ValueError):
            return False
        return True

    async def _seen(self, name: str) -> str:
        """When and where a node was seen last, for a person."""
        entry = await self._one(PRESENCE + name)
        if entry is None:
            return "not seen now"
        there = read_presence(entry.value)
        try:
            left = (await self._etcd.time_to_live(int(there.lease))).ttl
        except (LeaseGone, ValueError):
            return f"last at {there.address or 'an unknown address'}"
        return f"seen {max(PRESENCE_TTL - left, 0)} s ago at {there.address or 'an unknown address'}"

    async def _look(self) -> dict[Network, blocks.Holding]:
        """Our record as it is now, and the register.  Refused: the name is another's."""
        self.record = await self._one(NODE + self._settings.node)
        await self._require_name(self.record)
        return await self._register()

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

    async def _claim_one(self, register: Register, held: tuple[Network, ...]) -> Network:
        """Claim a block beside those that we hold, journal it, and put our record with it."""
        known, name = self.membership, self._settings.node
        assert known.cidr is not None
        register = dict(register)
        for attempt in range(MOST_TRIES):
            block = blocks.choose(name, known.cidr, known.block_prefix, register)
            freed = register.get(block)
            value = self._record_with((*held, block))
            record = self.record.modified if self.record is not None else 0
            key = BLOCK + block_key(block)
            outcome = await self._etcd.transact(
                [(key, freed.modified if freed is not None else 0), (NODE + name, record)],
                [(key, write_holding(name, known.instance), 0), (NODE + name, value, 0)],
            )
            if outcome.done:
                fault.point("cluster:claimed")
                self.record = Entry(NODE + name, value, 0, outcome.revision)
                await self._hold([*held, block])
                fault.point("cluster:journaled")
                log.info("cluster %s: claimed %s at try %d", known.cluster, block, attempt + 1)
                return block
            found = {entry.key: entry for entry in outcome.found}
            if (other := found.get(key)) is not None:
                register[block] = read_holding(other.value, other.modified)
                if register[block].instance == known.instance:  # an answer of ours was lost
                    await self._hold([*held, block])
                    self.record = found.get(NODE + name)
                    return block
            elif freed is not None:
                del register[block]
            self.record = found.get(NODE + name)
            await self._require_name(self.record)
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
        value = self._record_with(known.blocks)
        same = [(BLOCK + block_key(block), register[block].modified if block in register else 0) for block in missing]
        if not missing and self.record is not None and self.record.value == value and not self.put_again:
            return
        self.put_again = False
        await self._put_record(value, same)
        if missing:
            log.warning(
                "cluster %s: %s is claimed again, the store had forgotten it",
                known.cluster,
                ", ".join(map(str, missing)),
            )

    async def _put_record(self, value: bytes, claims: list[tuple[str, int]]) -> None:
        """Our record, and with it blocks: keys of the register with the revision at which each was put last."""
        known, name = self.membership, self._settings.node
        held = write_holding(name, known.instance)
        record = self.record.modified if self.record is not None else 0
        outcome = await self._etcd.transact(
            [*claims, (NODE + name, record)], [*((key, held, 0) for key, _ in claims), (NODE + name, value, 0)]
        )
        if outcome.done:
            self.record = Entry(NODE + name, value, 0, outcome.revision)
            return
        found = {entry.key: entry for entry in outcome.found}
        self.record = found.get(NODE + name)
        if self.record is not None and _instance_of(name, self.record) != known.instance:
            raise Conflict(f"node {name} was registered by another installation ({await self._seen(name)})")
        raise Unavailable("our record or block was written meanwhile")

    def _record_with(self, held: tuple[Network, ...], *, turned: bool = False) -> bytes:
        """Our record, with these blocks.  turned: with the next key as ours; one that is turned does not turn back."""
        content = self._content(held)
        if turned or self.is_turned:
            content = replace(content, public_key=content.next_key, next_key=b"")
        return write_node(content, self.record.value if self.record is not None else b"")

    async def _hold(self, held: list[Network]) -> None:
        await self._node.change(lambda draft: joining.hold(draft, held), exclusive=[NODE_LOCK])

    async def _register(self) -> dict[Network, blocks.Holding]:
        page = await self._etcd.read(BLOCK, prefix=True)
        return read_register((each.key.removeprefix(BLOCK), each.value, each.modified) for each in page.entries)

    async def _one(self, key: str) -> Entry | None:
        entries = (await self._etcd.read(key)).entries
        return entries[0] if entries else None


def _instance_of(name: str, record: Entry) -> str:
    """Whose a record is; empty when it cannot be read."""
    try:
        return read_node(name, record.value, record.created).instance
    except BadRecord:
        return ""


def _key_of(record: Entry) -> bytes:
    """The key in our record; empty when it cannot be read."""
    try:
        return read_node(record.key.removeprefix(NODE), record.value, record.created).public_key
    except BadRecord:
        return b""


def _config_of(known: Membership) -> Config | None:
    """The configuration as this node remembers it, of a store that has lost it."""
    if not known.cluster_id or known.cidr is None:
        return None
    return Config(
        format=FORMAT,
        id=known.cluster_id,
        cluster_cidr=str(known.cidr),
        block_prefix=known.block_prefix,
        service_share=known.service_share,
        zone=known.zone,
        node_ttl_secs=known.node_ttl,
        rate=known.rate,
    )


def _config_asked_for(settings: Settings) -> Config | None:
    if settings.cidr is None:
        return None
    return new_config(settings.cidr, settings.block_prefix)


def new_config(cidr: Network, block_prefix: int, **settings: int | float | str) -> Config:
    """Of a cluster that is made now."""
    made = {
        "format": FORMAT,
        "id": f"{random.SystemRandom().getrandbits(128):032x}",
        "cluster_cidr": str(cidr),
        "block_prefix": block_prefix,
        **settings,
    }
    return msgspec.convert(made, Config)
