"""From decisions to one transition of the state.

Owns: in which order a group of decisions is put into the state, and which kernel objects change with them.  Must not
know: the journal, what the kernel has, or who holds which resources.

Both functions work in slices, so that others are served in between.  Their caller lets nobody decide anything
meanwhile.
"""

from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from typing import Any

from overlayd.daemon.change.gather import Decision
from overlayd.daemon.change.slices import Slices
from overlayd.daemon.change.transition import Encoded, Transition
from overlayd.model.layout import Facts, Layout, Networks, implied, leave_out
from overlayd.model.objects import Object
from overlayd.model.rows import Peer, Row, RowId, encode
from overlayd.model.state import Draft, State

FEW = 16  # objects, which are put together, or changes, which are answered, before others are served


async def decide(
    state: State,
    facts: Facts,
    decisions: Sequence[Decision[Any]],
    verify: Collection[RowId],
    *,
    everything: bool,
    make: Callable[[Iterator[Object]], Awaitable[Layout]],
) -> Transition | None:
    """Put decisions into the state, each on the one before it.  None when all refuse.

    verify: rows whose objects belong to the transition, even if no decision touches them.  everything: see
    `Transition`.  make: puts objects together.  When it raises, the state is as it was.
    """
    touched: set[RowId] = set(verify)
    besides: dict[RowId, Networks] = {}  # of peers, to which the routes stay as they are
    have = await make(implied(state, facts, touched) if touched else iter(()))
    change: dict[RowId, Row | None] = {}
    inverse: dict[RowId, Row | None] = {}
    taken = 0
    slices = Slices()
    try:
        for decision in decisions:
            await slices.pause()
            draft = Draft(state)
            if not decision.take(draft):
                continue
            taken += 1
            first = draft.rows.keys() - touched
            await slices.pause()
            if not everything and (ways := leave_out(state, facts, draft.rows, touched, besides)):
                have = ways | have
            if not all(id[0] == Peer.table and state.get(Peer, id[1]) is None for id in first):
                # There is nothing yet of a new peer.
                have |= await make(implied(state, facts, first, besides))
            await slices.pause()
            touched |= first
            for id, row in state.apply(draft.rows).items():
                inverse.setdefault(id, row)
            change |= draft.rows
        await slices.pause()
        if not taken:
            return None
        # Now, while the state shows this change and no later one: what those bring about is their own affair.
        want = await make(implied(state, facts, touched, besides))
        # Before another change is decided, which may not come to the disk sooner.
        encoded: Encoded = {}
        for id, row in change.items():
            encoded[id] = encode(row) if row is not None else None
            await slices.pause()
    except BaseException:
        state.apply(inverse)
        raise
    return Transition(change, inverse, encoded, have, want, bool(verify), everything)


async def put_together(objects: Iterator[Object]) -> Layout:
    """Objects by key, as they are made; the later ones of a key count."""
    slices, found = Slices(), Layout()
    for number, thing in enumerate(objects, 1):
        found[thing.key] = thing
        if number % FEW == 0:
            await slices.pause()
    return found
