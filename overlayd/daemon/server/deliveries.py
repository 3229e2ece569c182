"""Events on their way to those who listen.

Owns: their order, and how long they hold the loop at a time.  Must not know: what an event is, or who listens.

To thousands of listeners one event is tens of milliseconds of system calls.
"""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

# Our own constants.
SLICE = 64  # messages, then the loop looks at its sockets: uvloop sends them only then, some 15 us each
MOST = 256  # events on their way; then the oldest one is sent to its end at once


class Deliveries:
    """soon: calls somebody when the loop has looked at its sockets."""

    def __init__(self, soon: Callable[[Callable[[], None]], object]) -> None:
        self._soon = soon
        self._under_way: deque[Iterator[None]] = deque()
        self._scheduled = False

    def add(self, delivery: Iterator[None]) -> None:
        """Send an event behind those that are under way.  delivery: a step for each who listens."""
        self._under_way.append(delivery)
        if len(self._under_way) > MOST:
            deque(self._under_way.popleft(), maxlen=0)
        if not self._scheduled:
            self._deliver()

    def finish(self) -> None:
        """Send what is under way to its end."""
        while self._under_way:
            deque(self._under_way.popleft(), maxlen=0)

    def _deliver(self) -> None:
        self._scheduled = False
        room = SLICE
        while self._under_way and room:
            sent = sum(1 for _ in islice(self._under_way[0], room))
            if sent < room:
                self._under_way.popleft()
            room -= sent
        if self._under_way:
            self._scheduled = True
            self._soon(self._deliver)
