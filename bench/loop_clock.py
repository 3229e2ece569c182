"""The daemon with a clock on its event loop: `command(FILE)`, followed by the daemon's own options.

Owns: how long the loop was kept, in processor time, which other programs of the machine do not lengthen.  Must not
know: what kept it.

Every millisecond the loop notes how much processor time its thread and the whole process have had; what was more than
NOTED since the last look goes to FILE.  The thread's is what the loop did itself in between; the process's holds what
other threads did, for whose end the loop may have waited (the interpreter's lock), or beside which it rested.
"""

import asyncio
import os
import sys
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from struct import Struct
from typing import Any, NamedTuple

INTERVAL = 0.001  # seconds between two looks
NOTED = 0.002  # seconds
RECORD = Struct("=ddd")


class Turn(NamedTuple):
    """at: when it ended, of the monotonic clock.  thread, process: seconds of a processor."""

    at: float
    thread: float
    process: float


def command(file: Path) -> list[str]:
    """The command line of the daemon that writes that file."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import loop_clock; loop_clock.main()"
    return [sys.executable, "-c", code, str(file)]


def turns(file: Path, since: float) -> Iterator[Turn]:
    """Those that were noted since a moment of the monotonic clock."""
    return (turn for turn in map(Turn._make, RECORD.iter_unpack(file.read_bytes())) if turn.at > since)


async def _watch(descriptor: int) -> None:
    thread, process = time.thread_time(), time.process_time()
    while True:
        await asyncio.sleep(INTERVAL)
        thread_now, process_now = time.thread_time(), time.process_time()
        turn = Turn(time.monotonic(), thread_now - thread, process_now - process)
        if max(turn.thread, turn.process) > NOTED:
            os.write(descriptor, RECORD.pack(*turn))
        thread, process = thread_now, process_now


def main() -> None:
    """Be the daemon."""
    import uvloop  # noqa: PLC0415 - who reads the file needs neither

    from overlayd.cli import daemon  # noqa: PLC0415

    descriptor = os.open(sys.argv.pop(1), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    run = uvloop.run

    async def clocked(serve: Coroutine[Any, Any, int]) -> int:
        watch = asyncio.create_task(_watch(descriptor))
        try:
            return await serve
        finally:
            watch.cancel()

    def run_clocked(serve: Coroutine[Any, Any, int]) -> int:
        return run(clocked(serve))

    uvloop.run = run_clocked  # type: ignore[assignment]
    daemon()
