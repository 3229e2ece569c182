"""Who may change what at the same time.

Owns: the order of requests on one resource: first come, first served.  Must not know: what a resource is; names are
compared, nothing else.

A request queues for all its resources in one instant, so the order of arrival is the same in every queue: nobody
waits in a circle, and nobody overtakes.
"""

from asyncio import Future, get_running_loop
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager

EVERYTHING = ""  # held by every request, exclusively by one that touches all there is


class _Ticket:
    """A request in its queues, while it is entered, which it is once.  wanted: the names of the resources, and whether
    it wants each alone.  missing: how many of them it does not hold yet.
    """

    __slots__ = ("missing", "queues", "turn", "wanted")

    def __init__(self, queues: "dict[str, _Queue]", wanted: dict[str, bool]) -> None:
        self.queues = queues
        self.wanted = wanted
        self.missing = 0
        self.turn: Future[None] | None = None

    async def __aenter__(self) -> None:
        for name, alone in self.wanted.items():
            queue = self.queues.get(name)
            if queue is None:
                queue = self.queues[name] = _Queue()
            queue.add(self, alone)
        if self.missing:
            self.turn = get_running_loop().create_future()
            try:
                await self.turn
            except BaseException:
                self._leave()
                raise

    async def __aexit__(self, *_error: object) -> None:
        self._leave()

    def _leave(self) -> None:
        for name in self.wanted:
            queue = self.queues[name]
            queue.remove(self)
            if not queue.holders and not queue.waiting:
                del self.queues[name]

    def granted(self) -> None:
        self.missing -= 1
        if not self.missing and self.turn is not None and not self.turn.done():
            self.turn.set_result(None)


class _Queue:
    """Those who hold one resource, and those who wait for it in order of arrival; the values say who wants it alone."""

    __slots__ = ("alone", "holders", "waiting")

    def __init__(self) -> None:
        self.holders: set[_Ticket] = set()
        self.alone = False
        self.waiting: dict[_Ticket, bool] = {}

    def add(self, ticket: _Ticket, alone: bool) -> None:
        ticket.missing += 1
        self.waiting[ticket] = alone
        self._grant()

    def remove(self, ticket: _Ticket) -> None:
        self.waiting.pop(ticket, None)
        self.holders.discard(ticket)
        self._grant()

    def _grant(self) -> None:
        if not self.holders:
            self.alone = False
        while self.waiting and not self.alone:
            ticket, alone = next(iter(self.waiting.items()))
            if alone and self.holders:
                break
            del self.waiting[ticket]
            self.holders.add(ticket)
            self.alone = alone
            ticket.granted()


class ResourceLocks:
    """Locks by name, made when needed and gone when idle."""

    def __init__(self) -> None:
        self._queues: dict[str, _Queue] = {}

    def is_settled(self, names: Iterable[str]) -> bool:
        """Whether nobody who may change what these names stand for is at work or ahead in the queue."""
        queues = [self._queues[name] for name in names if name in self._queues]
        return not any(queue.alone or queue.waiting for queue in queues)

    def hold(
        self, exclusive: Iterable[str] = (), shared: Iterable[str] = (), *, everything: bool = False
    ) -> AbstractAsyncContextManager[None]:
        """Hold the named resources, alone or together with others who share them, once those who asked earlier are
        done.  everything: hold all there are, alone.
        """
        wanted = dict.fromkeys(shared, False) | dict.fromkeys(exclusive, True) | {EVERYTHING: everything}
        return _Ticket(self._queues, wanted)
