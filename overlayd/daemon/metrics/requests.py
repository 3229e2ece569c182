"""How many requests there were, how they ended, and how long they took; how late the loop and how slow the disk is.

Owns: the counts.  Must not know: what a request does, or who reads the counts.
"""

import asyncio
from collections import Counter

from overlayd.proto.exposition import Histogram

# Our own constants: upper bounds in seconds.
BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BEAT = 0.5  # seconds between two looks at how late the loop is


class Requests:
    """ended: by op and result.  seconds: by op.  lag: of the loop.  syncs: of the journal to the disk."""

    def __init__(self) -> None:
        self.ended: Counter[tuple[str, str]] = Counter()
        self.seconds: dict[tuple[str, ...], Histogram] = {}
        self.lag = Histogram(BOUNDS)
        self.syncs = Histogram(BOUNDS)

    def record(self, op: str, result: str, seconds: float) -> None:
        """Count a request that was answered."""
        self.ended[op, "err" if result == "err" else "ok"] += 1
        found = self.seconds.get((op,))
        if found is None:
            found = self.seconds[op,] = Histogram(BOUNDS)
        found.observe(seconds)

    async def watch_loop(self) -> None:
        """Observe how late the loop wakes a sleeper, forever."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + BEAT
            await asyncio.sleep(BEAT)
            self.lag.observe(max(0.0, loop.time() - due))
