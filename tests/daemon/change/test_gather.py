"""Groups: who joins which, and who may not."""

import asyncio

from overlayd.daemon.change.gather import Decision, Gathering
from overlayd.errors import RequestError


def decision():
    return Decision(lambda draft: None)


async def test_the_first_leads_and_the_others_join():
    gathering = Gathering(largest=3)
    members = [decision() for _ in range(5)]
    groups = [gathering.join(["peers"], member) for member in members]
    assert [group is not None for group in groups] == [True, False, False, True, False]
    assert groups[0].decisions == members[:3]
    assert groups[3].decisions == members[3:]


async def test_of_large_ones_a_group_takes_fewer():
    gathering = Gathering(largest=6)
    sizes = [2, 3, 2, 1, 4, 9, 1]
    groups = [gathering.join(["peers"], decision(), size) for size in sizes]
    assert [group is not None for group in groups] == [True, False, True, False, True, True, True]


async def test_different_resources_are_different_groups():
    gathering = Gathering(largest=3)
    one, other = gathering.join(["peers"], decision()), gathering.join(["peers web", "routes"], decision())
    assert one is not None and other is not None and one is not other
    assert gathering.join(["peers web", "routes"], decision()) is None


async def test_nobody_joins_once_the_turn_has_come():
    gathering = Gathering(largest=3)
    group = gathering.join(["peers"], decision())
    gathering.close(group)
    later = gathering.join(["peers"], decision())
    assert later is not None
    gathering.close(group)
    assert gathering.join(["peers"], decision()) is None, "the turn of an earlier group closes that one only"


async def test_nobody_overtakes_who_queued_behind_a_group():
    for names, everything, closed in (
        (["routes"], False, True),
        ([], True, True),
        (["peers", "service web"], False, False),
    ):
        gathering = Gathering(largest=3)
        gathering.join(["peers web", "routes"], decision())
        gathering.queued_behind(names, everything)
        assert (gathering.join(["peers web", "routes"], decision()) is not None) == closed


async def test_nobody_overtakes_another_group_that_shares_a_resource():
    gathering = Gathering(largest=3)
    gathering.join(["peers web", "routes"], decision())
    gathering.join(["peers db", "routes"], decision())
    assert gathering.join(["peers web", "routes"], decision()) is not None
    assert gathering.join(["peers web", "routes"], decision()) is None


async def test_a_decision_may_be_taken_again_and_is_settled_by_its_last_answer():
    answers = iter([RequestError("no"), 7])

    def decide(draft):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    made = Decision(decide)
    assert not made.take(None)
    assert made.take(None)
    made.settle()
    assert await made.outcome == 7


async def test_a_refusal_reaches_who_asked():
    def decide(draft):
        raise RequestError("no such peer")

    made = Decision(decide)
    assert not made.take(None)
    made.settle()
    (error,) = await asyncio.gather(made.outcome, return_exceptions=True)
    assert isinstance(error, RequestError)
