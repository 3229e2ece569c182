"""Following the keys of a store: a listing, then the stream of what changes, and a listing again when that breaks.

Owns: what is asked of which endpoint and when, how changes are put together without gap or repetition, and when a
listing is to be mistrusted.  Must not know: which store, connections, what keys mean; clock and chance are arguments.

    idle -> listing ---> opening -> streaming -> idle ...      by `due`, `page`, `message` and `failed`
      +-> verifying -+      ^           |
                            +- resting <+                      while more changes come than a stream is good for

A store may answer from a member that lags, and it may have been restored from a backup.  Both look alike, a revision
below one that was seen.  So other endpoints are asked first, and when all are behind, one for an answer that the whole
store agrees on: if that is behind as well, the store was restored.  It may also have gone on since then, past what was
seen.  So before a stream is taken up again the newest key that is known is asked for, as of then: another history does
not have it so; and a listing that has this key as it was before is of another history too.
"""

from collections import deque
from collections.abc import Callable
from itertools import takewhile
from typing import Literal, NamedTuple
from zlib import crc32

from overlayd.errors import OverlaydError
from overlayd.proto.store_answers import (
    Ahead,
    AuthFailed,
    Change,
    Changes,
    Compacted,
    Entry,
    Page,
    Unavailable,
    Watching,
)

# From the specification (cluster.md), seconds where nothing else is said.
PAGE = 500  # keys
SILENCE = 100.0  # without a line a stream is dead
QUIET, QUIET_SPREAD = 30.0, 15.0  # without a line a stream is to be tried by a change of our own
FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0
MOST_SPREAD, NODES_PER_SECOND = 10.0, 200  # the first try after a lost stream: not all nodes at once
HOME, HOME_SPREAD = 600.0, 1200.0  # until the first choice of endpoints is tried again
RATE_OVER = 10.0  # what a rate of changes is measured over
REST, REST_SPREAD = 2.0, 3.0  # how long a stream stays closed in a storm

# Our own constants, seconds.
PATIENCE = 30.0  # with an answer; who makes the connections has a shorter one
AT_ONCE, CROWD = 2.0, 500  # times the rate within a second that is a storm already before so many nodes
STEADY = 10.0  # a stream that lived so long was none that fails at once
DELIVERY = 10.0  # until a stream brings what was written


class Witness(NamedTuple):
    """A key that was put at a revision with a value of this check sum, in the history that is known."""

    key: str
    modified: int
    check: int


def witness_of(entry: Entry) -> Witness:
    return Witness(entry.key, entry.modified, crc32(entry.value))


def _is_contradicted(witness: Witness | None, entry: Entry) -> bool:
    """Whether this entry is not to be found where the witness is known, then or later."""
    if witness is None or entry.key != witness.key or entry.modified > witness.modified:
        return False
    return witness_of(entry) != witness


class List(NamedTuple):
    """Ask an endpoint for the keys behind `after`, at most `limit`.  revision: as of then, 0 for now.  any_member: of
    what that member knows.  number: of the question, for its answer.
    """

    number: int
    endpoint: int
    after: str
    limit: int
    revision: int
    any_member: bool


class Verify(NamedTuple):
    """Ask an endpoint for one key as of a revision; the answer is a page of that key, or an empty one."""

    number: int
    endpoint: int
    key: str
    revision: int


class Watch(NamedTuple):
    """Open the stream of changes from a revision on; it replaces an older one."""

    number: int
    endpoint: int
    revision: int


class Close(NamedTuple):
    """Close the stream."""


class Snapshot(NamedTuple):
    """Every key, as of a revision.  restored: of a store that went back to a backup, or was made again."""

    entries: tuple[Entry, ...]
    revision: int
    restored: bool
    witness: Witness | None = None


class Delta(NamedTuple):
    """What has changed since the last snapshot or delta.  witness: for a later session, as of the last snapshot too."""

    changes: tuple[Change, ...]
    revision: int
    witness: Witness | None = None


class Quiet(NamedTuple):
    """Nothing was heard for a while: a change of our own would tell whether the stream lives."""


Output = List | Verify | Watch | Close | Snapshot | Delta | Quiet
State = Literal["syncing", "connected", "disconnected"]
Chance = Callable[[], float]  # from 0 to 1


class Session:
    """endpoints: how many there are, 0 the first choice.  revision: what is known already, 0 for nothing.  witness: a
    key that is known of then, and when it was last put.

    due: when `tick` is to be called next.  state, error: for a person, and since when.
    """

    def __init__(self, endpoints: int, chance: Chance, *, revision: int = 0, witness: Witness | None = None) -> None:
        self.revision = revision
        self.witness = witness
        self.rate = 10.0  # changes a second that a stream is good for
        self.nodes = 0  # that follow the store, about
        self.endpoint = 0
        self.state: State = "disconnected"
        self.error: OverlaydError | None = None
        self.since = 0.0
        self.due = 0.0
        self.changes_seen = 0
        self.resyncs = 0
        self.windowed = False
        self.heard = 0.0  # when anything came last
        self._endpoints = endpoints
        self._chance = chance
        self._phase: Literal["idle", "listing", "verifying", "opening", "streaming", "resting"] = "idle"
        self._number = 0
        self._attempts = 0
        self._behind = 0  # endpoints one after the other that knew less than we do
        self._entries: list[Entry] = []
        self._listed = 0  # the revision of the listing under way
        self._relist = revision == 0
        self._another = False  # the store has another history than we know
        self._restored = False
        self._opened = 0.0
        self._quiet_due = 0.0
        self._home_due = 0.0
        self._owed = 0  # the revision of a change that the stream has not brought
        self._owed_due = 0.0
        self._recent: deque[tuple[float, int]] = deque()  # changes by when they came, those made together as one
        self._recent_count = 0

    def tick(self, now: float) -> list[Output]:
        """Time has passed."""
        if now < self.due:
            return []
        match self._phase:
            case "idle" | "resting":
                return self._go_on(now)
            case "listing" | "verifying" | "opening":
                return self._lose(Unavailable(f"no answer within {PATIENCE:g} s"), now)
            case "streaming":
                return self._watch_over(now)

    def page(self, number: int, page: Page, now: float) -> list[Output]:
        """The answer to a `List` or `Verify`."""
        if number != self._number or self._phase not in ("listing", "verifying"):
            return []
        self.heard = now
        if self._phase == "verifying":
            return self._verified(page, now)
        first = not self._listed
        agreed = self._behind >= self._endpoints
        if first and (page.revision < self.revision or self._another):
            if not agreed:
                return self._look_elsewhere(now)
            self._restored = True
        self._entries += page.entries
        self._listed = self._listed or page.revision
        if page.more:
            return [self._list(now)]
        self._restored |= any(_is_contradicted(self.witness, entry) for entry in self._entries)
        newest = max(self._entries, key=lambda entry: entry.modified, default=None)
        self.witness = witness_of(newest) if newest is not None else None
        snapshot = Snapshot(tuple(self._entries), self._listed, self._restored, self.witness)
        self.revision = self._listed
        self._forget_listing()
        self._relist, self._another, self._behind = False, False, 0
        self.resyncs += 1
        return [snapshot, self._watch(now)]

    def message(self, number: int, message: Watching | Changes, now: float) -> list[Output]:
        """Take a message of the stream."""
        if number != self._number or self._phase not in ("opening", "streaming"):
            return []
        self.heard = now
        self._quiet_due = now + QUIET + QUIET_SPREAD * self._chance()
        if isinstance(message, Watching):
            return self._opened_at(message.revision, now)
        new = tuple(change for change in message.changes if change.revision > self.revision)
        self.revision = max(self.revision, message.revision)
        self._set_stream_due(now)
        if not new:
            return []
        self._witness(new)
        self.changes_seen += len(new)
        count = len({change.revision for change in new})
        self._recent.append((now, count))
        self._recent_count += count
        delta = Delta(new, self.revision, self.witness)
        self.windowed = self._is_storm(now)
        # What we were behind came at once, and in a storm what comes now would come one by one.
        return [delta, *self._rest(now)] if self.windowed else [delta]

    def failed(self, number: int, error: OverlaydError, now: float) -> list[Output]:
        """A question was not answered, or the stream has ended."""
        if number != self._number or self._phase in ("idle", "resting"):
            return []
        if isinstance(error, Ahead) and self._phase == "verifying":
            return self._look_elsewhere(now)
        return self._lose(error, now)

    def written(self, revision: int, now: float) -> None:
        """What is followed was changed at this revision, by us for one: a stream that does not bring that is dead, as
        one of a member that was stopped is, whose host keeps the connection up.
        """
        if self._phase == "streaming" and revision > self.revision and self._owed <= self.revision:
            self._owed, self._owed_due = revision, now + DELIVERY
            self._set_stream_due(now)

    def measured_rate(self, now: float) -> float:
        """Changes a second, lately."""
        while self._recent and self._recent[0][0] <= now - RATE_OVER:
            self._recent_count -= self._recent.popleft()[1]
        return self._recent_count / RATE_OVER

    def list_anew(self) -> None:
        """The follower lost count: the next tick begins a listing."""
        self._relist = True
        self.due = 0.0
        self._phase = "idle"
        self._number += 1
        self._forget_listing()

    # --- from one phase to the next -----------------------------------------------------------------------------------

    def _go_on(self, now: float) -> list[Output]:
        if self._phase == "resting" and not self._relist:
            return [self._watch(now)]
        self._stand("syncing", now)
        if self._relist:
            return [self._list(now)]
        return [self._watch(now) if self.witness is None else self._verify(self.witness[0], now)]

    def _is_storm(self, now: float) -> bool:
        """Whether more changes come than a stream is good for.  Before many nodes a burst is dear from its first second
        on: they do not wait until it is one by the rate.
        """
        rate = self.measured_rate(now)
        if self.windowed or rate > self.rate:
            return rate > self.rate / 2
        if self.nodes < CROWD:
            return False
        of_late = takewhile(lambda came: came[0] > now - 1, reversed(self._recent))
        return sum(count for _, count in of_late) > AT_ONCE * self.rate

    def _verify(self, key: str, now: float) -> Verify:
        self._phase = "verifying"
        self._number += 1
        self.due = now + PATIENCE
        return Verify(self._number, self.endpoint, key, self.revision)

    def _verified(self, page: Page, now: float) -> list[Output]:
        if [witness_of(entry) for entry in page.entries] == [self.witness]:
            return [self._watch(now)]
        self._relist = self._another = True
        self._behind = self._endpoints
        return [self._list(now)]

    def _witness(self, changes: tuple[Change, ...]) -> None:
        """Remember the newest key that is there."""
        for change in changes:
            if change.entry is not None:
                self.witness = witness_of(change.entry)
            elif self.witness is not None and self.witness[0] == change.key:
                self.witness = None

    def _list(self, now: float) -> List:
        self._phase = "listing"
        self._number += 1
        self.due = now + PATIENCE
        agreed = self._behind >= self._endpoints
        after = self._entries[-1].key if self._entries else ""
        return List(self._number, self.endpoint, after, PAGE, self._listed, any_member=not agreed)

    def _watch(self, now: float) -> Watch:
        self._phase = "opening"
        self._number += 1
        self.due = now + PATIENCE
        return Watch(self._number, self.endpoint, self.revision + 1)

    def _opened_at(self, revision: int, now: float) -> list[Output]:
        if revision < self.revision:
            return self._look_elsewhere(now)
        self._behind = self._owed = 0
        self._phase = "streaming"
        self._opened = now
        self.error = None
        self._stand("connected", now)
        if self.endpoint:
            self._home_due = self._home_due or now + HOME + HOME_SPREAD * self._chance()
        else:
            self._home_due = 0.0
        self._set_stream_due(now)
        return []

    def _watch_over(self, now: float) -> list[Output]:
        """The stream is open, and it is time for something."""
        if self.windowed and now >= self._opened + RATE_OVER:
            self.windowed = False
        if now >= self.heard + SILENCE:
            return self._lose(Unavailable(f"nothing was heard for {SILENCE:g} s"), now)
        if self._owed > self.revision and now >= self._owed_due:
            return self._lose(Unavailable(f"the stream did not bring a change within {DELIVERY:g} s"), now)
        outputs: list[Output] = []
        if self._home_due and now >= self._home_due:
            self.endpoint, self._home_due = 0, 0.0
            return [Close(), self._watch(now)]
        if now >= self._quiet_due:
            self._quiet_due = now + QUIET + QUIET_SPREAD * self._chance()
            outputs.append(Quiet())
        self._set_stream_due(now)
        return outputs

    def _set_stream_due(self, now: float) -> None:
        self.due = min(self.heard + SILENCE, max(self._quiet_due, now))
        if self._owed > self.revision:
            self.due = min(self.due, max(self._owed_due, now))
        if self._home_due:
            self.due = min(self.due, max(self._home_due, now))
        if self.windowed:
            self.due = min(self.due, max(self._opened + RATE_OVER, now))

    def _rest(self, now: float) -> list[Output]:
        self._phase = "resting"
        self._number += 1
        self.due = now + REST + REST_SPREAD * self._chance()
        return [Close()]

    def _look_elsewhere(self, now: float) -> list[Output]:
        """A member knows less than we do."""
        self._behind += 1
        self._next_endpoint()
        self._relist = self._relist or self._behind >= self._endpoints
        self._forget_listing()
        if self._relist:
            return [Close(), self._list(now)]
        return [Close(), self._verify(self.witness[0], now) if self.witness is not None else self._watch(now)]

    def _lose(self, error: OverlaydError, now: float) -> list[Output]:
        lived = self._phase == "streaming" and now >= self._opened + STEADY
        if lived:
            self._attempts = 0
        self.error = error
        self._stand("disconnected", now)
        self._forget_listing()
        self._phase = "idle"
        self._number += 1
        if isinstance(error, Compacted):
            self._relist = True
        renew = isinstance(error, AuthFailed) and error.expired and not self._attempts
        if not renew and not isinstance(error, Compacted):
            self._next_endpoint()
        if self._attempts:
            wait = min(FIRST_DELAY * 2 ** min(self._attempts - 1, 16), LONGEST_DELAY)
        else:
            wait = 0.0 if renew else min(MOST_SPREAD, self.nodes / NODES_PER_SECOND)
        self._attempts += 1
        self.due = now + wait * self._chance()
        return [Close()]

    def _next_endpoint(self) -> None:
        self.endpoint = (self.endpoint + 1) % self._endpoints

    def _forget_listing(self) -> None:
        self._entries, self._listed, self._restored = [], 0, False

    def _stand(self, state: State, now: float) -> None:
        if state != self.state:
            self.state, self.since = state, now
