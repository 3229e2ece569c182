"""Which nodes have been gone for so long that they are to be removed.

Owns: the count of absence, by the clock of whoever holds the office of janitor.  Must not know: presence keys, or how
a node is removed.

Only time between two readings that both succeeded counts, and it begins anew with every janitor: so an outage of the
store, a backup put back and a wrong wall clock remove nobody.
"""

from collections.abc import Collection

# Our own constant: of the time between two readings, in intervals, so that a pause of the process counts little.
MOST_INTERVALS = 2.0


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
