"""Connections that nobody uses, and which of them gives way when there are too many.

Owns: since when each is idle, and the order.  Must not know: how many there may be (`acceptor`).

Of the process that has most of them the one that has been idle longest goes first, and none of a process that has less
than its share.  So who keeps one, to hear of events or until it has something to ask, is spared while somebody else
opens hundreds.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Collection
from typing import Generic, Protocol, TypeVar

from overlayd.daemon.server.listener import Credentials

# Our own: seconds after which a connection counts as idle; who has just come may be about to ask.
IDLE = 1.0


class Party(Protocol):
    """A connection, as it is looked at here."""

    credentials: Credentials
    paid_until: int  # grows with each message
    seen: int  # what that was at the latest look; kept here
    quiet_since: float  # the look at which it had grown last, or when the connection was made; kept here

    @property
    def is_idle(self) -> bool:
        """Whether it holds nothing that came or has to go, works on nothing, and is not watched."""


P = TypeVar("P", bound=Party)


class Idle(Generic[P]):
    """Which connection has sent nothing for longest.  connections: those there are, a collection that others change."""

    def __init__(self, connections: Collection[P]) -> None:
        self._connections = connections
        self._now = 0.0
        self._queues: dict[int | None, deque[P]] = {}  # by user, None: of all; made when asked for

    def look(self, now: float) -> None:
        """See who has sent something since the last look; about once a second."""
        self._now = now
        self._queues.clear()
        for each in self._connections:
            if each.paid_until != each.seen:
                each.seen = each.paid_until
                each.quiet_since = now

    def first(self, uid: int | None = None) -> P | None:
        """Who gives way, of this user's or of all, None: nobody can."""
        if uid not in self._queues:
            self._queues[uid] = self._queue(uid)
        queue = self._queues[uid]
        while queue and not (queue[0] in self._connections and self._may_go(queue[0])):
            queue.popleft()
        return queue[0] if queue else None

    def _may_go(self, one: P) -> bool:
        return one.paid_until == one.seen and one.is_idle

    def _queue(self, uid: int | None) -> deque[P]:
        processes: defaultdict[tuple[int, int], list[P]] = defaultdict(list)
        held: Counter[tuple[int, int]] = Counter()
        for each in self._connections:
            client = each.credentials
            if uid not in (None, client.uid):
                continue
            held[client.uid, client.pid] += 1
            if self._now - each.quiet_since >= IDLE and self._may_go(each):
                processes[client.uid, client.pid].append(each)
        share = -(-held.total() // (len(held) + 1))  # of each process, and of the one that comes
        ranked: list[tuple[int, float, P]] = []
        for process, idle in processes.items():
            idle.sort(key=lambda one: one.quiet_since)
            over = idle[: held[process] - share + 1]
            ranked += [(at - held[process], one.quiet_since, one) for at, one in enumerate(over)]
        ranked.sort(key=lambda rank: rank[:2])
        return deque(one for _, _, one in ranked)
