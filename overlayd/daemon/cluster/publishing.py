"""What this node tells the cluster: its record, its names, and that it lives.

Owns: the content of these, the lease of the presence, and the tasks that keep them up.  Must not know: who reads them;
when something may be told is `model.publication`'s.
"""

import asyncio
import itertools
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

import msgspec

from overlayd import __version__, fault, keys
from overlayd.daemon.change.node import Node
from overlayd.daemon.cluster.etcd import Etcd
from overlayd.daemon.cluster.faults import Conflict
from overlayd.daemon.cluster.own_record import OwnRecord
from overlayd.daemon.cluster.presence import PRESENCE_TTL, Presence, read_presence
from overlayd.daemon.cluster.settings import Settings
from overlayd.daemon.nat.session import Nat
from overlayd.errors import MechanismError, OverlaydError
from overlayd.linux import egress
from overlayd.model.blocks import node_number
from overlayd.model.candidates import HOST
from overlayd.model.cluster_records import MOST_CANDIDATES, MOST_NAMES, PRESENCE, PULSE, write_names
from overlayd.model.layout import endpoint_text
from overlayd.model.objects import Address, Network
from overlayd.model.publication import NamesWindow, RecordPace
from overlayd.model.rows import Change, Member, Membership, Record
from overlayd.proto.store_answers import LeaseGone, Unavailable

log = logging.getLogger(__name__)

PORT = 51820  # of a device that nobody gave another one

# From the specification, seconds.
KEEP, KEEP_SPREAD = 20.0, 3.0

# Our own constants, seconds.
LOOK = 1.0  # at what is to be told
LOOK_AT_EGRESS = 30.0
RETRY, RETRY_SPREAD = 2.0, 8.0
LOOKED_UP = 15  # every so many times that the presence is kept up, which is five minutes


class Place(NamedTuple):
    """Where this daemon runs: the machine, and its boot."""

    machine: str
    boot: str


class Publishing:
    """measured_rate: changes a second that all nodes make lately.  conflicting: is told that our record is another's;
    written: of a change of what all nodes follow, with its revision.
    behind_nat: whether peers reach us only by what STUN servers see, or a relay.
    """

    def __init__(
        self,
        node: Node,
        etcd: Etcd,
        settings: Settings,
        nat: Nat,
        *,
        place: "Place",
        measured_rate: Callable[[], float],
        conflicting: Callable[[str], None],
        written: Callable[[int], None],
    ) -> None:
        self.window = NamesWindow()
        self.failure = ""  # of the last try to tell anything
        self._node = node
        self._etcd = etcd
        self._settings = settings
        self._nat = nat
        self._place = place
        self._measured_rate = measured_rate
        self._conflicting = conflicting
        self._written = written
        self._pace = RecordPace()
        self._way_out: Address | None = None
        self._lease = 0
        self._woken = asyncio.Event()
        self._appearing = asyncio.Event()

    # --- what there is to tell ----------------------------------------------------------------------------------------

    def content(self, held: tuple[Network, ...]) -> Member:
        """Our record, with these blocks."""
        state, known = self._node.state, self._node.state.table(Membership)[""]
        candidates = self._candidates()
        return Member(
            name=known.node,
            instance=known.instance,
            node_id=node_number(known.node),
            public_key=keys.public(state.node.private_key),
            next_key=keys.public(state.node.next_key) if state.node.next_key else b"",
            endpoint=self._endpoint(candidates),
            candidates=candidates,
            nat=bool(candidates),
            blocks=held,
            version=__version__,
            created=0,
        )

    def names(self) -> dict[str, bytes]:
        """The entries of our names."""
        state = self._node.state
        ours = {name: row.addresses for name, row in sorted(state.table(Record).items())}
        if len(ours) > MOST_NAMES:
            log.warning("cluster: of %d names %d are told, as many as a node may serve", len(ours), MOST_NAMES)
            ours = dict(list(ours.items())[:MOST_NAMES])
        return write_names(state.table(Membership)[""].node, ours)

    @property
    def behind_nat(self) -> bool:
        return bool(self._candidates())

    def _candidates(self) -> tuple[tuple[str, str, int], ...]:
        """Only of a node that its own addresses do not reach; the best first, as many as a record may have."""
        found = self._nat.candidates() if not self._settings.advertise else []
        if all(each.kind == HOST for each in found):
            return ()
        best = sorted(found, key=lambda each: -each.priority)[:MOST_CANDIDATES]
        return tuple((each.kind, endpoint_text((each.address, each.port)), each.priority) for each in best)

    def _endpoint(self, candidates: tuple[tuple[str, str, int], ...]) -> str:
        if self._settings.advertise:
            return self._settings.advertise
        seen = next((address for kind, address, _ in candidates if kind != HOST), "")
        if seen or self._way_out is None:
            return seen
        overlay = self._node.state.overlay
        return endpoint_text((self._way_out, overlay.wg_port if overlay is not None else PORT))

    async def look(self) -> None:
        """Find out by which address this host is reached."""
        try:
            way_out = await self._node.run(egress.physical_egress)
        except MechanismError as error:
            log.warning("cluster: it is not known by which address this node is reached: %s", error)
            return
        self._way_out = way_out.address if way_out is not None else None

    # --- keeping it up ------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Hear of our names until the block ends."""
        with self._node.subscribe(self._follow):
            yield

    def _follow(self, change: Change) -> None:
        if any(table == Record.table for table, _ in change):
            self.window.changed(asyncio.get_running_loop().time())
            self._woken.set()

    def tell_again(self) -> None:
        """The store may have forgotten our names and our presence."""
        self._appearing.set()
        self.window.changed(asyncio.get_running_loop().time())
        self._woken.set()

    async def keep_record(self, own: OwnRecord) -> None:
        """Tell what changes of our record, until it is cancelled."""
        loop = asyncio.get_running_loop()
        looked = loop.time()
        while True:
            await asyncio.sleep(LOOK)
            if loop.time() >= looked + LOOK_AT_EGRESS:
                await self.look()
                looked = loop.time()
            known = self._node.state.get(Membership)
            if known is None or own.entry is None:
                continue
            content = self.content(known.blocks)
            if not self._pace.due(content, loop.time(), urgent=self._nat.is_cut_off):
                continue
            try:
                await own.publish()
            except Conflict as error:
                self._conflicting(str(error))
            except OverlaydError as error:
                self._failed("our record is not told", error)
                await asyncio.sleep(RETRY + RETRY_SPREAD * random.random())
            else:
                self.failure = ""
                self._pace.told(content, loop.time())

    async def keep_names(self, own: OwnRecord) -> None:
        """Tell what changes of our names, until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self._woken.clear()
            opens = self.window.opens
            try:
                async with asyncio.timeout_at(opens):
                    await self._woken.wait()
                    continue
            except TimeoutError:
                pass
            try:
                if revision := await own.publish_names():
                    self._written(revision)
                    fault.point("cluster:published")
            except OverlaydError as error:
                self._failed("our names are not told", error)
                self.window.failed(loop.time())
                await asyncio.sleep(RETRY_SPREAD * random.random())
            else:
                self.failure = ""
                known = self._node.state.get(Membership)
                self.window.told(self._measured_rate(), known.rate if known is not None else 10.0)

    async def keep_presence(self) -> None:
        """Say that we live, until it is cancelled; now and then that is looked up, for somebody may have removed it."""
        for number in itertools.count():
            try:
                if self._lease:
                    await self._etcd.keep_alive(self._lease)
                    if number % LOOKED_UP == LOOKED_UP - 1 and not await self._is_there():
                        log.warning(
                            "cluster: somebody has removed or changed our presence in the store: it is put again"
                        )
                        await self._appear()
                else:
                    await self._appear()
            except LeaseGone:
                self._lease = 0
                continue
            except OverlaydError as error:
                self._failed("our presence is not told", error)
            self._appearing.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(KEEP + random.uniform(-KEEP_SPREAD, KEEP_SPREAD)):
                    await self._appearing.wait()

    async def _is_there(self) -> bool:
        name = self._node.state.table(Membership)[""].node
        entries = (await self._etcd.read(PRESENCE + name, any_member=True)).entries
        return any(read_presence(each.value).lease == str(self._lease) for each in entries)

    @property
    def lease(self) -> int:
        """The lease of our presence; 0 when there is none."""
        return self._lease

    async def _appear(self) -> None:
        lease = (await self._etcd.grant(PRESENCE_TTL)).id
        name = self._node.state.table(Membership)[""].node
        address = str(self._way_out) if self._way_out is not None else ""
        there = Presence(
            since=int(time.time()),
            address=address,
            version=__version__,
            machine=self._place.machine,
            boot=self._place.boot,
            lease=str(lease),
        )
        await self._etcd.transact((), [(PRESENCE + name, msgspec.json.encode(there), lease)])
        self._lease = lease

    async def pulse(self, modified: int) -> None:
        """Put the pulse, another one each time, unless somebody else just did.  modified: when it was put last, as far
        as we know.
        """
        for last in (False, True):
            try:
                done = await self._etcd.transact([(PULSE, modified)], [(PULSE, b"%016x" % random.getrandbits(64), 0)])
            except Unavailable as error:  # the next try asks another member
                if last:
                    self._failed("the pulse is not told", error)
            except OverlaydError as error:
                self._failed("the pulse is not told", error)
                return
            else:
                self._written(done.revision if done.done else max((each.modified for each in done.found), default=0))
                return

    async def disappear(self) -> None:
        """We leave, and say so."""
        if self._lease:
            lease, self._lease = self._lease, 0
            await self._etcd.revoke(lease)

    def _failed(self, what: str, error: OverlaydError) -> None:
        if str(error) != self.failure:
            log.warning("cluster: %s: %s", what, error)
        self.failure = str(error)
