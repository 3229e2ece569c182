"""A peer's own moves are told from those that it was sent on."""

from hypothesis import given
from hypothesis import strategies as st

from overlayd.model.roaming import RoamingTracker

A = b"a" * 32


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
