"""The session: whatever a store does, what its follower knows is what the store has, in the end and without steps back.

`World` is a slow and obvious store: a list of all changes there ever were, members that know a part of them, streams
that break, histories that are compacted, and backups that are put back.
"""

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayd.proto import store
from overlayd.proto.store import Close, Delta, List, Output, Quiet, Session, Snapshot, Verify, Watch
from overlayd.proto.store_answers import (
    Ahead,
    AuthFailed,
    Change,
    Changes,
    Compacted,
    Entry,
    Page,
    StoreError,
    Unavailable,
    Watching,
)

MEMBERS = 3


class World:
    """lag: by how many changes each member is behind; down: members that do not answer; mute: their streams say
    nothing though they are open.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.history: list[Change] = []
        self.first = 1  # the oldest revision that is not compacted
        self.lag = [0] * MEMBERS
        self.down = [False] * MEMBERS
        self.mute = False
        self.reset = False  # the stream is dead, and that is noticed when anything is heard
        self.now = 0.0
        self.session = Session(MEMBERS, self.random.random)
        self.stream: tuple[Watch, int] | None = None  # and up to which revision it has told
        self.questions: list[tuple[float, List | Verify | Watch]] = []
        self.known: dict[str, bytes] = {}
        self.told_revision = 0
        self.restored = 0
        self.quiet = 0
        self.opened: list[float] = []
        self.deltas = 0

    # -- the store -----------------------------------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        return self.history[-1].revision if self.history else 1

    def put(self, key: str, value: bytes | None) -> None:
        revision = self.revision + 1
        self.history.append(Change(key, Entry(key, value, 1, revision) if value is not None else None, revision))

    def at(self, revision: int) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        for change in self.history:
            if change.revision <= revision:
                if change.entry is None:
                    found.pop(change.key, None)
                else:
                    found[change.key] = change.entry
        return found

    def restore(self) -> None:
        """A backup is put back, which takes a while, and the store goes on from there; no stream lives through that."""
        self.reset = self.stream is not None
        self.down = [True] * MEMBERS
        self.step(7)
        del self.history[self.random.randrange(len(self.history) + 1) :]
        self.first = min(self.first, self.revision)
        for number in range(self.random.randrange(30)):
            self.put("n", b"new %d" % number)
        self.down = [False] * MEMBERS

    def known_to(self, member: int) -> int:
        seen = self.history[: len(self.history) - self.lag[member]] if self.lag[member] else self.history
        return seen[-1].revision if seen else 1

    # -- the follower --------------------------------------------------------------------------------------------------

    def do(self, outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case List() | Verify() | Watch():
                    self.questions.append((self.now + self.random.random() * 0.1, output))
                case Close():
                    self.stream = None
                case Quiet():
                    self.quiet += 1
                    self.put("pulse", b"%d" % self.random.getrandbits(60))
                case Snapshot():
                    assert output.restored or output.revision >= self.told_revision
                    self.restored += output.restored
                    self.known = {entry.key: entry.value for entry in output.entries}
                    self.told_revision = output.revision
                case Delta():
                    self.deltas += 1
                    assert output.revision > self.told_revision
                    for change in output.changes:
                        assert self.told_revision < change.revision <= output.revision
                        if change.entry is None:
                            self.known.pop(change.key, None)
                        else:
                            self.known[change.key] = change.entry.value
                    self.told_revision = output.revision

    def answer(self, asked: List | Verify | Watch) -> None:
        if self.down[asked.endpoint]:
            self.do(self.session.failed(asked.number, Unavailable("down"), self.now))
            return
        knows = self.known_to(asked.endpoint)
        if isinstance(asked, Verify):
            if asked.revision > knows:
                self.do(self.session.failed(asked.number, Ahead("future"), self.now))
            elif asked.revision < self.first:
                self.do(self.session.failed(asked.number, Compacted(self.first), self.now))
            else:
                entry = self.at(asked.revision).get(asked.key)
                self.do(self.session.page(asked.number, Page((entry,) if entry else (), knows), self.now))
            return
        if isinstance(asked, Watch):
            self.opened.append(self.now)
            if asked.revision < self.first:
                self.do(self.session.failed(asked.number, Compacted(self.first), self.now))
                return
            self.stream, self.reset = (asked, asked.revision - 1), False
            self.do(self.session.message(asked.number, Watching(knows), self.now))
            return
        revision = asked.revision or (knows if asked.any_member else self.revision)
        if asked.revision and asked.revision < self.first:
            self.do(self.session.failed(asked.number, Compacted(self.first), self.now))
            return
        keys = sorted(key for key in self.at(revision) if key > asked.after)
        limit = 2  # pages of two keys
        entries = tuple(self.at(revision)[key] for key in keys[:limit])
        header = knows if asked.any_member else self.revision
        self.do(self.session.page(asked.number, Page(entries, header, len(keys) > limit), self.now))

    def step(self, seconds: float) -> None:
        """Let time pass, in small steps."""
        end = self.now + seconds
        while self.now < end:
            self.now += 0.1
            for question in [each for each in self.questions if each[0] <= self.now]:
                self.questions.remove(question)
                self.answer(question[1])
            if self.stream is not None and not self.mute:
                asked, told = self.stream
                if self.down[asked.endpoint] or self.reset:
                    self.reset = False
                    self.do(self.session.failed(asked.number, Unavailable("reset"), self.now))
                else:
                    knows = self.known_to(asked.endpoint)
                    news = tuple(each for each in self.history if told < each.revision <= knows)
                    if news:
                        self.stream = (asked, knows)
                        self.do(self.session.message(asked.number, Changes(news, knows), self.now))
            self.do(self.session.tick(self.now))

    def heal(self) -> None:
        self.lag, self.down, self.mute = [0] * MEMBERS, [False] * MEMBERS, False


FAULTS: dict[str, Callable[[World], None]] = {
    "put": lambda world: world.put(world.random.choice("abcdef"), b"%d" % world.revision),
    "burst": lambda world: [world.put(world.random.choice("abcdef"), b"%d" % n) for n in range(120)] and None,
    "remove": lambda world: world.put(world.random.choice("abcdef"), None),
    "down": lambda world: world.down.__setitem__(world.random.randrange(MEMBERS), True),
    "all down": lambda world: setattr(world, "down", [True] * MEMBERS),
    "up": lambda world: setattr(world, "down", [False] * MEMBERS),
    "lag": lambda world: world.lag.__setitem__(world.random.randrange(MEMBERS), world.random.randrange(4)),
    "mute": lambda world: setattr(world, "mute", True),
    "compact": lambda world: setattr(world, "first", world.revision),
    "restore": lambda world: world.restore(),
    "wait": lambda world: world.step(40),
}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.sampled_from(sorted(FAULTS)), max_size=12))
def test_in_the_end_the_follower_knows_what_the_store_has(seed: int, faults: list[str]) -> None:
    world = World(seed)
    world.put("a", b"0")
    for fault in faults:
        FAULTS[fault](world)
        world.first = min(world.first, world.revision)
        world.step(world.random.choice((0.1, 1.0, 5.0)))
    world.heal()
    world.step(160)
    while world.told_revision != world.revision and world.now < 10_000:
        world.step(0.1)
    assert world.session.state == "connected"
    expected = {key: entry.value for key, entry in world.at(world.revision).items()}
    assert world.known == expected
    assert world.told_revision == world.revision
    assert not world.restored or "restore" in faults


def opened() -> tuple[World, Session]:
    world = World(1)
    world.put("a", b"0")
    world.step(1)
    assert world.session.state == "connected"
    return world, world.session


def test_a_store_that_went_back_is_listed_as_such() -> None:
    world, session = opened()
    for number in range(9):
        world.put("b", b"%d" % number)
    world.step(1)
    del world.history[3:]
    world.down = [True] * MEMBERS
    world.step(1)
    world.down = [False] * MEMBERS
    world.step(60)
    assert world.restored == 1
    assert world.known == {key: entry.value for key, entry in world.at(world.revision).items()}
    assert session.revision == world.revision


def test_one_member_that_lags_is_no_reason_to_list() -> None:
    world, session = opened()
    for number in range(5):
        world.put("b", b"%d" % number)
    world.step(1)
    world.lag[1] = 3
    world.down[0] = True
    world.step(40)
    assert (session.resyncs, world.restored) == (1, 0)
    assert world.known["b"] == b"4"


def test_a_silent_stream_is_given_up_after_100_seconds_and_tried_before() -> None:
    world, session = opened()
    world.mute = True
    world.step(95)
    assert session.state == "connected"
    assert world.quiet in (2, 3)
    world.step(10)
    assert world.opened[-1] > 90


def test_a_stream_that_does_not_bring_what_was_written_is_given_up_after_10_seconds() -> None:
    world, session = opened()
    world.mute = True
    world.put("b", b"1")
    session.written(world.revision, world.now)
    world.step(8)
    assert len(world.opened) == 1
    world.step(4)
    assert len(world.opened) == 2
    world.mute = False
    world.step(1)
    assert world.known["b"] == b"1"
    world.put("b", b"2")
    session.written(world.revision, world.now)
    world.step(12)
    assert len(world.opened) == 2


def test_a_pulse_keeps_an_idle_stream() -> None:
    world, _session = opened()
    world.step(400)
    assert len(world.opened) == 1
    assert 400 / 45 - 1 <= world.quiet <= 400 / 30


def test_a_storm_is_read_in_windows_and_then_as_a_stream_again() -> None:
    world, session = opened()
    while not session.windowed:
        world.put("b", b"1")
        world.step(0.05)
    before, deltas, began = len(world.opened), world.deltas, world.now
    for _ in range(600):
        world.put("b", b"2")
        world.put("b", b"3")
        world.step(0.05)
    assert session.windowed
    # Two in each step of the world, which is a tenth of a second; what a window has not brought yet is not counted.
    assert 20 * (1 - 5.6 / store.RATE_OVER) <= session.measured_rate(world.now) <= 20 * (1 + 5.6 / store.RATE_OVER)
    windows = len(world.opened) - before
    # One message of all that a window is behind, and none of what would come one by one.
    assert world.deltas - deltas <= windows
    passed = world.now - began
    assert passed / 5.6 - 1 <= windows <= passed / 2 + 1
    during = len(world.opened)
    world.step(30)
    assert not session.windowed
    assert world.known == {key: entry.value for key, entry in world.at(world.revision).items()}
    # One window brings the rest, and the next one, which brings nothing, is the stream from then on.
    assert len(world.opened) - during <= 2
    assert session.measured_rate(world.now) == 0
    after = len(world.opened)
    world.step(20)
    assert len(world.opened) == after


def test_a_burst_is_a_storm_at_once_before_many_nodes_only() -> None:
    brought = {}
    for nodes in (store.CROWD - 1, store.CROWD):
        world, session = opened()
        session.nodes, before = nodes, world.told_revision
        while not session.windowed:
            for _ in range(5):
                world.put("b", b"1")
            world.step(0.1)
        brought[nodes] = world.told_revision - before
    enough = store.AT_ONCE * session.rate
    assert enough < brought[store.CROWD] <= enough + 10
    assert brought[store.CROWD - 1] > store.RATE_OVER * session.rate


def test_before_many_nodes_a_change_now_and_then_is_no_storm() -> None:
    world, session = opened()
    session.nodes = 5000
    for _ in range(60):
        for _ in range(9):
            world.put("b", b"1")
        world.step(1)
        assert not session.windowed
    assert len(world.opened) == 1


def test_tries_come_slower_and_never_faster_than_at_first() -> None:
    session = Session(1, lambda: 1.0)
    now, waits = 0.0, []
    for _ in range(10):
        asked = session.tick(now)[-1]
        assert isinstance(asked, List)
        session.failed(asked.number, Unavailable("x"), now)
        waits.append(session.due - now)
        now = session.due
    assert waits == [0.0, 0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_many_nodes_do_not_come_back_at_once() -> None:
    session = Session(1, lambda: 1.0)
    session.nodes = 5000
    asked = session.tick(0.0)[-1]
    assert isinstance(asked, List)
    session.failed(asked.number, Unavailable("x"), 0.0)
    assert session.due == store.MOST_SPREAD


def test_an_expired_token_is_renewed_at_once_and_at_the_same_endpoint() -> None:
    session = Session(MEMBERS, lambda: 1.0)
    for expected in [0, 0, 1, 2]:
        asked = session.tick(session.due)[-1]
        assert isinstance(asked, List)
        assert asked.endpoint == expected
        session.failed(asked.number, AuthFailed("token", expired=True), session.due)


def test_answers_to_older_questions_are_passed_over() -> None:
    session = Session(1, lambda: 0.5)
    first = session.tick(0.0)[-1]
    assert isinstance(first, List)
    session.failed(first.number, Unavailable("x"), 0.0)
    second = session.tick(session.due)[-1]
    assert isinstance(second, List)
    assert session.page(first.number, Page((), 9), 1.0) == []
    assert session.failed(first.number, Unavailable("x"), 1.0) == []
    assert session.page(second.number, Page((), 9), 1.0) != []


def test_an_answer_that_does_not_come_is_a_failure_and_the_next_endpoint_is_asked() -> None:
    session = Session(MEMBERS, lambda: 0.5)
    assert isinstance(session.tick(0.0)[-1], List)
    assert session.tick(store.PATIENCE / 2) == []
    session.tick(store.PATIENCE)
    assert isinstance(session.error, Unavailable)
    assert "no answer within" in str(session.error)
    again = session.tick(session.due)[-1]
    assert isinstance(again, List)
    assert again.endpoint == 1


def test_changes_of_a_stream_that_was_given_up_are_passed_over() -> None:
    world, session = opened()
    assert world.stream is not None
    old = world.stream[0].number
    session.failed(old, Unavailable("x"), world.now)
    late = Changes((Change("a", None, 9),), 9)
    assert session.message(old, late, world.now) == []
    assert session.revision < 9


def test_a_member_that_lists_less_than_is_known_is_passed_over_until_all_do() -> None:
    session = Session(MEMBERS, lambda: 0.5, revision=9)
    said: list[Output] = []
    listed = 0
    while not any(isinstance(each, Snapshot) for each in said):
        match said[-1] if said else None:
            case Watch() as asked:
                said = session.failed(asked.number, Compacted(5), session.due)
            case List() as asked:
                listed += 1
                said = session.page(asked.number, Page((), 4), session.due)
            case _:
                said = session.tick(session.due)
    (snapshot,) = [each for each in said if isinstance(each, Snapshot)]
    assert snapshot.restored
    assert listed > MEMBERS


@pytest.mark.parametrize(
    "entry, restored",
    [
        (Entry("pulse", b"new", 2, 9), False),
        (Entry("pulse", b"newer", 2, 20), False),
        (Entry("pulse", b"old", 2, 4), True),  # a backup whose revision was bumped, and that was compacted there
        (Entry("pulse", b"other", 2, 9), True),
        (Entry("else", b"old", 2, 4), False),
    ],
)
def test_a_listing_that_has_the_newest_key_as_it_was_before_is_of_a_store_that_went_back(
    entry: Entry, restored: bool
) -> None:
    newest = store.witness_of(Entry("pulse", b"new", 2, 9))
    session = Session(MEMBERS, lambda: 0.5, revision=9, witness=newest)
    (verify,) = session.tick(0.0)
    assert isinstance(verify, Verify)
    session.failed(verify.number, Compacted(1000), 0.0)
    (listing,) = session.tick(session.due)
    assert isinstance(listing, List)
    snapshot, _ = session.page(listing.number, Page((entry,), 1000), 1.0)
    assert isinstance(snapshot, Snapshot)
    assert snapshot.restored == restored
    assert snapshot.witness == store.witness_of(entry)


def test_progress_and_changes_that_are_known_already_tell_nothing() -> None:
    world, session = opened()
    assert world.stream is not None
    number, known = world.stream[0].number, session.revision
    assert session.message(number, Changes((Change("a", None, known),), known), world.now) == []
    assert session.message(number, Changes((), known + 5), world.now) == []
    assert session.revision == known + 5


def test_a_follower_that_lost_count_has_all_of_it_listed() -> None:
    world, session = opened()
    session.list_anew()
    (asked,) = [each for each in session.tick(world.now) if isinstance(each, List)]
    (snapshot, _) = session.page(asked.number, Page((Entry("a", b"0", 2, 2),), session.revision), world.now)
    assert isinstance(snapshot, Snapshot)
    assert [entry.key for entry in snapshot.entries] == ["a"]
    assert not snapshot.restored
    assert session.resyncs == 2


def test_a_stream_that_opens_behind_what_is_known_is_looked_for_elsewhere() -> None:
    world, session = opened()
    assert world.stream is not None
    session.failed(world.stream[0].number, Unavailable("x"), world.now)
    asked = [each for each in session.tick(session.due) if isinstance(each, Verify | Watch)][-1]
    while not isinstance(asked, Watch):
        asked = session.page(asked.number, Page((), session.revision), session.due)[-1]  # type: ignore[assignment]
    behind = session.message(asked.number, Watching(session.revision - 1), session.due)
    assert not any(isinstance(each, Snapshot) for each in behind)
    assert session.state != "connected"


def test_the_first_choice_is_taken_again_after_a_while() -> None:
    world = World(3)
    world.put("a", b"0")
    world.down[0] = True
    world.step(30)
    assert world.session.endpoint != 0
    world.down[0] = False
    world.step(1900)
    assert world.session.endpoint == 0
    assert world.session.resyncs == 1


@pytest.mark.parametrize("error", [Unavailable("x"), Compacted(3), StoreError("y")])
def test_why_it_is_disconnected_can_be_told(error: StoreError) -> None:
    world, session = opened()
    world.step(15)
    assert session.error is None
    assert world.stream is not None
    session.failed(world.stream[0].number, error, world.now)
    assert session.state == "disconnected"
    assert session.error is error
