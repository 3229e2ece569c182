"""Waiting for what must happen.

Owns: how long a test waits before it gives up.  Must not know: what is waited for.

A test says what must come true, never how fast: on a machine with other work everything may take many times as long.
The limits are there so that a test that fails comes to an end; none of them is reached where it passes.
OVERLAYD_TEST_PATIENCE multiplies them, for a machine on which even they are too short.
"""

import asyncio
import os
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

FACTOR = float(os.environ.get("OVERLAYD_TEST_PATIENCE", "1"))
LIMIT = 60 * FACTOR  # seconds for one thing to happen
GLANCE = 0.01  # seconds between two looks, at first


def _pause(waited: float, look: float) -> float:
    """Seconds until the next look.  A wait is longer by a fiftieth at most, and looks that run programs, or have waited
    for a processor themselves, leave the machine to what is waited for.
    """
    return min(max(GLANCE, waited / 50, 3 * look), 0.25)


def _give_up(seconds: float, failing: Callable[[], object] | str) -> TimeoutError:
    return TimeoutError(f"not within {seconds:g} s: {failing if isinstance(failing, str) else failing()}")


def until(
    condition: Callable[[], T],
    failing: Callable[[], object] | str = "it did not come true",
    *,
    seconds: float = LIMIT,
) -> T:
    """Wait until `condition` returns something true, and return that.

    TimeoutError after so many seconds; it says `failing`, or what calling that returns: a log, the last state.
    """
    began = looked = time.monotonic()
    while not (value := condition()):
        now = time.monotonic()
        if now > began + seconds:
            raise _give_up(seconds, failing)
        time.sleep(_pause(now - began, now - looked))
        looked = time.monotonic()
    return value


async def until_async(condition: Callable[[], T], failing: Callable[[], object] | str = "it did not come true") -> T:
    """`until` in an event loop, which goes on meanwhile."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while not (value := condition()):
        waited = loop.time() - began
        if waited > LIMIT:
            raise _give_up(LIMIT, failing)
        await asyncio.sleep(_pause(waited, 0) / 10)
    return value
