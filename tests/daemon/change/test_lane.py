"""What waits for a lane is done together, in its order, and each hears of its own end."""

import asyncio
from threading import Event

import pytest
from lab.patience import LIMIT

from overlayd.daemon.change.lane import Lane


class Slow:
    """Work that waits to be let go, and refuses what is odd."""

    def __init__(self) -> None:
        self.visits: list[list[int]] = []
        self.began, self.may_go = Event(), Event()

    def __call__(self, things):
        self.visits.append(list(things))
        self.began.set()
        assert self.may_go.wait(LIMIT)
        return [ValueError(thing) if thing % 2 else None for thing in things]


def put(lane, thing):
    done = asyncio.get_running_loop().create_future()
    lane.put(thing, done)
    return done


async def test_what_comes_meanwhile_is_done_together_and_in_order() -> None:
    work = Slow()
    lane = Lane("test", work, most=4)
    first = put(lane, 0)
    assert await asyncio.to_thread(work.began.wait, LIMIT)
    others = [put(lane, thing) for thing in range(1, 7)]
    work.may_go.set()
    outcomes = await asyncio.gather(first, *others, return_exceptions=True)
    assert [str(each) for each in outcomes] == ["None", "1", "None", "3", "None", "5", "None"]
    assert work.visits == [[0], [1, 2, 3, 4], [5, 6]]
    lane.close()


async def test_a_bug_reaches_everybody_and_the_lane_goes_on() -> None:
    broken = [True]

    def work(things):
        if broken.pop():
            raise KeyError("bug")
        return [None] * len(things)

    broken[:0] = [False]
    lane = Lane("test", work, most=1)
    with pytest.raises(KeyError):
        await put(lane, 1)
    await put(lane, 2)
    lane.close()


async def test_whoever_has_gone_disturbs_nobody() -> None:
    work = Slow()
    lane = Lane("test", work, most=4)
    gone, stays = put(lane, 0), put(lane, 2)
    gone.cancel()
    work.may_go.set()
    await stays
    lane.close()


async def test_what_waits_is_finished_at_the_end() -> None:
    work = Slow()
    lane = Lane("test", work, most=1)
    waiting = [put(lane, thing) for thing in (0, 2, 4)]
    work.may_go.set()
    await asyncio.to_thread(lane.close)
    await asyncio.gather(*waiting)
    assert work.visits == [[0], [2], [4]]
