"""Health, roaming and silence: the rules by example, health against the whole history too."""

from collections import namedtuple

from hypothesis import given
from hypothesis import strategies as st
from oracles_health import health_events

from overlayd.model.health import CALM, FRESH, HUNG, LONGEST, HealthTracker, RoamingTracker, Silence, is_fresh

Seen = namedtuple("Seen", "endpoint last_handshake")
START = 1_000_000
A = b"a" * 32


def test_a_handshake_vouches_for_less_than_180_seconds():
    assert is_fresh(START, START + FRESH - 0.1)
    assert not is_fresh(START, START + FRESH)
    assert not is_fresh(0, 10)


def test_each_change_is_told_once():
    tracker = HealthTracker()
    told = []
    for second in range(600):
        handshake = START if second < 300 else START + 300
        told += [(second, *event) for event in tracker.observe({A: Seen("x", handshake)}, START + second)]
    assert told == [(180, A, False), (300, A, True), (480, A, False)]


def test_a_peer_never_heard_of_gets_as_long_from_its_first_endpoint():
    tracker = HealthTracker()
    assert tracker.observe({A: Seen(None, 0)}, START) == []
    assert tracker.observe({A: Seen(None, 0)}, START + 1000) == []
    assert tracker.observe({A: Seen("x", 0)}, START + 2000) == []
    assert tracker.observe({A: Seen("x", 0)}, START + 2179) == []
    assert tracker.observe({A: Seen("x", 0)}, START + 2180) == [(A, False)]
    assert tracker.observe({A: Seen("y", 0)}, START + 2181) == [], "another endpoint alone proves nothing"
    assert tracker.observe({A: Seen("y", START + 2190)}, START + 2190) == [(A, True)]


def test_another_endpoint_gets_its_own_time():
    tracker = HealthTracker()
    tracker.observe({A: Seen("x", 0)}, START)
    tracker.observe({A: Seen("y", 0)}, START + 170)
    assert tracker.observe({A: Seen("y", 0)}, START + 349) == []
    assert tracker.observe({A: Seen("y", 0)}, START + 350) == [(A, False)]


def test_a_restart_announces_nothing_again():
    tracker = HealthTracker()
    stale, alive, untried = b"s" * 32, b"l" * 32, b"u" * 32
    shown = {stale: Seen("x", START - 500), alive: Seen("x", START), untried: Seen("x", 0)}
    tracker.resume(shown, START)
    assert tracker.observe(shown, START + 1) == []
    assert tracker.observe(shown, START + 181) == [(alive, False)]
    assert tracker.observe(shown | {stale: Seen("x", START + 182)}, START + 182) == [(stale, True)]


def test_a_peer_that_went_is_forgotten():
    tracker = HealthTracker()
    tracker.observe({A: Seen("x", START)}, START)
    assert tracker.observe({A: Seen("x", START)}, START + 180) == [(A, False)]
    assert tracker.observe({}, START + 181) == []
    assert tracker.observe({A: Seen("x", 0)}, START + 182) == []
    assert tracker.observe({A: Seen("x", START + 183)}, START + 183) == [], "a new one passed for healthy already"


KEYS = [b"a", b"b"]
HANDSHAKES = st.one_of(st.just(None), st.integers(0, 12))  # None: never, else how old
PEERS = st.dictionaries(st.sampled_from(KEYS), st.tuples(st.sampled_from([None, "x", "y"]), HANDSHAKES))


@given(st.lists(st.tuples(st.integers(0, 7), PEERS), min_size=1, max_size=12))
def test_like_the_whole_history(steps):
    fresh = 6
    tracker, now, history = HealthTracker(fresh), START, []
    for pause, peers in steps:
        now += pause
        shown = {key: (endpoint, 0 if age is None else now - age) for key, (endpoint, age) in peers.items()}
        history.append((now, shown))
        seen = {key: Seen(*values) for key, values in shown.items()}
        if len(history) == 1:
            tracker.resume(seen, now)
        else:
            assert sorted(tracker.observe(seen, now)) == sorted(health_events(history, fresh))


def moves(*steps):
    """What is announced for one peer at each step: (endpoint shown, endpoint given)."""
    tracker = RoamingTracker()
    return [tracker.observe({A: shown}, lambda key, given=given: given) for shown, given in steps]


def test_an_endpoint_that_was_given_is_no_move():
    assert moves((None, "x"), ("x", "x"), ("x", "y"), ("y", "y")) == [[], [], [], []]


def test_a_move_and_the_way_back_are_told_once_each():
    assert moves(("x", "x"), ("y", "x"), ("y", "x"), ("x", "x"), ("x", "x")) == [[], [(A, "y")], [], [(A, "x")], []]


def test_a_peer_that_is_sent_elsewhere_after_a_move_has_not_moved_by_itself():
    assert moves(("x", "x"), ("y", "x"), ("z", "z")) == [[], [(A, "y")], []]


def test_a_peer_without_an_endpoint_that_turns_up_has_moved():
    assert moves((None, None), ("x", None)) == [[], [(A, "x")]]


def test_a_reading_older_than_the_given_endpoint_is_no_move():
    assert moves(("x", "x"), ("x", "y"), ("y", "y"), ("y", "y")) == [[], [], [], []]


@given(st.lists(st.tuples(st.sampled_from("xyz"), st.booleans(), st.booleans()), max_size=12))
def test_moves_are_told_and_orders_are_not(steps):
    """Each step the peer moves somewhere, or is sent there (a new order), or stays; a peer that went is forgotten."""
    tracker = RoamingTracker()
    at = given_to = "x"
    tracker.observe({A: at}, {A: given_to}.get)
    for place, by_itself, gone in steps:
        if gone:
            assert tracker.observe({}, lambda key: None) == []
            at = given_to = place
            assert tracker.observe({A: at}, {A: given_to}.get) == []
            continue
        expected = [(A, place)] if by_itself and place != at else []
        if not by_itself:
            if place in {given_to, at}:
                continue  # the same order again is none; one to where the peer is already goes unnoticed
            given_to = place
        at = place
        assert tracker.observe({A: at}, {A: given_to}.get) == expected
        assert tracker.observe({A: at}, {A: given_to}.get) == []


def lost_until_hung(silence: Silence) -> int:
    """How many readings in a row without an answer it takes."""
    lost = 1
    while not silence.unanswered():
        lost += 1
    return lost


def test_so_many_in_a_row_and_twice_as_many_each_time() -> None:
    silence = Silence()
    assert [lost_until_hung(silence) for _ in range(8)] == [min(HUNG << n, LONGEST) for n in range(8)]


def test_an_answer_between_starts_the_count_anew() -> None:
    silence = Silence()
    for _ in range(HUNG * 10):
        assert not any(silence.unanswered() for _ in range(HUNG - 1))
        assert silence.answered()
        assert not silence.answered()
    assert lost_until_hung(silence) == HUNG


def test_only_a_long_calm_makes_it_forget() -> None:
    silence = Silence()
    lost_until_hung(silence)
    for _ in range(CALM - 1):
        silence.answered()
    silence.unanswered()
    for _ in range(CALM - 1):
        silence.answered()
    assert silence.patience == 2 * HUNG
    silence.answered()
    assert silence.patience == HUNG
    assert lost_until_hung(silence) == HUNG
