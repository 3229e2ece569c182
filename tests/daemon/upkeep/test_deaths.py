"""A container that died is buried, if need be later."""

import asyncio

from lab.patience import LIMIT
from msgspec.structs import replace

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
        await asyncio.wait_for(done.wait(), LIMIT)
        watch.close()
    assert tries == ["pid:1"] * 3


async def test_the_end_of_each_process_that_was_attached_is_noticed_once() -> None:
    buried: asyncio.Queue[str] = asyncio.Queue()
    async with asyncio.TaskGroup() as tasks:
        watch = DeathWatch(buried.put, tasks.create_task)
        pause, app, late = [await asyncio.create_subprocess_exec("sleep", "60") for _ in range(3)]
        here = [netns.identify(process.pid) for process in (pause, app, late)]
        row = Attachment(handle="pid:1", service="w", address="10.0.0.1", netns=here[0], others=(here[1],))
        watch.follow({row.id: row})
        pause.kill()
        await pause.wait()
        assert await asyncio.wait_for(buried.get(), LIMIT) == "pid:1"
        row = replace(row, netns=here[1], others=(here[2],))
        watch.follow({row.id: row})
        app.kill()
        await app.wait()
        assert await asyncio.wait_for(buried.get(), LIMIT) == "pid:1"
        watch.follow({row.id: None})
        late.kill()
        await late.wait()
        watch.close()
    assert buried.empty()
