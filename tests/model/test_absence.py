"""The count of absence."""

from hypothesis import given
from hypothesis import strategies as st

from overlayd.model.absence import Absence


def test_a_node_that_is_absent_for_its_time_is_due_and_one_that_was_seen_meanwhile_is_not() -> None:
    absence = Absence(10, 4)
    assert absence.read(["a", "b"], [], 0) == []
    assert absence.read(["a", "b"], [], 4) == []
    assert absence.read(["a", "b"], ["b"], 8) == []
    assert absence.read(["a", "b"], [], 12) == ["a"]
    assert absence.read(["b"], [], 16) == []


def test_time_without_a_reading_does_not_count() -> None:
    absence = Absence(10, 4)
    absence.read(["a"], [], 0)
    absence.failed()
    assert absence.read(["a"], [], 1000) == []
    assert absence.read(["a"], [], 1004) == []
    # Nor does a pause of the process, but for a little.
    assert absence.read(["a"], [], 9000) == ["a"]
    paused = Absence(100, 4)
    paused.read(["a"], [], 0)
    assert paused.read(["a"], [], 9000) == []


@given(st.lists(st.tuples(st.floats(0, 30), st.booleans(), st.booleans()), max_size=40))
def test_nobody_goes_before_the_sum_of_what_was_watched(steps: list[tuple[float, bool, bool]]) -> None:
    absence, now, watched, last = Absence(20, 5), 0.0, 0.0, None
    for passed, reads, there in steps:
        now += passed
        if not reads:
            absence.failed()
            last = None
            continue
        if last is not None:
            watched += min(now - last, 10)
        last = now
        due = absence.read(["a"], ["a"] if there else [], now)
        if there:
            watched = 0.0
            absent = False
        else:
            absent = True
        if due:
            assert absent
            assert watched >= 20
