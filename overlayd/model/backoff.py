"""How soon a thing that somebody keeps removing is put back.

Owns: the pacing, a record for each thing.  Must not know: what the things are, or the time: `now` is an argument, in
seconds of any clock that does not run backwards.

What stood for a while since it was last put back is put back at once; what goes again and again within moments waits
longer each time, so that a program that removes it in a loop costs little.
"""

from collections.abc import Hashable

import msgspec

# Our own constants, seconds.
CALM = 0.25  # what stood this long is put back at once: twice a second, if need be
COSTS = 4  # and as many times as long as putting it back took, so that at most a fifth of our time goes into it
FIRST, LONGEST = 0.05, 30.0  # between two restorations, doubling


class _Record(msgspec.Struct):
    """restored: when it was last put back.  cost: how long that took.  stands_at: when it counts as standing.  strikes:
    how often in a row it was lost before that.  due: when it may be put back, None while it is there.
    """

    restored: float
    cost: float
    stands_at: float
    strikes: int = 0
    due: float | None = None


class Backoff:
    """The pacing of all things, by key."""

    def __init__(self) -> None:
        self._records: dict[Hashable, _Record] = {}

    def due(self, key: Hashable, now: float, *, guards: bool = False) -> float:
        """When a thing that is seen to be lost may be put back; the same until it was, however often it is asked.

        guards: others are unprotected without it, so it waits no longer than its cost demands.
        """
        record = self._records.get(key)
        if record is None:
            return now
        if record.due is None:
            record.strikes = record.strikes + 1 if now < record.stands_at else 0
            pause = min(FIRST * 2 ** (record.strikes - 1), LONGEST) if record.strikes else 0.0
            if guards:
                pause = min(pause, COSTS * record.cost)
            record.due = max(now, record.restored + pause)
        return record.due

    def restored(self, key: Hashable, now: float, cost: float) -> None:
        """It was put back, or that was tried: at `now`, having taken `cost` seconds."""
        record = self._records.setdefault(key, _Record(now, cost, now))
        record.restored, record.cost, record.due = now, cost, None
        record.stands_at = now + max(CALM, COSTS * cost)

    def strikes(self, key: Hashable) -> int:
        """How often in a row it was lost soon after it had been put back."""
        record = self._records.get(key)
        return record.strikes if record else 0

    def forget_calm(self, now: float) -> None:
        """Drop the records of what has long been standing."""
        calm = [key for key, each in self._records.items() if each.due is None and now > each.stands_at + LONGEST]
        for key in calm:
            del self._records[key]
