"""What is due at some time, however much of it there is.

Owns: one timer of the event loop.  Must not know: what is due.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

# Our own constants, in seconds.
TICK = 0.02  # by which a call may be late
SLICE = 0.001  # of calls, then the loop looks at its other work

Call = Callable[[], None]


class Deadlines:
    """Calls to be made later, nearly all of which are taken back before."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls: dict[int, dict[Call, None]] = {}  # by tick
        self._due: deque[Call] = deque()
        self._first = 0  # the tick that the timer is set to
        self._timer: asyncio.Handle | None = None

    def call_at(self, when: float, call: Call) -> int:
        """Make a call at this time of the loop's, or a TICK later.  Returns what `forget` takes, not 0."""
        tick = int(when / TICK) + 1
        calls = self._calls.get(tick)
        if calls is not None:
            calls[call] = None
            return tick
        self._calls[tick] = {call: None}
        if self._timer is None or (tick < self._first and not self._due):
            self._set_timer(tick)
        return tick

    def forget(self, tick: int, call: Call) -> None:
        """Do not make a call.  It may come all the same when its time is there."""
        calls = self._calls.get(tick)
        if calls is not None:
            calls.pop(call, None)

    def close(self) -> None:
        """Make no call any more."""
        self._calls.clear()
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _set_timer(self, tick: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._first = tick
        self._timer = self._loop.call_at(tick * TICK, self._collect)

    def _collect(self) -> None:
        """Take what is due; the timer may be early by the rounding of its clock."""
        for tick in sorted(tick for tick in self._calls if tick <= self._first):
            self._due.extend(self._calls.pop(tick))
        self._make()

    def _make(self) -> None:
        end = time.monotonic() + SLICE
        while self._due:
            self._due.popleft()()
            if time.monotonic() >= end:
                break
        self._timer = None
        if self._due:
            self._timer = self._loop.call_soon(self._make)
        elif self._calls:
            self._set_timer(min(self._calls))
