"""Becoming a member of the cluster, and staying the one that the journal says we are.

Owns: the cluster's configuration, our name, our blocks, and our record, each claimed by a transaction.  Must not know:
connections, other nodes' records, when it is time to look again (`cluster`).

What is claimed is journalled before it is used.  When we die in between, the next start finds its own instance in the
register of blocks, and keeps that block.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence

import msgspec
from msgspec.structs import replace

from overlayd import fault, keys
from overlayd.daemon.change.node import Node
from overlayd.daemon.change.resources import MEMBERSHIP
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
    NAMES,
    NODE,
    PRESENCE,
    BadRecord,
    Config,
    read_config,
    read_holding,
    read_node,
    read_register,
    rewritten,
    write_holding,
    write_node,
)
from overlayd.model.objects import Network
from overlayd.model.rows import Member, Membership
from overlayd.proto.etcd import Outcome
from overlayd.proto.store_answers import Denied, Entry, LeaseGone, Unavailable

log = logging.getLogger(__name__)

PRESENCE_TTL = 60  # seconds, from the specification
BETWEEN_TRIES = 0.2  # seconds at most, with full jitter

Content = Callable[[tuple[Network, ...]], Member]  # our record as it should be, with these blocks
Names = Callable[[], dict[str, bytes]]


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
    """content, names: what is to be in our record, and in the entries of our names.

    record, names: these as they were last seen in the store, None when it has no record, or when it is not known what
    names it has; putting: our record as it was put last, though no answer came yet.  unmarked: the mark of a store that
    went back, for which it is to get another.
    """

    def __init__(
        self, node: Node, etcd: Etcd, settings: Settings, content: Content, own_names: Names, *, machine: str
    ) -> None:
        self.record: Entry | None = None
        self.names: dict[str, bytes] | None = None
        self.putting = b""
        self.unmarked: str | None = None
        self._own_names = own_names
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
            await self._see()
            content = self._record_with(self.membership.blocks, turned=turned)
            if not self._is_told(content):
                await self._put(content)

    async def publish_names(self) -> int:
        """Put our names as they are to be, unless they are there; returns the revision at which, or 0."""
        async with self.turn:
            await self._see()
            there = self._stored
            if there is None or there.instance != self.membership.instance:
                raise Unavailable("our record is not there")
            return 0 if self.names == self._own_names() else await self._put(there)

    async def read_record(self) -> None:
        """Look at our record in the store."""
        self.record = await self._one(NODE + self._settings.node)

    @property
    def is_turned(self) -> bool:
        """Whether our record has the next key already, which the device is to get."""
        soon, there = self._node.state.node.next_key, self._stored
        return bool(soon) and there is not None and there.public_key == keys.public(soon)

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
        if self.unmarked is not None:
            await self._mark(entry, config)
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
        if joining.learned(known, config) != known:
            await self._node.change(lambda draft: joining.learn(draft, config), exclusive=[NODE_LOCK, MEMBERSHIP])

    async def _mark(self, entry: Entry, config: Config) -> None:
        """Tell whoever follows the store later that it went back, unless another node has."""
        if config.history == self.unmarked:
            value = rewritten(entry.value, {"history": _random_mark()}, ["history"])
            try:
                if not (await self._etcd.transact([(CONFIG, entry.modified)], [(CONFIG, value, 0)])).done:
                    raise Unavailable("the cluster's configuration was written meanwhile")
            except Denied as error:  # another node may
                log.warning(
                    "cluster %s: that the store went back is not noted in it: %s", self._settings.cluster, error
                )
        self.unmarked = None

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
            key = BLOCK + block_key(block)
            claim = [(key, freed.modified if freed is not None else 0)]
            outcome = await self._transact(self._record_with((*held, block)), claim)
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
        claims = [(BLOCK + block_key(block), register[block].modified if block in register else 0) for block in missing]
        content = self._record_with(known.blocks)
        if not missing and self._is_told(content):
            return
        await self._put(content, claims)
        if missing:
            log.warning(
                "cluster %s: %s is claimed again, the store had forgotten it",
                known.cluster,
                ", ".join(map(str, missing)),
            )

    async def _put(self, content: Member, claims: Sequence[tuple[str, int]] = ()) -> int:
        """Put our record, and with it claims; returns the revision.  Conflict, or Unavailable: it is another by now."""
        name = self._settings.node
        outcome = await self._transact(content, claims)
        if outcome.done:
            return outcome.revision
        if self._stored is not None and self._stored.instance != self.membership.instance:
            raise Conflict(f"node {name} was registered by another installation ({await self._seen(name)})")
        raise Unavailable("our record or block was written meanwhile")

    async def _transact(self, content: Member, claims: Sequence[tuple[str, int]]) -> Outcome:
        """Put our record with the next number, and with it what differs of our names, so that these are as new as it;
        all of them if the store's record is not the one that we put last.  claims: keys of the register, with the
        revision at which each was put last.
        """
        known, name, there = self.membership, self._settings.node, self._stored
        seq = there.seq if there is not None else 0
        names, wanted = self.names if self.names is not None else await self._stored_names(), self._own_names()
        same = there is not None and seq == known.seq
        changed = [(key, value, 0) for key, value in wanted.items() if not same or names.get(key) != value]
        gone = [(key, False) for key in names if key not in wanted]
        number = await self._node.change(
            lambda draft: joining.raise_seq(draft, seq, int(time.time())), exclusive=[MEMBERSHIP]
        )
        before = self.record.value if self.record is not None else b""
        self.putting = write_node(replace(content, seq=number), before)
        self.names = None
        holding = write_holding(name, known.instance)
        outcome = await self._etcd.transact(
            [*claims, (NODE + name, self.record.modified if self.record is not None else 0)],
            [*((key, holding, 0) for key, _ in claims), (NODE + name, self.putting, 0), *changed],
            gone,
        )
        if outcome.done:
            self.record, self.names = Entry(NODE + name, self.putting, 0, outcome.revision), wanted
        else:
            self.record, self.names = next((each for each in outcome.found if each.key == NODE + name), None), names
        return outcome

    async def _see(self) -> None:
        """Look at our record and names in the store, unless these are known: what was put may have been put, though no
        answer came.
        """
        if self.names is None:
            await self.read_record()
            self.names = await self._stored_names()

    async def _stored_names(self) -> dict[str, bytes]:
        """The entries that the store has of our names."""
        base = NAMES + self._settings.node
        found = [*(await self._etcd.read(base)).entries, *(await self._etcd.read(base + "/", prefix=True)).entries]
        return {entry.key: entry.value for entry in found}

    @property
    def _stored(self) -> Member | None:
        """Our record in the store; None when there is none that can be read."""
        try:
            return read_node(self._settings.node, self.record.value, 0) if self.record is not None else None
        except BadRecord:
            return None

    def _is_told(self, content: Member) -> bool:
        """Whether the store has this of us, with the number of what we put last."""
        if self.record is None:
            return False
        return self.record.value == write_node(replace(content, seq=self.membership.seq), self.record.value)

    def _record_with(self, held: tuple[Network, ...], *, turned: bool = False) -> Member:
        """Our record, with these blocks.  turned: with the next key as ours; one that is turned does not turn back."""
        content = self._content(held)
        if turned or self.is_turned:
            content = replace(content, public_key=content.next_key, next_key=b"")
        return content

    async def _hold(self, held: list[Network]) -> None:
        await self._node.change(lambda draft: joining.hold(draft, held), exclusive=[NODE_LOCK, MEMBERSHIP])

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


def _random_mark() -> str:
    return f"{random.SystemRandom().getrandbits(128):032x}"


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
        history=_random_mark(),
    )


def _config_asked_for(settings: Settings) -> Config | None:
    if settings.cidr is None:
        return None
    return new_config(settings.cidr, settings.block_prefix)


def new_config(cidr: Network, block_prefix: int, **settings: int | float | str) -> Config:
    """Of a cluster that is made now."""
    made = {
        "format": FORMAT,
        "id": _random_mark(),
        "history": _random_mark(),
        "cluster_cidr": str(cidr),
        "block_prefix": block_prefix,
        **settings,
    }
    return msgspec.convert(made, Config)
