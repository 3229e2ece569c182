"""Which address of a name counts, and when it is asked for again."""

from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from overlayd.model.resolution import LONGEST_PAUSE, LONGEST_STALE_PAUSE, choose, failure_pause, stale_pause

ONE, TWO, SIX = ip_address("192.0.2.1"), ip_address("192.0.2.2"), ip_address("2001:db8::1")


def test_the_resolvers_preference_counts_until_an_address_is_in_use():
    assert choose([SIX, ONE], None) == SIX
    assert choose([SIX, TWO, ONE], ONE) == ONE, "the order of answers rotates"
    assert choose([SIX, TWO], ONE) == SIX


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_pauses_grow_to_a_limit_and_never_vanish(times, jitter):
    for pause, longest in ((failure_pause, LONGEST_PAUSE), (stale_pause, LONGEST_STALE_PAUSE)):
        assert 0.4 < pause(times, jitter) <= longest
        assert pause(times + 1, jitter) >= pause(times, jitter)
    assert failure_pause(0, 1) == 1 and failure_pause(3, 1) == 8 and failure_pause(3, 0) == 4
