"""A change's steps on their way from the thread that made it durable to the one that does them, and back to the loop.

Owns: the future that tells of their end, and that nobody gives them up before.  Must not know: how they are done, or by
which thread.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

from overlayd import fault
from overlayd.daemon.change.apply import HalfDone
from overlayd.errors import StateError
from overlayd.model.objects import Step


class _End(asyncio.Future[None]):
    """What a thread resolves, which cannot be stopped: a task that waits for it is cancelled when that is over."""

    def cancel(self, msg: object = None) -> bool:
        return False


class Work:
    """Steps that are done once they are begun.  done: their end, with what `Kernel.apply` raises, or with the
    StateError of a disk that refused them before.  put: has them done, called from any thread.
    """

    def __init__(self, put: Callable[[Sequence[Step], asyncio.Future[None]], None], steps: Sequence[Step]) -> None:
        self.steps = steps
        self.done = _End(loop=asyncio.get_running_loop())
        self._put = put

    def begin(self) -> None:
        """Have the steps done.  Any thread may call."""
        fault.point("node:journaled")
        self._put(self.steps, self.done)


def resolve(done: asyncio.Future[None], ended: Future[None]) -> None:
    """Tell the loop how a worker thread's work ended."""
    error = ended.exception()
    settle = partial(done.set_result, None) if error is None else partial(done.set_exception, error)
    done.get_loop().call_soon_threadsafe(settle)


async def end(work: Work) -> None:
    """Wait for the end of steps.  A caller who is cancelled meanwhile is told then, and has to undo all of it."""
    try:
        await work.done
    except asyncio.CancelledError as cancelled:
        failure = work.done.exception()
        if isinstance(failure, StateError):
            raise failure from None
        raise HalfDone(cancelled, failure.done if isinstance(failure, HalfDone) else work.steps) from None


async def wait_out(done: asyncio.Future[None]) -> None:
    """Wait for what cannot be stopped and was not begun as work; a caller who is cancelled meanwhile is cancelled
    then.
    """
    try:
        await asyncio.wait([done])
    except asyncio.CancelledError:
        await asyncio.wait([done])
        if (task := asyncio.current_task()) is not None:
            task.cancel()
    done.result()
