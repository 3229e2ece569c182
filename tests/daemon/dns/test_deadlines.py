"""Calls that are due at some time."""

import asyncio

from overlayd.daemon.dns import deadlines as module
from overlayd.daemon.dns.deadlines import TICK, Deadlines


async def test_calls_come_in_their_order_and_none_too_early():
    loop = asyncio.get_running_loop()
    deadlines, now, made = Deadlines(), loop.time(), []
    over = loop.create_future()
    for ticks in (7, 2, 5, 2):
        deadlines.call_at(now + ticks * TICK, lambda ticks=ticks: made.append((ticks, loop.time() - now)))
    deadlines.call_at(now + 9 * TICK, lambda: over.set_result(None))
    await over
    assert [ticks for ticks, _ in made] == [2, 2, 5, 7]
    assert all(late >= ticks * TICK - 0.002 for ticks, late in made)


async def test_what_is_taken_back_is_not_called():
    loop = asyncio.get_running_loop()
    deadlines, now, over = Deadlines(), loop.time(), loop.create_future()
    vain = lambda: over.set_exception(AssertionError())  # noqa: E731
    deadlines.forget(deadlines.call_at(now + 2 * TICK, vain), vain)
    deadlines.forget(12345, vain)
    deadlines.call_at(now + 4 * TICK, lambda: over.set_result(None))
    await over
    deadlines.call_at(now + 5 * TICK, vain)
    deadlines.close()
    await asyncio.sleep(3 * TICK)
    assert not deadlines._calls


async def test_others_are_served_while_many_are_due(monkeypatch):
    monkeypatch.setattr(module, "SLICE", 0.0)
    loop = asyncio.get_running_loop()
    deadlines, now, over = Deadlines(), loop.time(), loop.create_future()
    made = []
    for number in range(50):
        deadlines.call_at(now, lambda number=number: made.append(number))
    deadlines.call_at(now, lambda: loop.call_soon(over.set_result, None))
    turns = 0
    while not over.done():
        await asyncio.sleep(0)
        turns += bool(made)
    assert made == list(range(50)) and turns >= 50
