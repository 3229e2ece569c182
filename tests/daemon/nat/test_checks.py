"""Two nodes that check each other, and what they do not take for a check."""

import pytest

from overlayd import keys
from overlayd.daemon.nat.checks import Checks
from overlayd.model.candidates import Endpoint
from overlayd.model.rows import numeric_endpoint
from overlayd.model.traversal import Way


def at(text: str) -> Endpoint:
    endpoint = numeric_endpoint(text)
    assert endpoint is not None
    return endpoint


HERE, THERE, ELSEWHERE = at("192.0.2.1:51820"), at("198.51.100.1:51820"), at("203.0.113.1:7")


class Side:
    """A node at an address.  sent: what it sent; answered, met: what it was told."""

    def __init__(self) -> None:
        self.private = keys.generate()
        self.public = keys.public(self.private)
        self.sent: list[tuple[bytes, Way]] = []
        self.answered: list[Way] = []
        self.met: list[Way] = []
        self.checks = Checks(self.private, lambda datagram, way: self.sent.append((datagram, way)))

    def looks_for(self, other: "Side"):
        return self.checks.of(other.public, self.answered.append, self.met.append)


@pytest.fixture
def sides() -> tuple[Side, Side]:
    return Side(), Side()


def test_a_check_is_answered_and_shows_both_where_they_are(sides) -> None:
    here, there = sides
    with here.looks_for(there), there.looks_for(here):
        way = Way("host", THERE)
        here.checks.check(there.public, way)
        ((check, _),) = here.sent
        there.checks.hear(check, HERE)
        assert there.met == [Way("peer-reflexive", HERE)]
        ((answer, back),) = there.sent
        assert back == Way("peer-reflexive", HERE)
        here.checks.hear(answer, THERE)
        here.checks.hear(answer, THERE)
        assert here.answered == [way], "once"


def test_what_comes_through_a_relay_is_known_as_that(sides) -> None:
    here, there = sides
    with here.looks_for(there), there.looks_for(here):
        here.checks.check(there.public, Way("host", THERE, through_relay=True))
        there.checks.hear(here.sent[0][0], ELSEWHERE)
        assert there.met == [Way("relay", ELSEWHERE)]
        there.checks.hear(here.sent[0][0], ELSEWHERE, through_relay=True)
        assert there.sent[-1][1] == Way("relay", ELSEWHERE, through_relay=True)


def test_an_answer_counts_only_from_where_the_check_went(sides) -> None:
    here, there = sides
    with here.looks_for(there), there.looks_for(here):
        here.checks.check(there.public, Way("host", THERE))
        there.checks.hear(here.sent[0][0], HERE)
        here.checks.hear(there.sent[0][0], ELSEWHERE)
        here.checks.hear(there.sent[0][0], THERE, through_relay=True)
        assert here.answered == []


def test_a_check_that_is_sent_back_to_its_sender_is_none(sides) -> None:
    here, there = sides
    with here.looks_for(there):
        here.checks.check(there.public, Way("host", THERE))
        here.checks.hear(here.sent[0][0], THERE)
        assert (here.met, here.answered, len(here.sent)) == ([], [], 1)


def test_who_is_not_looked_for_gets_no_answer_and_is_not_checked(sides) -> None:
    here, there = sides
    with here.looks_for(there):
        here.checks.check(there.public, Way("host", THERE))
    there.checks.hear(here.sent[0][0], HERE)
    with there.looks_for(here):
        pass
    there.checks.hear(here.sent[0][0], HERE)
    there.checks.check(here.public, Way("host", HERE))
    there.checks.hear(b"\1\0\0\0" + bytes(144), HERE)
    assert there.sent == []


def test_a_key_that_no_node_can_have_is_looked_for_in_vain(sides) -> None:
    here, _ = sides
    with here.checks.of(bytes(32), here.answered.append, here.met.append):
        here.checks.check(bytes(32), Way("host", THERE))
    assert here.sent == []
