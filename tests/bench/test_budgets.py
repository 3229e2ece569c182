"""Budgets: what the file says, and when one is broken."""

import pytest
from check import budgets
from check.budgets import Budget
from check.cases.all import GROUPS


def test_a_file_is_read() -> None:
    text = "[attach]\ntime = 3\ngoal.time = 2.0\nswitches = 100\n"
    assert budgets.parse(text) == (Budget("attach", "time", 3.0, 2.0), Budget("attach", "switches", 100.0))
    with pytest.raises(ValueError, match=r"attach\.time is no number"):
        budgets.parse('[attach]\ntime = "3"\n')


def test_times_are_beside_the_yardstick_of_the_same_pair() -> None:
    budget = Budget("attach", "time", 3.0)
    yardstick = [{"time": each} for each in (1.0, 2.0, 4.0)]
    assert not budgets.check(budget, [{"time": each} for each in (2.9, 5.8, 11.6)], yardstick).is_broken
    assert budgets.check(budget, [{"time": each} for each in (3.1, 6.2, 12.4)], yardstick).is_broken


def test_counts_stand_by_themselves() -> None:
    assert budgets.check(Budget("attach", "switches", 8.0), [{"switches": 9.0}] * 3, ()).is_broken
    memory = budgets.check(Budget("start", "memory", 36.0), [{"memory": 35.0 * 2**20}] * 3, ())
    assert (memory.value, memory.is_broken) == (35.0, False)


def test_without_a_yardstick_nothing_is_broken() -> None:
    assert budgets.check(Budget("attach", "time", 3.0), [{"time": 1e9}] * 3, ()).value is None


def test_every_budget_is_of_a_case_that_is_measured() -> None:
    cases = {case.name for group in GROUPS for case in group.cases}
    assert {each.case for each in budgets.read()} <= cases
