"""Whose turn it is: start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996).

Owns: the order in which those who wait are served.  Must not know: who they are, or what serving is.

Each turn has a cost, and the next turn of the one that had it begins, in a time that only counts costs, no earlier than
the last one's end.  Who did not ask for a while may begin a little in the past.  So a client that asks for little is
served before all who ask for much, and these share equally.
"""

from heapq import heappop, heappush
from typing import Generic, Protocol, TypeVar


class Waiter(Protocol):
    """One who has turns.  paid_until: kept here, 0 at first."""

    paid_until: int


W = TypeVar("W", bound=Waiter)


class Turns(Generic[W]):
    """Those who wait for a turn.  credit: how far in the past a turn may begin; what a long turn costs."""

    def __init__(self, credit: int) -> None:
        self._credit = credit
        self._waiting: list[tuple[int, int, W]] = []
        self._now = 0  # when the latest turn began
        self._came = 0  # of those with the same beginning the first is served first

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, waiter: W) -> None:
        """Wait for a turn; not twice."""
        self._came += 1
        heappush(self._waiting, (max(self._now - self._credit, waiter.paid_until), self._came, waiter))

    def next(self) -> W:
        """The one that is served now; what that costs is added to its `paid_until`.  There must be one."""
        begins, _, waiter = heappop(self._waiting)
        self._now = max(self._now, begins)
        waiter.paid_until = begins
        return waiter

    def is_next(self, waiter: W) -> bool:
        """Whether somebody who does not wait comes before all who do; then it may be served now, as of `next`."""
        begins = max(self._now - self._credit, waiter.paid_until)
        if self._waiting and begins >= self._waiting[0][0]:
            return False
        self._now = max(self._now, begins)
        waiter.paid_until = begins
        return True
