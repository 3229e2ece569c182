"""Lanes: a thread each, which does together what waits for it.

Owns: who waits, and that each hears what became of it.  Must not know: what is done.

One container's way through the kernel costs a fraction of what waking a thread for it does, and of what threads cost
that want the interpreter's lock at the same time.
"""

import asyncio
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Generic, TypeVar

from overlayd.linux import threads

T = TypeVar("T")

_Waiting = tuple[T, asyncio.Future[None]]


class Lane(Generic[T]):
    """work: does things and returns what has kept each from being done.  most: how many it takes at once."""

    def __init__(self, name: str, work: Callable[[Sequence[T]], Sequence[Exception | None]], most: int) -> None:
        self._work = work
        self._most = most
        self._queue: SimpleQueue[_Waiting[T] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name=name, daemon=True)
        threads.start(self._thread)

    def put(self, thing: T, done: asyncio.Future[None]) -> None:
        """Have a thing done, after those that were put before; resolves `done`, which is of a running loop.  Any thread
        may call.
        """
        self._queue.put((thing, done))

    def close(self) -> None:
        """Finish what waits, and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        more = True
        while more:
            waiting, more = self._take()
            if waiting:
                refusals = self._do([thing for thing, _ in waiting])
                ended = [(done, refusal) for (_, done), refusal in zip(waiting, refusals, strict=True)]
                ended[0][0].get_loop().call_soon_threadsafe(_settle, ended)

    def _take(self) -> tuple[list[_Waiting[T]], bool]:
        """What waits, some at most, and whether more may come."""
        waiting: list[_Waiting[T]] = []
        while len(waiting) < self._most:
            try:
                found = self._queue.get(block=not waiting)
            except Empty:
                break
            if found is None:
                return waiting, False
            waiting.append(found)
        return waiting, True

    def _do(self, things: Sequence[T]) -> Sequence[Exception | None]:
        try:
            return self._work(things)
        except Exception as error:  # a bug: those who wait must hear of it, and the thread must live on
            return [error] * len(things)


def _settle(ended: Sequence[tuple[asyncio.Future[None], Exception | None]]) -> None:
    for done, refusal in ended:
        if done.done():
            continue  # cancelled: nobody waits
        if refusal is None:
            done.set_result(None)
        else:
            done.set_exception(refusal)
