"""A container that died is buried, if need be later."""

import asyncio

from overlayd.daemon.upkeep import deaths
from overlayd.daemon.upkeep.deaths import DeathWatch
from overlayd.errors import StateError
from overlayd.linux import netns
from overlayd.model.rows import Attachment


async def test_a_burial_that_is_refused_is_tried_again(monkeypatch) -> None:
    monkeypatch.setattr(deaths, "RETRY", 0.01)
    tries, done = [], asyncio.Event()

    async def reclaim(handle: str) -> None:
        tries.append(handle)
        if len(tries) < 3:
            raise StateError("cannot write the journal: no space left on device")
        done.set()

    async with asyncio.TaskGroup() as tasks:
        watch = DeathWatch(reclaim, tasks.create_task)
        process = await asyncio.create_subprocess_exec("sleep", "60")
        row = Attachment(handle="pid:1", service="w", address="10.0.0.1", netns=netns.identify(process.pid))
        watch.follow({row.id: row})
        process.kill()
        await process.wait()
        await asyncio.wait_for(done.wait(), 5)
        watch.close()
    assert tries == ["pid:1"] * 3
