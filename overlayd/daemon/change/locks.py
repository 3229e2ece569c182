"""Who may change what at the same time.

Owns: the order of requests on one resource: first come, first served.  Must not know: what a resource is; names are
compared, nothing else.

A request queues for all its resources in one instant, so the order of arrival is the same in every queue: nobody
waits in a circle, and nobody overtakes.
"""

from asyncio import Future, get_running_loop
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

EVERYTHING = ""  # held by every request, exclusively by one that touches all there is


class _Ticket:
    """A request in its queues.  missing: how many of them it does not hold yet."""

    __slots__ = ("missing", "turn")

    def __init__(self) -> None:
        self.missing = 0
        self.turn: Future[None] | None = None

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

    @asynccontextmanager
    async def hold(
        self, exclusive: Iterable[str] = (), shared: Iterable[str] = (), *, everything: bool = False
    ) -> AsyncIterator[None]:
        """Hold the named resources, alone or together with others who share them, once those who asked earlier are
        done.  everything: hold all there are, alone.
        """
        wanted = dict.fromkeys(shared, False) | dict.fromkeys(exclusive, True) | {EVERYTHING: everything}
        ticket = _Ticket()
        for name, alone in wanted.items():
            self._queues.setdefault(name, _Queue()).add(ticket, alone)
        try:
            if ticket.missing:
                ticket.turn = get_running_loop().create_future()
                await ticket.turn
            yield
        finally:
            for name in wanted:
                queue = self._queues[name]
                queue.remove(ticket)
                if not queue.holders and not queue.waiting:
                    del self._queues[name]
