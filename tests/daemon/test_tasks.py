"""Where background work ends: at the end of the block, however that ends, and never because of other work."""

import asyncio
import logging

import pytest

from overlayd.daemon import tasks
from overlayd.daemon.tasks import Tasks


async def test_the_end_of_the_block_waits_for_tasks_and_for_those_that_they_start() -> None:
    ended, gate = [], asyncio.Event()

    async def last() -> None:
        await asyncio.sleep(0)
        ended.append("last")

    async def first(subject: Tasks) -> None:
        await gate.wait()
        subject.spawn(last())
        ended.append("first")

    async with Tasks() as subject:
        subject.spawn(first(subject))
        asyncio.get_running_loop().call_soon(gate.set)
    assert ended == ["first", "last"]


async def test_a_block_that_fails_cancels_its_tasks_and_waits_for_their_end() -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append("work")

    with pytest.raises(OSError, match="the block's own"):
        async with Tasks() as subject:
            task = subject.spawn(work())
            kept = subject.keep_up(work)
            await asyncio.sleep(0)
            raise OSError("the block's own")
    assert ended == ["work", "work"]
    assert task.cancelled()
    assert kept.cancelled()


async def test_a_bug_is_logged_and_ends_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    async def bug() -> None:
        raise ZeroDivisionError

    ended = asyncio.Event()

    async def other() -> None:
        await asyncio.sleep(0)
        ended.set()

    async with Tasks() as subject:
        subject.spawn(bug())
        subject.spawn(other())
        await ended.wait()
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


async def test_what_is_kept_up_begins_anew_after_a_bug_and_is_done_when_it_returns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks, "PAUSE", 0.0)
    begun = 0

    async def watch() -> None:
        nonlocal begun
        begun += 1
        if begun < 3:
            raise ZeroDivisionError

    async with Tasks() as subject:
        subject.keep_up(watch)
    assert begun == 3


async def test_whoever_starts_a_task_may_cancel_it() -> None:
    async with Tasks() as subject:
        subject.keep_up(asyncio.Event().wait).cancel()  # type: ignore[arg-type]
        subject.spawn(asyncio.sleep(1000)).cancel()
        subject.spawn(asyncio.sleep(1000))
        subject.cancel()
