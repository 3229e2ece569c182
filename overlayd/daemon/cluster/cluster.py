"""This node's part in a cluster that is kept in a store: the owner of all the rest of this room.

Owns: the order of joining, following and telling, and what is tried again and when.  Must not know: HTTP, the form of
records, what requests of a person do (`requests`), what status and doctor say (`report`).

Nothing here is waited for by a request of an orchestrator, of CNI or Docker.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Literal

from overlayd import keys, wire
from overlayd.daemon.change.node import Node
from overlayd.daemon.change.resources import NODE as NODE_LOCK
from overlayd.daemon.cluster.configuration import Configuration
from overlayd.daemon.cluster.etcd import Etcd
from overlayd.daemon.cluster.faults import Conflict, Copied, Refused, Waiting
from overlayd.daemon.cluster.following import Following
from overlayd.daemon.cluster.following import News as Message
from overlayd.daemon.cluster.growth import Growth
from overlayd.daemon.cluster.janitor import Janitor, NoSuchNode, remove
from overlayd.daemon.cluster.joining import Joining
from overlayd.daemon.cluster.news import News
from overlayd.daemon.cluster.own_record import OwnRecord
from overlayd.daemon.cluster.publishing import PORT, Place, Publishing
from overlayd.daemon.cluster.rotation import Rotation
from overlayd.daemon.cluster.settings import Settings
from overlayd.daemon.nat.session import Nat
from overlayd.daemon.tasks import KeepUp
from overlayd.errors import OverlaydError, RequestError, StateError
from overlayd.model import blocks, joining, overlay
from overlayd.model.cluster_records import WATCHED, Config
from overlayd.model.rows import Membership, Overlay
from overlayd.model.state import Draft
from overlayd.proto.store import Quiet, Witness
from overlayd.proto.store_answers import Entry

log = logging.getLogger(__name__)

Run = Callable[[wire.Request], Awaitable[wire.Response | bytes]]

# Our own constants, seconds.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # before joining is tried again
WAIT_FOR_INIT = 5.0
LOOK_AT_BLOCKS = 300.0


class Cluster:
    """run: does a request as if a client had sent it; stop: ends the daemon."""

    def __init__(
        self, node: Node, nat: Nat, settings: Settings, *, etcd: Etcd, place: Place, stop: Callable[[], None]
    ) -> None:
        self.refusal = ""  # why the daemon ends
        self.conflict = ""
        self.error = ""  # of joining
        self.remedy = ""  # of that error, unless it is the store's
        self.joined = asyncio.Event()  # we have a block, and the overlay is set up with it
        self.settings = settings
        self.node = node
        self._stop = stop
        self._confirm = asyncio.Event()  # is wanted
        self._confirmed = asyncio.Event()  # at least once
        self.etcd = etcd
        self.publishing = Publishing(
            node,
            self.etcd,
            settings,
            nat,
            place=place,
            measured_rate=self._measured_rate,
            conflicting=self._conflicting,
            written=self._written,
        )
        self.configuration = Configuration(node, self.etcd, settings)
        self.own = OwnRecord(node, self.etcd, settings, self.publishing.content, self.publishing.names)
        self.joining = Joining(node, self.etcd, settings, self.configuration, self.own, machine=place.machine)
        self.growth = Growth(node, self.joining, lambda: bool(self.conflict), self._grown)
        self.rotation = Rotation(node, self.own)
        self.following: Following | None = None
        self.news: News | None = None
        self.janitor: Janitor | None = None
        self._machine = place.machine
        self._run: Run | None = None
        self._keep_up: KeepUp | None = None
        self._task: asyncio.Task[None] | None = None
        self._pulse: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def running(self, run: Run, keep_up: KeepUp) -> AsyncIterator[None]:
        """Join, follow and tell, until the block ends.  StateError: this data directory is of another cluster."""
        self._run, self._keep_up = run, keep_up
        instance = f"{random.SystemRandom().getrandbits(128):032x}"

        def begin(draft: Draft) -> None:
            joining.begin(draft, self.settings.cluster, self.settings.node, instance, self._machine)

        try:
            await self.node.change(begin, exclusive=[NODE_LOCK])
        except RequestError as error:
            raise StateError(str(error)) from error
        self._begin()
        try:
            with self.node.subscribe(self.growth.follow):
                yield
        finally:
            await self._end()
            self.etcd.close()

    @property
    def membership(self) -> Membership:
        return self.node.state.table(Membership)[""]

    @property
    def settled(self) -> bool:
        """Whether this node may count as ready: it has its block, from the journal or from the store."""
        return self.joined.is_set()

    # --- the course ---------------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        await self.publishing.look()
        if self.membership.blocks:
            await self._set_up()
        else:
            await self._until_confirmed()
        news = self.news = News(
            self.node,
            own_record=self._own_record,
            own_names=self._own_names,
            config=self._configured,
            list_anew=self._list_anew,
            went_back=self._went_back,
        )
        known = self.membership
        witness = Witness(*known.witness) if known.witness is not None else None
        following = self.following = Following(self.etcd, WATCHED, known.revision, witness, self._told)
        following.session.rate = known.rate
        self._confirm.set()
        async with self.publishing.following():
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(following.run())
                    group.create_task(news.run())
                    group.create_task(self._keep_confirmed())
                    group.create_task(self._watch_over())
                    group.create_task(self.growth.run())
                    # Before the store agrees that we are who we think we are, it hears nothing of us.
                    await self._confirmed.wait()
                    group.create_task(self.publishing.keep_record(self.own))
                    group.create_task(self.rotation.run())
                    group.create_task(self.publishing.keep_names(self.own))
                    group.create_task(self.publishing.keep_presence())
                    group.create_task(self._keep_blocks())
                    self.janitor = Janitor(self.node, self.etcd, news, self.publishing)
                    group.create_task(self.janitor.run())
            except BaseExceptionGroup as bugs:
                raise bugs.exceptions[0] from bugs

    async def _keep_confirmed(self) -> None:
        """Whenever the store may have another idea of us than the journal, see to it."""
        while True:
            await self._confirm.wait()
            self._confirm.clear()
            await self._until_confirmed()
            self.own.names = None
            self.publishing.tell_again()

    async def _keep_blocks(self) -> None:
        """Now and then look whether the register has our blocks still, which no stream tells, and see to it."""
        while True:
            await asyncio.sleep(LOOK_AT_BLOCKS * random.uniform(0.9, 1.1))
            with suppress(OverlaydError):  # the next time is soon enough
                if not await self.joining.are_held():
                    self._confirm.set()

    async def _until_confirmed(self) -> None:
        """Be a member, or end: by the store's answers, however long these take."""
        pause = FIRST_PAUSE
        while True:
            try:
                await self.joining.confirm()
            except Refused as error:
                if self._confirmed.is_set() and not isinstance(error, Copied):  # what is at work here goes on
                    await self._in_conflict(error)
                    continue
                if isinstance(error, Copied) and self._run is not None:
                    await self._run(wire.TeardownGlobalOverlay())
                self._refuse(str(error))
                await asyncio.Event().wait()  # the daemon ends
            except Waiting as error:
                self.remedy = "make it (overlayctl cluster init CIDR), or correct --cluster, --etcd-prefix or --etcd"
                self._tell(str(error))
                with suppress(TimeoutError):
                    async with asyncio.timeout(WAIT_FOR_INIT * random.uniform(0.5, 1)):
                        await self._confirm.wait()
                self._confirm.clear()
            except Conflict as error:
                await self._in_conflict(error)
            except OverlaydError as error:
                self._tell(str(error))
                self.growth.failure = str(error) if isinstance(error, blocks.Exhausted) else ""
                await asyncio.sleep(pause * random.random())
                pause = min(pause * 2, LONGEST_PAUSE)
            else:
                break
        self.conflict = self.error = self.remedy = ""
        if not self.growth.lacking:
            self.growth.failure = ""
        self._confirmed.set()
        await self._set_up()
        self.growth.look_again()
        if self.news is not None and self.news.foreign:  # until a person accepted what is ours now
            self.news.foreign = False
            self._list_anew()
        if self.news is not None:
            self.news.registry.claim_for_ourselves(self.membership.blocks)
            self.news.look()

    async def _in_conflict(self, error: OverlaydError) -> None:
        """Until something has changed."""
        self._conflicting(str(error))
        await self._confirm.wait()
        self._confirm.clear()

    async def _set_up(self) -> None:
        """Bring the overlay up with what our block gives, unless it is."""
        known = self.membership
        assert known.cidr is not None and self._run is not None
        carved = blocks.carve(known.blocks[0], known.service_share)
        if not self.node.state.node.node_id:
            number = blocks.node_number(known.node)
            await self.node.change(lambda draft: overlay.set_node_id(draft, number), exclusive=[NODE_LOCK])
        around, pause = self.node.state.get(Overlay), FIRST_PAUSE
        while around is None or not around.up or (around.cluster, around.slice) != (known.cidr, carved.slice):
            answer = await self._run(
                wire.SetupGlobalOverlay(
                    deployment=around.deployment if around is not None else known.cluster,
                    instance_id=around.instance_id if around is not None else known.node,
                    cluster_cidr=str(known.cidr),
                    slice_cidr=str(carved.slice),
                    wg_port=around.wg_port if around is not None else PORT,
                )
            )
            if not isinstance(answer, wire.Err):
                self.error = self.remedy = ""
                break
            self.remedy = "do what it says; it is tried again by itself"
            self._tell(f"the overlay cannot be set up with {carved.slice}: {answer.message}")
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(pause * 2, LONGEST_PAUSE)
        self.joined.set()

    async def _watch_over(self) -> None:
        """What changes by itself: whether we are behind a NAT."""
        while True:
            await asyncio.sleep(1)
            news, following = self.news, self.following
            if news is None or following is None:
                continue
            following.session.nodes = len(news.registry)
            news.registry.turn(keys.public(self.node.state.node.private_key))
            if self.publishing.behind_nat != news.registry.own_nat:
                news.registry.own_nat = self.publishing.behind_nat
                news.look()

    def _grown(self) -> None:
        """We have one more block."""
        if self.news is not None:
            self.news.registry.claim_for_ourselves(self.membership.blocks)
            self.news.look()

    # --- what is heard ------------------------------------------------------------------------------------------------

    def _told(self, message: Message) -> None:
        assert self.news is not None
        if isinstance(message, Quiet):
            self._pulse = asyncio.get_running_loop().create_task(self.publishing.pulse(self.news.pulse))
        else:
            self.news.tell(message)

    def _own_record(self, entry: Entry | None) -> None:
        known = self.own.entry
        expected = (self.own.told, self.own.putting) if not self.conflict else ()
        # Also what we have seen already, as who puts names does: to look is not to see to it.
        if entry is None or known is None or (entry.modified >= known.modified and entry.value not in expected):
            self._confirm.set()
        elif entry.modified >= known.modified:
            self.own.entry = entry

    def _own_names(self, key: str, entry: Entry | None) -> None:
        """Whatever an entry of our names has become but by us is put right."""
        names, record = self.own.names, self.own.entry
        if names is None or record is None or (entry is not None and entry.modified <= record.modified):
            return  # they are being put, or this was before they were
        if names.get(key) != (entry.value if entry is not None else None):
            log.warning(
                "cluster %s: somebody has %s %s in the store: our names are told again",
                self.settings.cluster,
                "changed" if entry is not None else "removed",
                key,
            )
            self.own.names = None
            self.publishing.tell_again()

    def _configured(self, config: Config | None) -> None:
        if config is None:
            self._confirm.set()
            return
        if self.following is not None:
            self.following.session.rate = config.rate
        known = self.membership
        if (config.node_ttl_secs, config.rate, config.zone) != (known.node_ttl, known.rate, known.zone):
            self._confirm.set()

    def _went_back(self, history: str) -> None:
        """The store went back: a node that looks later is to know as well, though revisions have gone on by then."""
        self.configuration.unmarked = history
        self._confirm.set()

    def _list_anew(self) -> None:
        if self.following is not None:
            self.following.list_anew()

    def _written(self, revision: int) -> None:
        if self.following is not None:
            self.following.written(revision)

    def _measured_rate(self) -> float:
        if self.following is None:
            return 0.0
        return self.following.session.measured_rate(asyncio.get_running_loop().time())

    def _conflicting(self, why: str) -> None:
        if why != self.conflict:
            log.error("cluster %s: %s", self.settings.cluster, why)
        self.conflict = why

    def _refuse(self, why: str) -> None:
        log.error("cluster %s: %s", self.settings.cluster, why)
        self.refusal = why
        self._stop()

    def _tell(self, why: str) -> None:
        if why != self.error:
            log.warning("cluster %s: %s", self.settings.cluster, why)
        self.error = why

    # --- what a person asks for ---------------------------------------------------------------------------------------

    async def leave(self) -> None:
        """We are no member any more, in the store either, and do nothing of one until the next start.  StoreError: the
        store does not answer, and we go on as a member.

        What is at work ends first, and no claim is under way then: it would see our record go, and join again.
        """
        async with self.own.turn:
            await self._end()
            try:
                known = self.membership
                if known.blocks:
                    with suppress(NoSuchNode):  # somebody removed it already
                        await remove(self.etcd, known.node, known.instance)
                    await self.publishing.disappear()
                await self.node.change(joining.forget, everything=True)
            except OverlaydError:
                self._begin()
                raise
        self.conflict, self.error = "", "this node has left the cluster: the next start with --etcd joins it again"
        self.remedy = "start overlayd without --etcd, or with it to join again"

    def _begin(self) -> None:
        assert self._keep_up is not None
        self._task = self._keep_up(self._live)

    async def _end(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self.news = self.following = self.janitor = None

    def look_again(self) -> None:
        """Confirm again: a person has changed something."""
        self.conflict = ""
        self._confirm.set()

    def require_attachable(self) -> None:
        """RequestError while our block is another's: no address of it is handed out."""
        if self.conflict:
            raise RequestError(
                f"no address is handed out while this node's place in the cluster is in doubt: {self.conflict}"
            )

    @property
    def state(self) -> Literal["connected", "syncing", "disconnected", "conflict", "guarded"]:
        if self.conflict:
            return "conflict"
        if self.following is None:
            return "disconnected"
        if self.news is not None and self.news.guarded and self.following.session.state == "connected":
            return "guarded"
        return self.following.session.state
