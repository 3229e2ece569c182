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
GLANCE = 0.01  # seconds between two looks


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
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise _give_up(seconds, failing)
        time.sleep(GLANCE)
    return value


async def until_async(condition: Callable[[], T], failing: Callable[[], object] | str = "it did not come true") -> T:
    """`until` in an event loop, which goes on meanwhile."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + LIMIT
    while not (value := condition()):
        if loop.time() > deadline:
            raise _give_up(LIMIT, failing)
        await asyncio.sleep(GLANCE / 10)
    return value
