"""Which nodes have been gone for so long that they are to be removed.

Owns: the count of absence, by the clock of the node that is the janitor.  Must not know: presence keys, or how
a node is removed.

Only time between two readings that both succeeded counts, and it starts over with every janitor: so an outage of the
store, a backup put back and a wrong wall clock remove nobody.
"""

from collections.abc import Collection

from overlayd.errors import RequestError

# Our own constant: of the time between two readings, in intervals, so that a pause of the process counts little.
MOST_INTERVALS = 2.0
# Our own constant, seconds: a janitor looks once a second at most, and a node is gone by several looks, not by one.
SHORTEST_TTL = 4


def require_sensible(ttl: int) -> None:
    """RequestError when nodes cannot be removed after this time; 0 is never."""
    if 0 < ttl < SHORTEST_TTL:
        raise RequestError(
            f"node_ttl_secs {ttl}: {SHORTEST_TTL} s is the shortest, 0 is never; a node that is away for longer loses "
            "its block, so choose more than a machine takes to start again (86400 is a day)"
        )


class Absence:
    """ttl: seconds that a node may be absent, more than 0; interval: between two readings, as planned."""

    def __init__(self, ttl: float, interval: float) -> None:
        self.ttl = ttl
        self._interval = interval
        self._absent: dict[str, float] = {}  # seconds
        self._last: float | None = None

    def read(self, members: Collection[str], present: Collection[str], now: float) -> list[str]:
        """A reading succeeded.  Returns the members that are to be removed."""
        passed = 0.0 if self._last is None else min(max(now - self._last, 0.0), self._interval * MOST_INTERVALS)
        self._last = now
        self._absent = {name: self._absent.get(name, -passed) + passed for name in members if name not in present}
        return [name for name, absent in self._absent.items() if absent >= self.ttl]

    def failed(self) -> None:
        """A reading failed: what passes until the next one does not count."""
        self._last = None
