"""What is lost once is put back at once, what is lost in a loop ever later, and the effort stays bounded."""

from hypothesis import given
from hypothesis import strategies as st

from overlayd.model.backoff import CALM, COSTS, FIRST, LONGEST, Backoff


def test_the_first_loss_and_every_one_after_a_calm_is_put_back_at_once() -> None:
    backoff, now = Backoff(), 100.0
    for _ in range(50):
        assert backoff.due("bridge", now) == now
        backoff.restored("bridge", now, cost=0.01)
        now += CALM
    assert backoff.strikes("bridge") == 0


def test_a_loss_in_a_loop_is_put_back_ever_later_and_no_later_than_the_longest() -> None:
    backoff, now = Backoff(), 100.0
    pauses = []
    for _ in range(20):
        due = backoff.due("bridge", now)
        pauses.append(round(due - now, 6))
        backoff.restored("bridge", due, cost=0.0)
        now = due + 0.001
    assert pauses[0] == 0
    assert pauses == sorted(pauses)
    assert pauses[1] < FIRST
    assert LONGEST - 0.01 < pauses[-1] < LONGEST
    assert backoff.due("veth", now) == now, "another thing is not to blame"


def test_what_guards_others_waits_no_longer_than_its_cost_demands() -> None:
    backoff, now = Backoff(), 100.0
    for _ in range(20):
        due = backoff.due("rules", now, guards=True)
        assert due - now <= COSTS * 0.005
        backoff.restored("rules", due, cost=0.005)
        now = due + 0.001


def test_being_asked_again_changes_nothing() -> None:
    backoff = Backoff()
    backoff.restored("bridge", 10.0, cost=0.0)
    due = backoff.due("bridge", 10.01)
    assert backoff.due("bridge", 10.9) == due == 10.0 + FIRST
    assert backoff.strikes("bridge") == 1


def test_what_is_dear_has_to_stand_longer() -> None:
    backoff = Backoff()
    backoff.restored("device", 10.0, cost=2.0)
    assert backoff.due("device", 10.0 + 2.0 * COSTS - 0.1) == 10.0 + 2.0 * COSTS - 0.1
    assert backoff.strikes("device") == 1
    backoff.restored("device", 30.0, cost=2.0)
    backoff.due("device", 30.0 + 2.0 * COSTS + 0.1)
    assert backoff.strikes("device") == 0


def test_what_stands_is_forgotten_and_what_is_due_is_not() -> None:
    backoff = Backoff()
    for key in ("calm", "lost"):
        backoff.restored(key, 10.0, cost=0.0)
    due = backoff.due("lost", 10.1)
    backoff.forget_calm(10.0 + LONGEST + CALM + 1)
    assert backoff._records.keys() == {"lost"}
    assert backoff.due("lost", 99.0) == due


@given(st.lists(st.floats(0.0, 0.2), min_size=100, max_size=400))
def test_nobody_makes_us_work_much(stands: list[float]) -> None:
    """However fast a thing is lost after each time: over a long time it is put back hardly twice a minute."""
    backoff, now, times = Backoff(), 0.0, 0
    for stood in stands:
        due = backoff.due("bridge", now)
        assert due >= now
        backoff.restored("bridge", due, cost=0.01)
        times += 1
        now = due + stood
    assert times <= 12 + now / (LONGEST / 2)
