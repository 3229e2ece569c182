"""An attempt's course: what is tried in which order, for how long, and that it ends whatever happens."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.model.candidates import Candidate
from overlayd.model.traversal import (
    CHECK_PAUSE,
    CHECKS_ALONE,
    DIRECT_PREFERRED,
    DIRECT_PREFERRED_BY_LOST,
    FIRST_PERIOD,
    HOLD,
    LONGEST_PERIOD,
    MET,
    REVIEW,
    Attempt,
    Way,
    next_attempt,
    next_review,
    phase,
    ways,
)


def at(port: int, address: str = "192.0.2.1"):
    return (ip_address(address), port)


HOST, MAPPED, RELAYED = Way("host", at(1)), Way("server-reflexive", at(2)), Way("relay", at(3))
THROUGH = Way("relay", at(3), through_relay=True)
TOLD = [Candidate(way.kind, *way.endpoint, 9 - place) for place, way in enumerate((HOST, MAPPED, RELAYED))]
TIMEOUT = 15.0


def course(attempt: Attempt, now: float = 0.0) -> list[tuple[float, Way]]:
    """Let an attempt run to its end by itself; when it pointed the device where."""
    seen: list[tuple[float, Way]] = []
    while (due := attempt.next_timeout()) is not None:
        assert due >= now or not seen, "time does not run backwards"
        now = max(now, due)
        attempt.checks_to_send(now)
        before = attempt.selected
        attempt.advance(now)
        if attempt.selected is not None and attempt.selected != before:
            seen.append((now, attempt.selected))
    return seen


# --- the ways ---


def test_ways_come_best_first_and_relayed_ones_last() -> None:
    found = ways(None, at(7), TOLD, versions=[4, 6], relayed=[4], limit=99)
    assert found == [
        Way("host", at(7)),
        HOST,
        MAPPED,
        RELAYED,
        THROUGH,
        Way("server-reflexive", at(2), through_relay=True),
    ]
    assert ways(None, at(7), TOLD, versions=[4, 6], relayed=[4], limit=2) == [found[0], MAPPED]
    assert ways(None, at(7), TOLD, versions=[6], relayed=[], limit=99) == []
    assert ways(None, None, [], versions=[4, 6], relayed=[4], limit=99) == []


def test_of_a_host_with_many_addresses_some_are_left_out_and_no_way_round_its_nat() -> None:
    six = [Candidate("host", ip_address(f"2001:db8::{n:x}"), 1, 0) for n in range(1, 30)]
    four = [Candidate("host", ip_address(f"198.51.100.{n}"), 1, 0) for n in range(1, 30)]
    told = [*six, *four, *TOLD[1:]]
    found = ways(None, None, told, versions=[4, 6], relayed=[4], limit=10)
    assert [way for way in found if way.kind != "host"] == ways(
        None, None, TOLD[1:], versions=[4, 6], relayed=[4], limit=99
    )
    assert len(found) == 10
    assert [way.endpoint[0] for way in found if way.kind == "host"] == [each.address for each in (*six[:3], *four[:3])]


def test_a_host_that_tells_of_no_nat_is_tried_through_our_relay_too() -> None:
    assert ways(None, None, TOLD[:1], versions=[4], relayed=[4], limit=9) == [HOST, HOST._replace(through_relay=True)]


def test_where_it_was_heard_of_last_comes_first_under_its_best_name() -> None:
    found = ways(at(8), at(7), TOLD, versions=[4], relayed=[], limit=99)
    assert [way.kind for way in found] == ["peer-reflexive", "host", "host", "server-reflexive", "relay"]
    assert ways(at(2), None, TOLD, versions=[4], relayed=[], limit=99) == [MAPPED, HOST, RELAYED]
    assert ways(at(2), at(2), TOLD, versions=[4], relayed=[], limit=99)[0] == Way("host", at(2))


# --- without an answer to any check ---


def test_wireguard_gets_its_time_on_each_way_and_direct_ones_twice() -> None:
    attempt = Attempt([HOST, MAPPED, RELAYED, THROUGH], 0.0, TIMEOUT)
    first = CHECKS_ALONE
    assert course(attempt) == [
        (first, HOST),
        (first + HOLD, MAPPED),
        (first + 2 * HOLD, HOST),
        (TIMEOUT, RELAYED),
        (TIMEOUT + HOLD, THROUGH),
    ]
    assert attempt.outcome == "failed"


def test_the_next_attempt_goes_on_where_time_was_up() -> None:
    attempt = Attempt([HOST, MAPPED], 0.0, 4.0)
    assert [way for _, way in course(attempt)] == [HOST]
    assert [way for _, way in course(Attempt([HOST, MAPPED], 0.0, 4.0, after=attempt.tried))] == [MAPPED]


def test_behind_a_symmetric_nat_no_mapped_address_is_waited_for() -> None:
    found = [way for _, way in course(Attempt([HOST, MAPPED, RELAYED], 0.0, TIMEOUT, symmetric=True))]
    assert found == [HOST, RELAYED]
    assert course(Attempt([MAPPED, RELAYED], 0.0, TIMEOUT, symmetric=True)) == [(CHECKS_ALONE, RELAYED)]


def test_without_time_for_direct_ways_the_relays_come_at_once() -> None:
    assert course(Attempt([HOST, RELAYED], 5.0, 0.0), 5.0) == [(5.0, RELAYED)]


def test_no_way_is_the_end() -> None:
    attempt = Attempt([], 0.0, TIMEOUT)
    assert course(attempt) == []
    assert attempt.outcome == "failed"


# --- with answers ---


def test_a_way_that_answers_is_used_at_once_and_has_its_time() -> None:
    attempt = Attempt([HOST, MAPPED, RELAYED], 0.0, TIMEOUT)
    attempt.answered(MAPPED, 0.1)
    assert attempt.selected == MAPPED
    attempt.answered(HOST, 0.2)
    assert attempt.selected == MAPPED, "one that works is as good as another"
    attempt.advance(0.1 + HOLD - 0.01)
    assert attempt.selected == MAPPED
    attempt.advance(0.1 + HOLD)
    assert attempt.selected != MAPPED
    attempt.reached()
    assert (attempt.outcome, attempt.next_timeout()) == ("reached", None)


def test_a_relay_that_answers_waits_a_little_for_a_direct_way() -> None:
    attempt = Attempt([HOST, RELAYED, THROUGH], 0.0, TIMEOUT)
    attempt.answered(THROUGH, 0.5)
    attempt.answered(RELAYED, 0.6)
    for now in (0.7, CHECKS_ALONE, 0.5 + DIRECT_PREFERRED - 0.01):
        attempt.advance(now)
        assert attempt.selected is None, "and WireGuard is not sent to where nobody is"
    attempt.advance(0.5 + DIRECT_PREFERRED)
    assert attempt.selected == RELAYED, "the first of those that answer"
    attempt.answered(HOST, 3.0)
    assert attempt.selected == HOST, "which a direct one still beats"


def test_a_relay_that_answers_late_is_used_before_those_that_do_not() -> None:
    attempt = Attempt([HOST, RELAYED, THROUGH], 0.0, 1.0)
    attempt.advance(1.0)
    assert attempt.selected == RELAYED
    attempt.answered(THROUGH, 1.1)
    assert attempt.selected == THROUGH


def test_what_was_not_asked_is_no_answer() -> None:
    attempt = Attempt([HOST], 0.0, TIMEOUT)
    attempt.answered(MAPPED, 0.1)
    assert attempt.selected is None


# --- checks ---


def test_direct_ways_are_checked_first_and_then_all() -> None:
    attempt = Attempt([HOST, RELAYED], 0.0, TIMEOUT)
    assert attempt.checks_to_send(0.0) == [HOST]
    assert attempt.checks_to_send(CHECK_PAUSE - 0.01) == []
    assert attempt.checks_to_send(CHECK_PAUSE) == [HOST, RELAYED]
    assert Attempt([RELAYED], 0.0, TIMEOUT).checks_to_send(0.0) == [RELAYED]


def test_an_address_that_shows_itself_is_checked_at_once_but_not_any_number() -> None:
    attempt = Attempt([HOST], 0.0, TIMEOUT)
    attempt.checks_to_send(0.0)
    attempt.met(Way("peer-reflexive", HOST.endpoint), 0.1)
    assert attempt.checks_to_send(0.1) == [], "one that it told us"
    for port in range(100, 110):
        attempt.met(Way("peer-reflexive", at(port)), 0.1)
    checked = attempt.checks_to_send(0.1)
    assert checked == [HOST, *(Way("peer-reflexive", at(port)) for port in range(100, 100 + MET))]
    attempt.answered(checked[1], 0.2)
    assert attempt.selected == checked[1]


# --- whatever happens ---

some_ways = st.lists(
    st.builds(
        Way,
        st.sampled_from(["host", "server-reflexive", "peer-reflexive", "relay"]),
        st.integers(1, 5).map(at),
        st.booleans(),
    ),
    max_size=8,
    unique_by=lambda way: way[1:],
)
steps = st.lists(
    st.tuples(st.floats(0, 3), st.sampled_from(["answered", "met", "checks", "advance"]), st.integers(0, 9)),
    max_size=60,
)


@given(some_ways, st.floats(0, 30), st.booleans(), st.integers(0, 9), steps)
def test_an_attempt_ends_in_bounded_time_and_uses_only_what_it_knows(found, timeout, symmetric, after, steps) -> None:
    attempt = Attempt(found, 0.0, timeout, symmetric=symmetric, after=after)
    now, known = 0.0, set(found)
    for pause, step, number in steps:
        now += pause
        way = found[number % len(found)] if found and number < 8 else Way("peer-reflexive", at(1000 + number))
        if step == "answered":
            attempt.answered(way, now)
        elif step == "met":
            attempt.met(way, now)
            known.add(way)
        elif step == "checks":
            assert set(attempt.checks_to_send(now)) <= known
        else:
            attempt.advance(now)
        assert attempt.selected is None or attempt.selected in known
    course(attempt, now)
    assert attempt.outcome == "failed"
    # Each way once more than it has answered, and a wait for a direct one.
    assert attempt.next_timeout() is None


@given(some_ways, st.floats(0, 30))
def test_it_takes_no_longer_than_it_may(found, timeout) -> None:
    attempt = Attempt(found, 0.0, timeout)
    end = 0.0
    while (due := attempt.next_timeout()) is not None:
        end = max(end, due)
        attempt.checks_to_send(end)
        attempt.advance(end)
    relayed = sum(way.relayed for way in found)
    assert end <= max(timeout, CHECKS_ALONE) + relayed * HOLD + 1e-6


# --- when it is tried again ---

keys = st.binary(min_size=32, max_size=32)


@given(keys, keys, st.integers(0, 99), st.integers(0, 99), st.floats(0, 4e9))
def test_two_nodes_meet_whichever_tried_more_often(one, other, here, there, now) -> None:
    assert phase(one, other) == phase(other, one)
    meeting = phase(one, other)
    rarer = next_attempt(max(here, there), meeting, now)
    assert 1 <= rarer - now <= LONGEST_PERIOD + 2
    # Just before that moment, the one that tries more often chooses the same one.
    assert next_attempt(min(here, there), meeting, rarer - 1.5) == rarer


@pytest.mark.parametrize("failures", range(12))
def test_pauses_double_up_to_the_longest(failures) -> None:
    first = next_attempt(failures, 5, 1000.0)
    period = min(FIRST_PERIOD * 2**failures, LONGEST_PERIOD)
    assert next_attempt(failures, 5, first) == first + period


# --- peers whose session lasts ---


def test_a_review_moves_nobody_without_an_answer() -> None:
    assert course(Attempt([HOST, MAPPED, RELAYED, THROUGH], 0.0, REVIEW, course="review")) == []


def test_a_review_goes_where_an_answer_came_from_and_to_a_relay_only_without_a_direct_one() -> None:
    attempt = Attempt([HOST, MAPPED, RELAYED], 0.0, REVIEW, course="review")
    attempt.answered(RELAYED, 0.1)
    assert attempt.selected is None
    attempt.answered(MAPPED, 0.2)
    assert attempt.selected == MAPPED

    attempt = Attempt([HOST, MAPPED, RELAYED], 0.0, REVIEW, course="review")
    attempt.answered(RELAYED, 0.1)
    assert course(attempt, 0.1) == [(0.1 + DIRECT_PREFERRED, RELAYED)]
    assert attempt.outcome == "failed", "that it was pointed there helped nobody"


def test_a_lost_peer_is_relayed_sooner_than_a_new_one() -> None:
    attempt = Attempt([HOST, RELAYED], 0.0, TIMEOUT, course="lost")
    attempt.answered(RELAYED, 0.1)
    assert course(attempt, 0.1)[0] == (0.1 + DIRECT_PREFERRED_BY_LOST, RELAYED)


@given(st.floats(1, 2000), st.floats(1, 2000), st.integers(0, (1 << 32) - 1), st.floats(0, 2e9, allow_nan=False))
def test_reviews_meet_whatever_the_intervals(one: float, other: float, phase: int, now: float) -> None:
    """Both sides review at each time of the one with the longer interval."""
    often, seldom = sorted((one, other))
    when = next_review(seldom, phase, now)
    assert when >= now + 1
    assert next_review(often, phase, when - 1.5) == when or when - 1.5 < now
    assert when - now <= max(min(seldom, LONGEST_PERIOD), FIRST_PERIOD) + 2
