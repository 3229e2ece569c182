"""The node: the sole writer of its state, and the one way a change takes.

Owns: the state, the order decision -> journal -> kernel -> answer, and the way back when the disk or the kernel
refuses. Must not know: the wire, sockets, or which request a change comes from.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from overlayd import fault
from overlayd.daemon.change.apply import Failure, HalfDone, Kernel
from overlayd.daemon.change.deciding import FEW, decide, put_together
from overlayd.daemon.change.disposal import dispose
from overlayd.daemon.change.gather import Decision, Gathering
from overlayd.daemon.change.journal import Journal
from overlayd.daemon.change.kernel_layout import observe, present
from overlayd.daemon.change.lane import Lane
from overlayd.daemon.change.locks import ResourceLocks
from overlayd.daemon.change.transition import Encoded, Transition, encode_rows
from overlayd.daemon.change.work import Work, end, resolve, wait_out
from overlayd.daemon.listeners import Listeners
from overlayd.errors import MechanismError, StateError
from overlayd.linux.threads import Pool
from overlayd.model.layout import Facts, Layout, by_key, implied
from overlayd.model.objects import Address, Element, Object, Step, Veth
from overlayd.model.plan import plan
from overlayd.model.rows import Change, Lease, Row, RowId
from overlayd.model.state import Draft, NotYet, State

T = TypeVar("T")

log = logging.getLogger(__name__)

# Kernel work in flight at once.  Deletions of links wait most of their time and share one barrier, so more threads
# than processors pay.
WORKERS = 16

# Changes carried out together.  The kernel's part of 512 peers takes some 100 ms in wireguard-go, for which a later
# change of the same resources has to wait.
GROUP = 512

MANY = 256  # objects, from which on layouts are compared in a worker thread

# Containers that are attached, or detached, in one visit to the kernel.  An attach takes some 0.3 ms, and nobody is
# answered before the last one; detaches share one wait for the kernel, however many there are.
CREATIONS, REMOVALS = 8, 512

FACTS = "facts"  # the resource that stands for `Node.facts`


class Node:
    """State, journal and kernel of this node, changed together or not at all.

    A change that has begun is never cancelled: its tasks outlive the connection that asked for it.
    """

    def __init__(self, state: State, journal: Journal, kernel: Kernel, facts: Facts) -> None:
        self.state = state
        self.facts = facts
        self.kernel = kernel
        self._journal = journal
        self._owed: dict[RowId, Row | None] = {}  # rows of the state that the disk refused to write
        self._ended = asyncio.Event()  # the next change that ends sets it
        self._observers = Listeners[Callable[[Change], None]]()
        self._locks = ResourceLocks()
        self._gathering = Gathering(GROUP)
        self._deciding = asyncio.Lock()  # a group is decided in slices, and nobody decides anything in between
        self._workers = Pool(WORKERS, "kernel")
        self._creations = Lane("creations", kernel.apply_together, CREATIONS)
        self._removals = Lane("removals", kernel.apply_together, REMOVALS)

    @property
    def owed(self) -> int:
        """How many rows are in the state, and the disk refused to write them."""
        return len(self._owed)

    @property
    def syncs(self) -> int:
        """How many times commits were synced to the disk."""
        return self._journal.syncs

    def time_syncs(self, observe: Callable[[float], None]) -> None:
        """From now on tell, on the journal's thread, how many seconds each of them takes."""
        self._journal.synced = observe

    def is_settled(self, *resources: str) -> bool:
        """Whether what the state says of these resources will still be so when a change that asks for them now has its
        turn.
        """
        return self._locks.is_settled(resources)

    def subscribe(self, observer: Callable[[Change], None]) -> AbstractContextManager[None]:
        """Tell an observer of every change that has taken effect, until the block ends."""
        return self._observers.with_another(observer)

    async def change(
        self,
        decide: Callable[[Draft], T],
        *,
        exclusive: Collection[str] = (),
        shared: Collection[str] = (),
        everything: bool = False,
        verify: Collection[RowId] = (),
        prepare: Callable[[], object] | None = None,
    ) -> T:
        """Take one decision through state, journal and kernel; return what it returned.

        decide: puts rows into a draft of the current state; raises RequestError to refuse.  prepare: blocking work that
        `decide` needs done, in a worker thread when it has its turn; raises as `decide` does.  exclusive, shared: the
        resources that no other change, or none that wants them exclusively, may touch meanwhile; everything:
        nothing may.  verify: rows whose objects are looked up in the kernel rather than believed to be there.
        RequestError, StateError and MechanismError leave state, journal and kernel as they were.
        """
        async with self._hold(exclusive, shared, everything=everything):
            if prepare is not None:
                await self.run(prepare)
            while True:
                decision = Decision(decide)
                await self._carry_out([decision], verify, everything=everything)
                try:
                    return await decision.outcome
                except NotYet:
                    await self._ended.wait()

    async def change_together(self, decide: Callable[[Draft], T], exclusive: Collection[str], *, size: int = 1) -> T:
        """Like `change` with `exclusive`, for small changes of which many come at once: those that wait for the same
        resources share one commit and one visit to the kernel.

        They are decided in the order in which they came, each on the state that the one before it left.  When the
        kernel refuses them together, each is carried out alone, so that an error meets who caused it; it never hears
        of what a later one of them cancels out.  No object that `decide` changes may depend on a row that it does
        not touch.  size: how many of the small ones it is as much work as.
        """
        decision = Decision(decide)
        group = self._gathering.join(exclusive, decision, size)
        if group is not None:
            async with self._locks.hold(group.resources):
                self._gathering.close(group)
                await self._carry_out_group(group.decisions)
        return await decision.outcome

    async def change_all(
        self,
        decides: Sequence[Callable[[Draft], T]],
        exclusive: Collection[str],
        shared: Collection[str] = (),
        prepare: Callable[[], object] | None = None,
    ) -> list[T | BaseException]:
        """Like `change` for each, but together, as `change_together` does it.  None may raise `NotYet`.  Returns what
        each returned or raised.
        """
        decisions = [Decision(decide) for decide in decides]
        async with self._hold(exclusive, shared):
            if prepare is not None:
                await self.run(prepare)
            await self._carry_out_group(decisions)
        return await asyncio.gather(*(each.outcome for each in decisions), return_exceptions=True)

    async def take_over(self, decide: Callable[[Draft], None], *, at_any_price: bool = False) -> None:
        """Change the state alone, at a start, when `reconcile` follows.  at_any_price: if the disk refuses, then with
        the next change; else StateError.
        """
        async with self._hold(everything=True):
            draft = Draft(self.state)
            decide(draft)
            inverse = self.state.apply(draft.rows)
            try:
                await self._commit(encode_rows(draft.rows))
            except StateError as error:
                if not at_any_price:
                    self.state.apply(inverse)
                    raise
                self._owe(draft.rows, error)
            self.kernel.forget(self._released(inverse))

    async def run_exclusively(self, work: Callable[..., T], *arguments: object) -> T:
        """Do blocking work in a worker thread while no change is in flight."""
        async with self._hold(everything=True):
            return await self.run(work, *arguments)

    async def update_facts(
        self,
        update: Callable[[Facts], Facts],
        touched: Collection[RowId] | None = None,
        *,
        exclusive: Collection[str] = (),
    ) -> None:
        """Follow a change of circumstances (the MTU, where a host name points): the kernel changes, the state does
        not.

        update: the facts of now to the new ones.  touched: the rows whose objects depend on the difference, None for
        all; exclusive: the resources that guard them, none for all there are.  On MechanismError the facts are as
        they were.
        """
        everything = not exclusive
        async with self._hold([*exclusive, FACTS], everything=everything):
            before = self.facts
            try:
                make = self._make(everything)
                async with self._deciding:
                    have = await make(implied(self.state, self.facts, touched))
                    self.facts = update(before)
                    want = await make(implied(self.state, self.facts, touched))
                await self._apply(await self._plan(have, want))
                self._dispose(have, want)
            except BaseException as error:
                self.facts = before
                await self._undo(error)
                raise

    async def reconcile(self) -> tuple[list[Step], list[Failure]]:
        """Make the kernel what the state implies, whatever it is now.  Returns the steps, and those that failed."""
        async with self.comparing(implied, observe) as steps:
            return steps, await self.repair(steps)

    @asynccontextmanager
    async def comparing(
        self,
        part: Callable[[State, Facts], Iterator[Object]],
        look: Callable[[Kernel, Layout], Layout],
        *,
        exclusive: Collection[str] | None = None,
    ) -> AsyncIterator[list[Step]]:
        """Compare the kernel with what the state implies, and let nobody change that before the block ends.  Yields the
        steps from the one to the other, for `repair`.

        part: of the layout, as it is made.  look: what the kernel has of it, in a worker thread.  exclusive: the
        resources that nobody may change meanwhile, None for all there are.  MechanismError: the kernel refuses that.
        """
        everything = exclusive is None
        async with self._hold(exclusive or (), everything=everything):
            async with self._deciding:
                want = await self._make(everything)(part(self.state, self.facts))
            have = await self.run(look, self.kernel, want)
            yield await self._plan(have, want)
            self._dispose(have, want)

    async def repair(self, steps: Sequence[Step]) -> list[Failure]:
        """Do steps of `comparing`, each by itself, within its block.  Returns those that failed."""
        return await self.run(self.kernel.repair, steps) if steps else []

    async def settled(self, *resources: str) -> None:
        """Wait for the changes of these resources that were asked for before."""
        async with self._hold(shared=resources):
            pass

    async def check_journal(self) -> str:
        """Have the journal written again if somebody removed, moved or changed it.  Returns what was done to it the
        last time, or why it cannot be written; empty for nothing.
        """
        try:
            await self._journal.check()
        except StateError as error:
            return str(error)
        return self._journal.displaced

    async def journal_obstacle(self) -> str:
        """See `Journal.obstacle`."""
        return await self.run(self._journal.obstacle)

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """Do blocking work in a worker thread."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, work, *arguments)

    async def close(self) -> None:
        """Wait for the changes in flight and let the threads go.  Later changes wait forever: stop asking first."""
        async with self._hold(everything=True):
            await asyncio.to_thread(self._workers.shutdown)
            await asyncio.to_thread(self._creations.close)
            await asyncio.to_thread(self._removals.close)
            await asyncio.to_thread(self.kernel.close)

    def _hold(
        self, exclusive: Collection[str] = (), shared: Collection[str] = (), *, everything: bool = False
    ) -> AbstractAsyncContextManager[None]:
        self._gathering.queued_behind([*exclusive, *shared], everything)
        return self._locks.hold(exclusive, shared, everything=everything)

    async def _carry_out_group(self, decisions: Sequence[Decision[Any]]) -> None:
        """Carry them out together, or one by one when the kernel refuses that.  Every decision is settled, or fails,
        here.
        """
        try:
            await self._carry_out(decisions)
        except MechanismError as error:
            if len(decisions) == 1:
                decisions[0].fail(error)
                return
            log.warning("%d changes are refused together, and tried one by one: %s", len(decisions), error)
            for decision in decisions:
                await self._carry_out_group([decision])
        except Exception as error:
            for decision in decisions:
                decision.fail(error)

    async def _carry_out(
        self, decisions: Sequence[Decision[Any]], verify: Collection[RowId] = (), *, everything: bool = False
    ) -> None:
        """Take decisions through state, journal and kernel together, and settle them; on an error nothing has
        happened, and none is settled.
        """
        make = self._make(everything)
        async with self._deciding:
            transition = await decide(self.state, self.facts, decisions, verify, everything=everything, make=make)
        if transition is not None and (transition.change or verify or self._owed):
            try:
                await self._take_effect(transition)
            finally:
                self._dispose(transition.have, transition.want, transition.inverse)
        for at, decision in enumerate(decisions, 1):
            decision.settle()
            if at % FEW == 0:
                await asyncio.sleep(0)  # those who waited for these are answered now

    def _make(self, everything: bool) -> Callable[[Iterator[Object]], Awaitable[Layout]]:
        """How to put together what the state implies now, by key: in a worker thread if the state stays as it is, for
        that may be all there is; else before another change is decided, and in slices.
        """
        return partial(self.run, by_key) if everything else put_together

    def _dispose(self, *tables: dict[Any, Any]) -> None:
        """Have large tables emptied in a worker thread, later."""
        if sum(map(len, tables)) > MANY:
            self._workers.submit(dispose, *tables)

    async def _plan(self, have: Layout, want: Layout) -> list[Step]:
        """The steps from one to the other, in a worker thread when there is much to compare."""
        if len(have) + len(want) > MANY:
            return await self.run(plan, have, want)
        return plan(have, want)

    async def _take_effect(self, transition: Transition) -> None:
        """Have disk and kernel follow the state, or take the state back; until then nothing that the change gives up is
        free.
        """
        change, inverse = transition.change, transition.inverse
        self.state.departing.update((id, row) for id, row in inverse.items() if row is not None)
        try:
            await self._follow(transition)
            fault.point("node:applied")
            self.kernel.forget(self._released(inverse))
        finally:
            for id in inverse:
                self.state.departing.pop(id, None)
            self._ended.set()
            self._ended = asyncio.Event()
        for observer in self._observers:
            observer(change)

    async def _follow(self, transition: Transition) -> None:
        """Change the disk, then the kernel."""
        looks = transition.everything or (transition.verify and transition.have)
        # What the disk refused before is settled only when the loop hears of its commit.
        work = None if looks or self._owed or not transition.encoded else self._work(transition)
        try:
            if work is None:
                await self._commit(transition.encoded)
            else:
                self._journal.commit(transition.encoded, work.begin, work.done)
        except BaseException:
            self.state.apply(transition.inverse)
            raise
        if work is None:
            fault.point("node:journaled")
        await self._change_kernel(transition, work)

    def _work(self, transition: Transition) -> Work | None:
        """The steps, if they are few enough to be put together before the change is durable: a container's coming or
        going on its lane, all else in a worker thread.
        """
        if len(transition.have) + len(transition.want) > MANY:
            return None
        steps = plan(transition.have, transition.want)
        if not steps:
            return None
        kinds = {type(step.want or step.have) for step in steps}
        if Veth in kinds and kinds <= {Veth, Element}:
            if all(step.have is None for step in steps):
                return Work(self._creations.put, steps)
            if all(step.want is None for step in steps):
                return Work(self._removals.put, steps)
        return Work(self._put, steps)

    def _put(self, steps: Sequence[Step], done: asyncio.Future[None]) -> None:
        """Have steps done by a worker thread.  Any thread may call."""
        self._workers.submit(self.kernel.apply, steps).add_done_callback(partial(resolve, done))

    async def _change_kernel(self, transition: Transition, work: Work | None) -> None:
        try:
            if work is not None:
                await end(work)
            else:
                await self._apply(await self._steps(transition))
        except StateError:  # the disk has refused it
            self.state.apply(transition.inverse)
            raise
        except BaseException as error:
            # On disk first: were we to die on the way back, the next start has to want what was there before, for
            # else nobody would know whose a half-made link is.
            await self._take_back(transition.inverse)
            await self._undo(error)
            raise

    async def _steps(self, transition: Transition) -> list[Step]:
        have = transition.have
        if transition.verify and have:
            have = await self.run(present, self.kernel, have)
        return await self._plan(have, transition.want)

    def _released(self, inverse: Change) -> list[Address]:
        """The addresses that lost their holder."""
        held = (row for row in inverse.values() if isinstance(row, Lease) and row.holder)
        now = ((old, self.state.get(Lease, old.key)) for old in held)
        return [old.address for old, lease in now if lease is None or lease.holder != old.holder]

    async def _take_back(self, inverse: Change) -> None:
        self.state.apply(inverse)
        try:
            await self._commit(encode_rows(inverse))
        except StateError as error:
            self._owe(inverse, error)

    def _owe(self, change: Change, error: StateError) -> None:
        self._owed |= change
        log.error("%d rows could not be written, they will be with the next change: %s", len(change), error)

    async def _commit(self, encoded: Encoded) -> None:
        """Commit rows, and with them those that the disk refused before."""
        rows = encode_rows(self._owed) | encoded
        if rows:
            await wait_out(self._journal.commit(rows))
            self._owed = {id: row for id, row in self._owed.items() if id not in rows}

    async def _apply(self, steps: Sequence[Step]) -> None:
        """Do the steps in the kernel.  On any error `_undo` has to follow."""
        if steps:
            work = Work(self._put, steps)
            self._put(work.steps, work.done)
            await end(work)

    async def _undo(self, error: BaseException) -> None:
        """Take back what `_apply` did before it raised the error.  Raises what made it fail."""
        if isinstance(error, HalfDone):
            await self.run(self.kernel.undo, error.done)
            raise error.error from error.error.__cause__
