"""The decisions of `make bench-check`, with samples made here: a planted delay is found, noise is not taken for one."""

import random
import statistics

import pytest
from check.verdict import PAIRS, Sample, compare, is_doubtful, ratio, ratios
from hypothesis import given
from hypothesis import strategies as st

COST = 1e-3


def measured(rng: random.Random, noise: float, delay: float = 1.0) -> list[Sample]:
    """Six samples of an operation that costs a millisecond, with noise of this standard deviation, and a tail of
    disturbed ones as machines have.
    """
    return [
        {"time": COST * delay * (1 + abs(rng.gauss(0, noise)) + (rng.random() < 0.05) * rng.random())}
        for _ in range(PAIRS)
    ]


def verdict(new: list[Sample], base: list[Sample]) -> str:
    return compare(new, base)["time"][1]


def test_a_planted_delay_is_found() -> None:
    rng = random.Random(1)
    found = [verdict(measured(rng, 0.02, delay=1.15), measured(rng, 0.02)) for _ in range(1000)]
    assert found.count("same") + found.count("faster") < 20
    assert found.count("slower") > 900


def test_equal_versions_pass() -> None:
    rng = random.Random(2)
    found = [verdict(measured(rng, 0.03), measured(rng, 0.03)) for _ in range(1000)]
    assert found.count("slower") <= 2


def test_what_only_one_of_two_measurements_says_is_noise() -> None:
    base: list[Sample] = [{"time": 1.0}] * PAIRS
    slow: list[Sample] = [{"time": 1.2}] * PAIRS
    a_little: list[Sample] = [{"time": 1.09}] * PAIRS
    assert verdict(slow + slow, base + base) == "slower"
    assert verdict(slow + a_little, base + base) == "noise"


def test_what_spreads_widely_is_noise_and_no_verdict() -> None:
    base = [{"time": each} for each in (1.0, 1.0, 1.0, 1.0, 1.0, 1.0)]
    new = [{"time": each} for each in (0.7, 0.8, 0.9, 1.1, 1.3, 1.5)]
    assert verdict(new, base) == "noise"
    assert is_doubtful(compare(new, base))


def test_a_slow_machine_is_no_slow_version() -> None:
    """Only the ratio within a pair counts: both of one became slower."""
    base = [{"time": COST * drift} for drift in (1.0, 1.2, 1.5, 1.9, 1.4, 1.1)]
    new = [{"time": COST * drift * 1.01} for drift in (1.0, 1.2, 1.5, 1.9, 1.4, 1.1)]
    assert verdict(new, base) == "same"
    assert not is_doubtful(compare(new, base))


def test_processor_time_and_switches_have_a_narrower_limit() -> None:
    base: list[Sample] = [{"time": 1.0, "cpu": 1.0, "switches": 20.0}] * PAIRS
    new: list[Sample] = [{"time": 1.07, "cpu": 1.07, "switches": 21.4}] * PAIRS
    assert {metric: word for metric, (_, word) in compare(new, base).items()} == {
        "time": "same",
        "cpu": "slower",
        "switches": "slower",
    }


def test_one_wake_up_more_or_less_is_none() -> None:
    assert ratio("switches", 0.9, 0.1) == 1


def test_a_metric_that_only_one_has_is_not_compared() -> None:
    assert compare([{"time": 1.0, "memory": 2.0}] * 2, [{"time": 1.0}] * 2).keys() == {"time"}


@given(
    st.lists(st.tuples(st.floats(1e-9, 1e3), st.floats(1e-9, 1e3)), min_size=2, max_size=12),
    st.floats(1e-3, 1e3),
)
def test_ratios_are_those_of_pairs_in_any_unit(pairs: list[tuple[float, float]], unit: float) -> None:
    new = [{"time": a * unit} for a, _ in pairs]
    base = [{"time": b * unit} for _, b in pairs]
    found = ratios("time", new, base)
    assert found.median == pytest.approx(statistics.median(a / b for a, b in pairs), rel=1e-6)
    assert found.lower <= found.median <= found.upper
