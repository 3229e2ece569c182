"""Health, roaming and silence: the rules by example, health against the whole history too."""

from collections import namedtuple

from hypothesis import given
from hypothesis import strategies as st
from oracles_health import condition, health_events, stretch

from overlayd.model.health import CALM, FRESH, HUNG, LONGEST, HealthTracker, RoamingTracker, Silence, is_fresh

Seen = namedtuple("Seen", "endpoint last_handshake rx_bytes tx_bytes", defaults=(0, 0))
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
        seen = Seen("x", handshake, rx_bytes=handshake - START, tx_bytes=second)  # something is sent all the time
        told += [(second, *event) for event in tracker.observe({A: seen}, START + second)]
    assert told == [(195, A, False), (300, A, True), (495, A, False)]


def test_a_peer_to_which_nothing_is_sent_is_idle_for_ever():
    tracker = HealthTracker()
    for second in range(0, 100_000, 10):
        assert tracker.observe({A: Seen("x", START, 500, 500)}, START + second) == []
        assert tracker.condition(A) == ("answers" if second < FRESH else "idle")
    untried = HealthTracker()
    for second in range(0, 1000, 10):
        assert untried.observe({A: Seen("x", 0)}, START + second) == []
    assert untried.condition(A) == "idle"


def test_an_idle_peer_that_is_called_has_fifteen_seconds_to_answer():
    tracker = HealthTracker()
    tracker.observe({A: Seen("x", START, 500, 500)}, START)
    tracker.observe({A: Seen("x", START, 500, 500)}, START + 1000)
    assert tracker.observe({A: Seen("x", START, 500, 648)}, START + 1001) == []
    assert tracker.observe({A: Seen("x", START, 500, 796)}, START + 1015) == []
    assert tracker.condition(A) == "idle"
    assert tracker.observe({A: Seen("x", START, 500, 944)}, START + 1016) == [(A, False)]
    assert tracker.condition(A) == "silent"
    assert tracker.silent(START + 1016) == {A: 15}
    assert tracker.observe({A: Seen("x", START, 500, 944)}, START + 5000) == [], "silence does not end by itself"
    assert tracker.condition(A) == "silent"
    assert tracker.observe({A: Seen("x", START + 5001, 592, 944)}, START + 5001) == [(A, True)]


def test_an_answer_between_two_readings_is_one():
    tracker = HealthTracker()
    tracker.observe({A: Seen("x", START, 500, 500)}, START)
    tracker.observe({A: Seen("x", START, 500, 500)}, START + 1000)
    tracker.observe({A: Seen("x", START, 500, 648)}, START + 1001)
    assert tracker.observe({A: Seen("x", START + 1001, 592, 800)}, START + 1002) == []
    assert tracker.condition(A) == "answers"


def test_a_keepalive_without_an_answer_counts():
    """Ours, every 25 seconds: once the session is over, WireGuard shakes hands for each, in vain."""
    tracker = HealthTracker()
    told = []
    for second in range(400):
        sent = 500 + 148 * (second // 25)
        told += [(second, *each) for each in tracker.observe({A: Seen("x", START, 500, sent)}, START + second)]
    assert told == [(215, A, False)], "the first one after 180 seconds was sent at 200"


def test_a_peer_never_heard_of_gets_as_long_from_the_first_that_is_sent():
    tracker = HealthTracker()
    assert tracker.observe({A: Seen(None, 0)}, START) == []
    assert tracker.observe({A: Seen("x", 0)}, START + 2000) == []
    assert tracker.observe({A: Seen("x", 0, 0, 148)}, START + 2001) == []
    assert tracker.observe({A: Seen("x", 0, 0, 296)}, START + 2180) == []
    assert tracker.observe({A: Seen("x", 0, 0, 444)}, START + 2181) == [(A, False)]
    assert tracker.observe({A: Seen("y", 0, 0, 444)}, START + 2182) == [], "another endpoint alone proves nothing"
    assert tracker.observe({A: Seen("y", START + 2190, 92, 592)}, START + 2190) == [(A, True)]


def test_a_peer_whom_no_answer_reaches_and_that_initiates_on_and_on_is_silent():
    tracker = HealthTracker()
    for second in range(0, FRESH + 6, 5):
        tried = 148 * (1 + second // 5)
        tracker.observe({A: Seen("x", 0, tried, tried + 92)}, START + second)
    assert tracker.condition(A) == "silent"


def test_another_endpoint_gets_its_own_time():
    tracker = HealthTracker()
    tracker.observe({A: Seen("x", 0, 0, 148)}, START)
    tracker.observe({A: Seen("y", 0, 0, 296)}, START + 170)
    assert tracker.observe({A: Seen("y", 0, 0, 444)}, START + 349) == []
    assert tracker.observe({A: Seen("y", 0, 0, 444)}, START + 350) == [(A, False)]


def test_after_a_restart_the_next_change_is_told_whichever_it_is():
    stale, alive = b"s" * 32, b"l" * 32
    shown = {stale: Seen("x", START - 500, 9, 900), alive: Seen("x", START, 9, 9)}
    for resumed in range(2):
        tracker = HealthTracker()
        tracker.resume(shown, START)
        assert tracker.observe(shown, START + 1) == []
        assert (tracker.condition(stale), tracker.condition(alive)) == ("idle", "answers")
        if resumed:
            found = tracker.observe(shown | {stale: Seen("x", START + 2, 101, 1048)}, START + 2)
            assert found == [(stale, True)], "it may have been announced as silent"
        else:
            tracker.observe(shown | {stale: Seen("x", START - 500, 9, 1048)}, START + 2)
            assert tracker.observe(shown | {stale: Seen("x", START - 500, 9, 1048)}, START + 17) == [(stale, False)]


def test_a_device_made_anew_counts_from_zero():
    tracker = HealthTracker()
    tracker.observe({A: Seen("x", START, 500, 500)}, START)
    tracker.observe({A: Seen("x", START, 500, 600)}, START + 1000)
    assert tracker.observe({A: Seen("x", 0, 0, 0)}, START + 1010) == []
    assert tracker.observe({A: Seen("x", 0, 0, 0)}, START + 9999) == []


def test_a_peer_that_went_is_forgotten():
    tracker = HealthTracker()
    tracker.observe({A: Seen("x", START, 9, 9)}, START)
    tracker.observe({A: Seen("x", START, 9, 10)}, START + 180)
    assert tracker.observe({A: Seen("x", START, 9, 11)}, START + 195) == [(A, False)]
    assert tracker.observe({}, START + 196) == []
    assert tracker.condition(A) == "idle"
    assert tracker.observe({A: Seen("x", 0)}, START + 197) == []
    assert tracker.observe({A: Seen("x", START + 198)}, START + 198) == [], "a new one passed for healthy already"


KEYS = [b"a", b"b"]
HANDSHAKES = st.one_of(st.just(None), st.integers(0, 12))  # None: never, else how old
BYTES = st.sampled_from([0, 0, 0, 1, 148])
PEERS = st.dictionaries(
    st.sampled_from(KEYS), st.tuples(st.sampled_from([None, "x", "y"]), HANDSHAKES, BYTES, BYTES, st.booleans())
)


@given(st.lists(st.tuples(st.integers(0, 7), PEERS), min_size=1, max_size=12))
def test_like_the_whole_history(steps):
    fresh = 6
    tracker, now, history = HealthTracker(fresh), START, []
    counted = {}
    for pause, peers in steps:
        now += pause
        shown = {}
        for key, (endpoint, age, rx, tx, anew) in peers.items():
            received, sent = (0, 0) if anew else counted.get(key, (0, 0))
            counted[key] = (received + rx, sent + tx)
            shown[key] = (endpoint, 0 if age is None else now - age, *counted[key])
        history.append((now, shown))
        seen = {key: Seen(*values) for key, values in shown.items()}
        if len(history) == 1:
            tracker.resume(seen, now)
        else:
            assert sorted(tracker.observe(seen, now)) == sorted(health_events(history, fresh))
        for key in KEYS:
            expected = condition(*stretch(history, key), fresh) if key in shown else "idle"
            assert tracker.condition(key) == expected


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
