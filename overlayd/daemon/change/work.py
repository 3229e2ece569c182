"""A change's steps on their way from the thread that made it durable to the one that does them, and back to the loop.

Owns: the future that tells of their end.  Must not know: how they are done, or by which thread.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

from overlayd import fault
from overlayd.daemon.change.apply import HalfDone
from overlayd.model.objects import Step


class Work:
    """Steps that are done once they are begun.  done: their end, with what `Kernel.apply` raises.  put: has them done,
    called from any thread.
    """

    def __init__(self, put: Callable[[Sequence[Step], asyncio.Future[None]], None], steps: Sequence[Step]) -> None:
        self.steps = steps
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._put = put

    def begin(self) -> None:
        """Any thread may call."""
        fault.point("node:journaled")
        self._put(self.steps, self.done)


def resolve(done: asyncio.Future[None], ended: Future[None]) -> None:
    """Tell the loop how a worker thread's work ended."""
    error = ended.exception()
    settle = partial(done.set_result, None) if error is None else partial(done.set_exception, error)
    done.get_loop().call_soon_threadsafe(settle)


async def end(done: asyncio.Future[None], steps: Sequence[Step]) -> None:
    """The end of steps.  A thread cannot be stopped: whoever is cancelled waits for it, and all is to be undone."""
    try:
        await asyncio.wait([done])
    except asyncio.CancelledError as cancelled:
        await asyncio.wait([done])
        failure = done.exception()
        raise HalfDone(cancelled, failure.done if isinstance(failure, HalfDone) else steps) from None
    done.result()
