"""Work on the event loop that lets others be served in between.

Owns: how long it may go on without that.  Must not know: what the work is, or whom it keeps waiting.
"""

import asyncio
import time

# Our own constant: seconds.  What waits for the loop, waits so long for each piece of such work that is ahead of it.
SLICE = 0.002


class TakesLong(Exception):
    """It is so much work that it is to be done in slices, and not at once."""


class Slices:
    """One piece of work, cut by time."""

    def __init__(self) -> None:
        self._end = time.monotonic() + SLICE

    async def pause(self) -> None:
        """Let others be served if the slice is over."""
        if time.monotonic() >= self._end:
            await asyncio.sleep(0)
            self._end = time.monotonic() + SLICE
