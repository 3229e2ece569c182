"""Simulated bad days: nothing that must hold is violated, and what is planted is found."""

import pytest

from sim.world import PLANTED, bad_day, long_day, shrunk, violations

DAYS = 60


@pytest.mark.parametrize("first", range(0, DAYS, 20))
def test_what_must_hold_holds_on_bad_days(first: int) -> None:
    for seed in range(first, first + 20):
        nodes, faults = bad_day(seed)
        found = violations(seed, nodes, faults)
        assert not found, (seed, nodes, shrunk(seed, nodes, faults), found)


@pytest.mark.parametrize("seed", [2, 6])
def test_what_must_hold_holds_in_a_larger_cluster(seed: int) -> None:
    """`make cluster-sim` has 200 nodes and 2,000 faults."""
    assert not violations(seed, 30, long_day(seed, 30, 80))


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_bug_is_found(planted: str) -> None:
    for seed in range(60):
        nodes, faults = bad_day(seed)
        if violations(seed, nodes, faults, planted):
            return
    pytest.fail(f"sixty bad days do not show the planted bug {planted}")
