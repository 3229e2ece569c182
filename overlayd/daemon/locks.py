"""Who may change what at the same time.

Owns: the order of requests on one resource: first come, first served.  Must not know: what a resource is; names are
compared, nothing else.
"""

from asyncio import Future, get_running_loop
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

EVERYTHING = (
    ""  # held by every change, exclusively by those that touch all (a global setup); sorts before every other name
)


class _Queue:
    """The holders of one resource and those who wait for it, in order of arrival."""

    __slots__ = ("exclusive", "holders", "waiting")

    def __init__(self) -> None:
        self.holders = 0
        self.exclusive = False
        self.waiting: deque[tuple[bool, Future[None]]] = deque()

    def free(self, exclusive: bool) -> bool:
        return not self.waiting and not self.exclusive and not (exclusive and self.holders)

    def take(self, exclusive: bool) -> None:
        self.holders += 1
        self.exclusive = exclusive

    def release(self) -> None:
        self.holders -= 1
        self.exclusive = False
        while self.waiting:
            exclusive, turn = self.waiting[0]
            if turn.cancelled():
                self.waiting.popleft()
            elif self.exclusive or (exclusive and self.holders):
                break
            else:
                self.waiting.popleft()
                self.take(exclusive)
                turn.set_result(None)


class ResourceLocks:
    """Locks by name, made when needed and gone when idle."""

    def __init__(self) -> None:
        self._queues: dict[str, _Queue] = {}

    @asynccontextmanager
    async def hold(
        self, exclusive: Iterable[str] = (), shared: Iterable[str] = (), *, everything: bool = False
    ) -> AsyncIterator[None]:
        """Hold the named resources, alone or together with others who share them, once those who asked earlier are
        done. everything: hold all there are, alone.
        """
        wanted = {EVERYTHING: everything} | dict.fromkeys(shared, False) | dict.fromkeys(exclusive, True)
        held: list[str] = []
        try:
            for name in sorted(wanted):  # always in one order, so nobody waits in a circle
                await self._acquire(name, wanted[name])
                held.append(name)
            yield
        finally:
            for name in reversed(held):
                self._release(name)

    async def _acquire(self, name: str, exclusive: bool) -> None:
        queue = self._queues.setdefault(name, _Queue())
        if queue.free(exclusive):
            queue.take(exclusive)
            return
        turn = get_running_loop().create_future()
        queue.waiting.append((exclusive, turn))
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self._release(name)  # cancelled in the moment its turn came
            raise

    def _release(self, name: str) -> None:
        queue = self._queues[name]
        queue.release()
        if not queue.holders and not queue.waiting:
            del self._queues[name]
