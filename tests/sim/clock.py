"""An event loop whose time passes only when nobody has anything to do, and then at once.

Owns: the clock.  Must not know: what runs on it.
"""

import asyncio
import selectors
from collections.abc import Mapping


class _Instantly(selectors.SelectSelector):
    """Waits for nothing: what would be a wait moves the clock on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("everybody waits for ever")
        self.now += timeout
        return []

    def get_map(self) -> Mapping[object, selectors.SelectorKey]:  # type: ignore[override]
        return super().get_map() or {}


class VirtualLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop but for its clock."""

    def __init__(self) -> None:
        self._clock = _Instantly()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now
