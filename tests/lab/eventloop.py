"""An event loop of uvloop for one test, and the sockets that it has to close."""

import asyncio
import contextlib
from collections.abc import Coroutine
from pathlib import Path

import uvloop

from lab.patience import until_async


def sockets() -> set[str]:
    """The sockets that this process has open."""
    links: set[str] = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            links.add(str(entry.readlink()))
    return {link for link in links if link.startswith("socket:")}


def run(work: Coroutine[object, object, None], limit: float = 60.0) -> None:
    """Run a test's work, in so many seconds, and until all is closed that it opened: the two ends of a TLS connection
    take leave of each other, for which a loop that is closed at once leaves no time.
    """

    async def limited() -> None:
        before = sockets()
        async with asyncio.timeout(limit):
            await work
        await until_async(lambda: sockets() <= before, lambda: f"{sockets() - before} are open")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(limited())
