"""Who gives way when there is no more room: fair shares of a bounded number of places.

Owns: what has a place, by where it came in and by client, and which one is displaced.  Must not know: what it is.

Nobody is refused, and nobody has more than his share while others want theirs: a newcomer displaces the oldest of the
client that has most, at the way in that has most.  So a way in is not starved by another one, whatever source addresses
are forged there; and at one way in those that leave soon outlive those that wait for what never comes.
"""

from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Shares(Generic[T]):
    """limit: how many places there are."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._where: dict[T, tuple[Hashable, Hashable]] = {}
        # Each client's are in the order in which they came, or were last touched.
        self._held: dict[Hashable, dict[Hashable, dict[T, None]]] = {}
        self._count: dict[Hashable, int] = {}  # by way in

    def __len__(self) -> int:
        return len(self._where)

    def add(self, item: T, ingress: Hashable, client: Hashable) -> T | None:
        """Give a place to `item`; return the one that has lost his, if any.  It may be `item` if there are none."""
        self._where[item] = (ingress, client)
        self._held.setdefault(ingress, {}).setdefault(client, {})[item] = None
        self._count[ingress] = self._count.get(ingress, 0) + 1
        if len(self._where) <= self._limit:
            return None
        most = max(self._count, key=self._count.__getitem__)
        largest = max(self._held[most].values(), key=len)
        displaced = next(iter(largest))
        self.remove(displaced)
        return displaced

    def touch(self, item: T) -> None:
        """Let `item` be the newest of its client; one without a place is no error."""
        if item not in self._where:
            return
        ingress, client = self._where[item]
        held = self._held[ingress][client]
        del held[item]
        held[item] = None

    def remove(self, item: T) -> None:
        """Take a place back; an item without one is no error."""
        where = self._where.pop(item, None)
        if where is None:
            return
        ingress, client = where
        clients = self._held[ingress]
        del clients[client][item]
        if not clients[client]:
            del clients[client]
        self._count[ingress] -= 1
        if not self._count[ingress]:
            del self._count[ingress], self._held[ingress]
