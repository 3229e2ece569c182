"""Work on the event loop that lets others be served in between.

Owns: how long it may go on without that.  Must not know: what the work is, or whom it keeps waiting.
"""

import asyncio
import time
from bisect import bisect
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

T = TypeVar("T")

# Our own constant: seconds for which one piece of such work may keep the loop from all else.
SLICE = 0.002

FEW = 16  # of many things, between two looks at the time
BUCKET = 512  # names, which are put in order in a fraction of that


class TakesLong(Exception):
    """This is too much work to be done at once: do it in slices."""


class Slices:
    """One piece of work, cut by time."""

    def __init__(self) -> None:
        self._end = time.monotonic() + SLICE

    async def pause(self) -> None:
        """Let others be served if the slice is over."""
        if time.monotonic() >= self._end:
            await asyncio.sleep(0)
            self._end = time.monotonic() + SLICE

    async def each(self, things: Iterable[T]) -> AsyncIterator[T]:
        """Yield the things that are there now, whatever comes and goes meanwhile, with pauses in between."""
        for number, thing in enumerate(list(things), 1):
            yield thing
            if number % FEW == 0:
                await self.pause()

    async def in_order(self, names: Iterable[str]) -> list[str]:
        """As `sorted`, which keeps the interpreter until the last of 100,000 names: here a bucket of them at a time."""
        names = list(names)
        bounds = sorted(names[BUCKET::BUCKET])
        buckets: list[list[str]] = [[] for _ in range(len(bounds) + 1)]
        async for name in self.each(names):
            buckets[bisect(bounds, name)].append(name)
        ordered: list[str] = []
        for bucket in buckets:
            ordered += sorted(bucket)
            await self.pause()
        return ordered
