"""The node: the sole writer of its state, and the one way a change takes.

Owns: the state, the order decision -> journal -> kernel -> answer, and the way back when the disk or the kernel
refuses. Must not know: the wire, sockets, or which request a change comes from.
"""

import asyncio
import logging
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from overlayd.daemon.apply import Failure, Kernel
from overlayd.daemon.inspect import observe, present
from overlayd.daemon.journal import Journal
from overlayd.daemon.locks import ResourceLocks
from overlayd.errors import StateError
from overlayd.model.layout import Facts, Layout, layout
from overlayd.model.objects import Step
from overlayd.model.plan import plan
from overlayd.model.rows import Change, Row, RowId, encode
from overlayd.model.state import Draft, State

T = TypeVar("T")

log = logging.getLogger(__name__)

# Kernel work in flight at once.  Deletions of links wait most of their time and share one barrier, so more threads
# than processors pay.
WORKERS = 16


class Node:
    """State, journal and kernel of this node, changed together or not at all.

    A change that has begun is never cancelled: its tasks outlive the connection that asked for it.
    """

    def __init__(self, state: State, journal: Journal, kernel: Kernel, facts: Facts) -> None:
        self.state = state
        self.facts = facts
        self.kernel = kernel
        self.observers: list[Callable[[Change], None]] = []  # told of every change that has taken effect
        self._journal = journal
        self._owed: dict[RowId, Row | None] = {}  # taken back in memory, but the disk would not hear of it
        self._locks = ResourceLocks()
        self._workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="kernel")

    async def change(
        self,
        decide: Callable[[Draft], T],
        *,
        exclusive: Collection[str] = (),
        shared: Collection[str] = (),
        everything: bool = False,
        verify: Collection[RowId] = (),
    ) -> T:
        """Take one decision through state, journal and kernel; return what it returned.

        decide: puts rows into a draft of the current state; raises RequestError to refuse.  exclusive, shared: the
        resources that no other change, or none that wants them exclusively, may touch meanwhile; everything:
        nothing may.  verify: rows whose objects are looked up in the kernel rather than believed to be there.
        RequestError, StateError and MechanismError leave state, journal and kernel as they were.
        """
        async with self._locks.hold(exclusive, shared, everything=everything):
            draft = Draft(self.state)
            answer = decide(draft)
            change = draft.rows
            touched = {*change, *verify}
            have = layout(self.state, self.facts, touched)
            inverse = self.state.apply(change)
            try:
                await self._commit(change)
            except BaseException:
                self.state.apply(inverse)
                raise
            try:
                if verify:
                    have = await self.run(present, self.kernel, have)
                await self._apply(have, layout(self.state, self.facts, touched))
            except BaseException:
                await self._take_back(inverse)
                raise
            for observer in self.observers:
                observer(change)
            return answer

    async def adopt(self, decide: Callable[[Draft], None]) -> None:
        """Change the state alone, at a start, when `reconcile` follows."""
        async with self._locks.hold(everything=True):
            draft = Draft(self.state)
            decide(draft)
            inverse = self.state.apply(draft.rows)
            try:
                await self._commit(draft.rows)
            except BaseException:
                self.state.apply(inverse)
                raise

    async def learn(self, facts: Facts, touched: Collection[RowId] | None = None) -> None:
        """Follow a change of circumstances (the MTU, where a host name points): the kernel changes, the state does
        not.
        """
        async with self._locks.hold(everything=True):
            have = layout(self.state, self.facts, touched)
            self.facts = facts
            await self._apply(have, layout(self.state, facts, touched))

    async def reconcile(self) -> list[Failure]:
        """Make the kernel what the state implies, whatever it is now.  Returns what could not be done."""
        _, failures = await self.mend(layout, observe, lambda steps: steps)
        return failures

    async def mend(
        self,
        part: Callable[[State, Facts], Layout],
        look: Callable[[Kernel, Layout], Layout],
        choose: Callable[[list[Step]], list[Step]],
        *,
        exclusive: Collection[str] | None = None,
    ) -> tuple[list[Step], list[Failure]]:
        """Put right what is not as the state implies.  Returns the steps that were taken, and those that failed.

        part: of the layout.  look: what the kernel has of it, in a worker thread.  choose: which steps to take.
        exclusive: the resources that nobody may change meanwhile, None for all there are.
        """
        everything = exclusive is None
        async with self._locks.hold(exclusive or (), everything=everything):
            # With everything held the state stands still, and a large part may be put together beside the loop.
            want = await self.run(part, self.state, self.facts) if everything else part(self.state, self.facts)
            steps = choose(plan(await self.run(look, self.kernel, want), want))
            return steps, await self.run(self.kernel.repair, steps) if steps else []

    async def alone(self, work: Callable[..., T], *arguments: object) -> T:
        """Do blocking work in a worker thread while nobody changes anything."""
        async with self._locks.hold(everything=True):
            return await self.run(work, *arguments)

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """Do blocking work in a worker thread."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, work, *arguments)

    async def close(self) -> None:
        """Wait for the changes in flight and let the threads go.  Later changes wait for ever: stop asking first."""
        async with self._locks.hold(everything=True):
            await asyncio.to_thread(self._workers.shutdown)

    async def _take_back(self, inverse: Change) -> None:
        self.state.apply(inverse)
        try:
            await self._commit(inverse)
        except StateError as error:
            self._owed |= inverse
            log.error("a refused change could not be taken back on disk, it will be with the next one: %s", error)

    async def _commit(self, change: Change) -> None:
        rows = {**self._owed, **change}
        if rows:
            await self._journal.commit({id: encode(row) if row is not None else None for id, row in rows.items()})
            self._owed = {id: row for id, row in self._owed.items() if id not in rows}

    async def _apply(self, have: Layout, want: Layout) -> None:
        steps = plan(have, want)
        if steps:
            await self.run(self.kernel.apply, steps)
