"""The order of answers, against a list of all requests that is gone through from its beginning every time."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from overlayd.proto.connection import AnswerOrder


@dataclass
class Entry:
    """A request as a client made it.  is_change: else it is answered in its turn."""

    name: int
    is_change: bool
    done: bool = False
    answered: bool = False


@dataclass
class ListModel:
    """All requests and events there ever were.  `answers` is what was sent, in order."""

    most_events: int
    reads: bool = True
    entries: list[Entry] = field(default_factory=list)
    events: list[tuple[str, bytes]] = field(default_factory=list)  # not sent yet
    answers: list[object] = field(default_factory=list)
    stops_reading_after: int | None = None  # answers

    def answer(self, entry: Entry) -> None:
        entry.answered = True
        self.answers.append(entry.name)
        if self.stops_reading_after is not None:
            self.stops_reading_after -= 1
            if self.stops_reading_after <= 0:
                self.stops_reading_after, self.reads = None, False

    def settle(self) -> None:
        """Answer whatever may be answered: a request that is no change when everything before it is."""
        for place, entry in enumerate(self.entries):
            before = self.entries[:place]
            in_turn = all(one.done if one.is_change else one.answered for one in before)
            if not entry.is_change and not entry.answered and in_turn and self.reads:
                self.answer(entry)

    def finish(self, entry: Entry) -> None:
        entry.done = True
        self.answer(entry)
        self.settle()

    def event(self, subject: str, event: bytes) -> None:
        if self.reads:
            self.answers.append(event)
            return
        self.events = [kept for kept in self.events if kept[0] != subject] + [(subject, event)]
        self.events = self.events[-self.most_events :]

    def read_again(self) -> None:
        self.reads = True
        self.answers += [event for _, event in self.events]
        self.events.clear()
        self.settle()


class Subject:
    """An AnswerOrder, used as a connection uses it."""

    def __init__(self, most_events: int) -> None:
        self.order: AnswerOrder[int, int] = AnswerOrder(most_events)
        self.numbers: dict[int, int] = {}
        self.answers: list[object] = []
        self.stops_reading_after: int | None = None

    def answer(self, to: int) -> None:
        self.answers.append(to)
        if self.stops_reading_after is not None:
            self.stops_reading_after -= 1
            if self.stops_reading_after <= 0:
                self.stops_reading_after, self.order.reads = None, False

    def release(self) -> None:
        for to, asked in self.order.due():
            assert asked == to
            self.answer(to)

    def ask(self, name: int) -> None:
        if not self.order.hold(name, name):
            self.answer(name)

    def finish(self, name: int) -> None:
        assert self.order.done(self.numbers[name])
        self.answer(name)
        self.release()

    def event(self, subject: str, event: bytes) -> None:
        if self.order.reads:
            self.answers.append(event)
        else:
            self.order.keep_event(subject, event)

    def read_again(self) -> None:
        self.order.reads = True
        self.answers += self.order.kept_events()
        self.release()


# Each with a number, for those that need one.
ACTIONS = st.tuples(
    st.sampled_from(
        [
            *("change", "change", "ask", "ask", "ask", "finish", "finish", "event"),
            *("stop reading", "read", "will stop reading", "give up"),
        ]
    ),
    st.integers(0, 11),
)


@settings(max_examples=300)
@given(st.lists(ACTIONS, max_size=40), st.integers(1, 3))
def test_the_order_is_that_of_the_list(actions: list[tuple[str, int]], most_events: int) -> None:
    model, subject = ListModel(most_events), Subject(most_events)
    for place, action in enumerate(actions):
        running = [entry for entry in model.entries if entry.is_change and not entry.done]
        match action[0]:
            case "change":
                model.entries.append(Entry(place, is_change=True))
                subject.numbers[place] = subject.order.change(place)
            case "ask":
                model.entries.append(Entry(place, is_change=False))
                model.settle()
                subject.ask(place)
            case "stop reading":
                model.reads = subject.order.reads = False
            case "read":
                model.read_again()
                subject.read_again()
            case "give up":
                for entry in running:
                    entry.done = True
                for entry in running:
                    model.answer(entry)
                model.settle()
                for to in subject.order.give_up():
                    subject.answer(to)
                subject.release()
                assert not any(subject.order.done(subject.numbers[entry.name]) for entry in running)
            case "finish" if running:
                entry = running[action[1] % len(running)]
                model.finish(entry)
                subject.finish(entry.name)
            case "event":
                about = "abcd"[action[1] % 4]
                model.event(about, b"event %d" % place)
                subject.event(about, b"event %d" % place)
            case "will stop reading":
                model.stops_reading_after = subject.stops_reading_after = 1 + action[1] % 3
        assert subject.answers == model.answers
        assert subject.order.reads == model.reads
        assert subject.order.in_flight == sum(not entry.answered for entry in model.entries)
        owed = any(not entry.answered and (entry.is_change or model.reads) for entry in model.entries)
        assert subject.order.is_owed == owed


def test_what_is_dropped_is_never_answered_and_changes_go_on() -> None:
    subject = Subject(2)
    subject.numbers[1] = subject.order.change(1)
    subject.ask(2)
    subject.order.reads = False
    subject.event("a", b"event")
    subject.order.drop()
    subject.finish(1)
    subject.read_again()
    assert subject.answers == [1]


def test_of_the_events_the_newest_about_each_subject_are_kept_in_the_order_of_their_coming() -> None:
    order: AnswerOrder[int, int] = AnswerOrder(3)
    for subject, event in (("a", b"1"), ("b", b"2"), ("a", b"3")):
        order.keep_event(subject, event)
    assert order.kept_events() == [b"2", b"3"]
    assert order.kept_events() == []
    for subject in "abcad":
        order.keep_event(subject, subject.encode())
    assert order.kept_events() == [b"c", b"a", b"d"]
