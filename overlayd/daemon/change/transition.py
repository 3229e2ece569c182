"""A change between its decision and its end.

Owns: what `node` hands from one step of that way to the next.  Must not know: how a step is done.
"""

import msgspec

from overlayd.model.layout import Layout
from overlayd.model.rows import Change, Row, RowId, encode

Encoded = dict[RowId, bytes | None]  # None for rows that go


class Transition(msgspec.Struct, frozen=True):
    """A change that is in the state, but not on disk or in the kernel yet.

    change, inverse: the rows as they become, and as they were.  encoded: the first, for the journal.  have, want: the
    objects of these rows before and after.  verify: `have` is looked up in the kernel rather than believed.
    everything: everything is held, so the state does not change, and worker threads may do what takes long.
    """

    change: Change
    inverse: dict[RowId, Row | None]
    encoded: Encoded
    have: Layout
    want: Layout
    verify: bool
    everything: bool


def encode_rows(change: Change) -> Encoded:
    """Encode rows for the journal; some 4 us for each allowed IP."""
    return {id: encode(row) if row is not None else None for id, row in change.items()}
