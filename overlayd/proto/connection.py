"""The order of the answers on one connection.

Owns: which requests of a client are being worked on, which answers wait for them, and what is kept for a client that
does not read.  Must not know: what a request is, bytes, or sockets.

Three kinds of messages leave:

- A change is answered when it is done, whatever was asked before or after it.
- Any other request is answered in its turn: after all changes that the client asked for before it, and after all other
  requests that it asked before it.  No such answer is made while the client does not read.
- An event leaves at once.  While the client does not read, only the newest event about each subject is kept.
"""

from collections import deque
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

To = TypeVar("To")
Asked = TypeVar("Asked")


class AnswerOrder(Generic[To, Asked]):
    """The requests of one client that are not answered yet.

    To: where an answer goes, such as the number of a request.  Asked: what is answered in its turn.  most_events: how
    many events are kept for a client that does not read; then the oldest is dropped.

    in_flight: how many requests are not answered yet.  reads: whether the client takes what is sent; set by whoever
    owns the transport, which calls `due` and `kept_events` when the client reads again.
    """

    __slots__ = ("_changes", "_events", "_held", "_most_events", "_newest", "in_flight", "reads")

    def __init__(self, most_events: int) -> None:
        self.in_flight = 0
        self.reads = True
        self._most_events = most_events
        self._newest = 0  # the number of the last change
        self._changes: dict[int, To] = {}  # those in flight by number, oldest first
        self._held: deque[tuple[int, To, Asked]] = deque()  # each behind the change of that number
        self._events: dict[Hashable, bytes] = {}

    def change(self, to: To) -> int:
        """Begin a change.  Returns its number, for `done`."""
        self.in_flight += 1
        self._newest += 1
        self._changes[self._newest] = to
        return self._newest

    def done(self, number: int) -> bool:
        """End a change: it is to be answered now, and then what `due` gives.  False: it was given up before, and has
        been answered.
        """
        if self._changes.pop(number, None) is None:
            return False
        self.in_flight -= 1
        return True

    def hold(self, to: To, asked: Asked) -> bool:
        """Keep a request until its turn.  False: its turn is now, and it is not kept."""
        if not self.in_flight and self.reads:
            return False
        self.in_flight += 1
        self._held.append((self._newest, to, asked))
        return True

    def due(self) -> Iterator[tuple[To, Asked]]:
        """The kept requests whose turn it is, in the order in which they were asked.  The iteration ends early when an
        answer makes the client stop reading.
        """
        held, changes = self._held, self._changes
        while held and self.reads and not (changes and next(iter(changes)) <= held[0][0]):
            _, to, asked = held.popleft()
            self.in_flight -= 1
            yield to, asked

    def give_up(self) -> list[To]:
        """End every change before it is done.  Returns where the answers go; then comes what `due` gives."""
        given_up = list(self._changes.values())
        self.in_flight -= len(given_up)
        self._changes.clear()
        return given_up

    @property
    def is_owed(self) -> bool:
        """Whether the client is owed answers that it would read."""
        return bool(self._changes) or (self.in_flight > 0 and self.reads)

    def keep_event(self, subject: Hashable, event: bytes) -> None:
        """Keep an event until the client reads, in place of an earlier one about the same subject."""
        self._events.pop(subject, None)
        self._events[subject] = event
        if len(self._events) > self._most_events:
            del self._events[next(iter(self._events))]

    def kept_events(self) -> list[bytes]:
        """Take the kept events, oldest first."""
        events = list(self._events.values())
        self._events.clear()
        return events

    def drop(self) -> None:
        """Forget what would still be sent: the connection is closed.  Changes go on."""
        self._held.clear()
        self._events.clear()
