"""Records that were removed, and when that counts.

Owns: how long it is waited.  Must not know: what a record is, the store, the clock.

A node whose record somebody removed by mistake puts it again at once.  Its peers would else lose its tunnel, and where
it was found, for the time between.
"""

from collections.abc import Callable

GRACE = 3.0  # our own: seconds


class Removals:
    """now: of any clock that does not go back, in seconds."""

    def __init__(self) -> None:
        self._counts: dict[str, float] = {}  # when, by key

    def __len__(self) -> int:
        return len(self._counts)

    def remove(self, key: str, now: float) -> None:
        """Note that a record is gone."""
        self._counts.setdefault(key, now + GRACE)

    def put(self, key: str) -> None:
        """Note that it is there."""
        self._counts.pop(key, None)

    def clear(self) -> None:
        """Forget all of them: every record that there is was told again."""
        self._counts.clear()

    @property
    def next(self) -> float | None:
        """When the first of them counts; None when there is none."""
        return min(self._counts.values(), default=None)

    def due(self, now: float, wanted: Callable[[str], bool]) -> list[str]:
        """Those that count by now, each told once.  wanted: whether somebody else waits for what a record has, which
        then counts at once.
        """
        found = [key for key, at in self._counts.items() if at <= now or wanted(key)]
        for key in found:
            del self._counts[key]
        return found
