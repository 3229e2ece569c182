"""Tasks that nobody waits for, and where they end.

Owns: every such task from its start to its end, and what a bug in one does.  Must not know: what the tasks do.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

log = logging.getLogger(__name__)

# Our own constant: seconds before work that failed starts over, so that a lasting cause does not fill the log.
PAUSE = 1.0

Work = Coroutine[Any, Any, None]
Spawn = Callable[[Work], asyncio.Task[None]]  # Tasks.spawn
KeepUp = Callable[[Callable[[], Work]], asyncio.Task[None]]  # Tasks.keep_up


class Tasks:
    """An async context manager.  At the end of its block it waits for all tasks, also for those that the last ones
    start; when the block fails, it cancels them first.  Who starts a task may cancel it at any time.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Tasks":
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def spawn(self, work: Work) -> asyncio.Task[None]:
        """Start a task.  A bug in it is logged, and ends neither the daemon nor other tasks."""
        return self._start(work, self._ended)

    def keep_up(self, watch: Callable[[], Work]) -> asyncio.Task[None]:
        """Start work that is done when it returns.  After a bug it starts over."""
        return self._start(_kept_up(watch), self._tasks.discard)

    def cancel(self) -> None:
        """Cancel all tasks."""
        for task in self._tasks:
            task.cancel()

    def _start(self, work: Work, ended: Callable[[asyncio.Task[None]], object]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("background work failed", exc_info=error)


async def _kept_up(watch: Callable[[], Work]) -> None:
    while True:
        try:
            return await watch()
        except Exception:
            log.exception("background work failed, and starts again in %g s", PAUSE)
        await asyncio.sleep(PAUSE)
