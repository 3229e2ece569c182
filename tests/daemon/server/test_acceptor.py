"""How many connections there may be, and what happens to those beyond."""

import asyncio
import contextlib
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab.patience import until_async as until
from serving import Fake, change, connect, serving, status

from overlayd.daemon.server import accepting, idle
from overlayd.daemon.server.acceptor import Quotas
from overlayd.daemon.server.connection import LIMITS

NEVER = 3600.0  # seconds that no test lasts
LOOKS = LIMITS._replace(incomplete=0.05)  # so often it is looked who is idle


async def answered(path: str) -> bool:
    """Whether somebody new gets an answer; nobody does who is hung up on."""
    async with await connect(path) as client:
        client.send(status(1))
        try:
            return await client.answers(1) == [(1, "status")]
        except (EOFError, OSError):
            return False


@pytest.mark.parametrize(("quotas", "named"), [(Quotas(8, 8, 3), "process"), (Quotas(8, 3, 8), "user")])
async def test_who_has_used_up_its_quota_is_hung_up_on(
    path: str, quotas: Quotas, named: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle, "IDLE", NEVER)
    async with serving(path, quotas=quotas) as server:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(3):
                await stack.enter_async_context(await connect(path))
            await until(lambda: len(server.connections) == 3)
            assert not await answered(path)
        await until(lambda: not server.connections)
        assert await answered(path)
    assert caplog.text.count(f"too many connections: {named} ") == 1
    assert f"--max-connections-per-{named}" in caplog.text


async def test_when_all_are_taken_accepting_pauses_and_goes_on_when_one_is_closed(
    path: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle, "IDLE", NEVER)
    async with serving(path, quotas=Quotas(2, 9, 9)) as server:
        first, second = await connect(path), await connect(path)
        await until(lambda: len(server.connections) == 2)
        waiting = [asyncio.create_task(answered(path)) for _ in range(3)]
        await until(lambda: "no further connections" in caplog.text)
        second.send(status(7))  # what is open goes on
        assert await second.answers(1) == [(7, "status")]
        first.writer.transport.abort()
        assert await asyncio.gather(*waiting) == [True] * 3  # one after the other
        second.writer.transport.abort()
    assert "--max-connections" in caplog.text


@pytest.mark.parametrize(
    ("quotas", "named"),
    [
        (Quotas(3, 9, 9), "all 3 are taken (--max-connections)"),
        (Quotas(9, 3, 9), f"user {os.getuid()} has its 3 already"),
    ],
)
async def test_who_was_idle_longest_gives_way_and_who_works_or_watches_stays(
    path: str, quotas: Quotas, named: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle, "IDLE", -NEVER)
    fake = Fake()
    async with serving(path, fake, quotas=quotas, limits=LOOKS) as server, contextlib.AsyncExitStack() as stack:
        works, *_ = [await stack.enter_async_context(await connect(path)) for _ in range(3)]
        works.send(change(1, "web"))
        await until(lambda: fake.begun == ["web"] and len(server.connections) == 3)
        watches, idles = [each for each in server.connections if each.is_idle]
        watches.watches = True
        assert await answered(path)
        assert watches in server.connections
        assert idles not in server.connections
        fake.open("web")
        assert await works.answers(1) == [(1, "web")]
    assert caplog.text.count("connection closed: it was idle for") == 1
    assert named in caplog.text


async def test_when_none_is_idle_accepting_pauses_until_one_is(
    path: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle, "IDLE", -NEVER)
    fake = Fake()
    async with serving(path, fake, quotas=Quotas(1, 9, 9), limits=LOOKS), await connect(path) as works:
        works.send(change(1, "web"))
        await until(lambda: fake.begun == ["web"])
        waits = asyncio.create_task(answered(path))
        await until(lambda: "none is idle (--max-connections)" in caplog.text)
        fake.open("web")
        assert await works.answers(1) == [(1, "web")]
        assert await waits


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # the standard streams are open all the time
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_without_a_descriptor_accepting_pauses_and_comes_back_by_itself(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(path) as server:
        with socket.socket(socket.AF_UNIX) as raw:
            raw.setblocking(False)
            with no_descriptor_left():
                raw.connect(path)
                await until(lambda: "no further connections" in caplog.text)
                assert not server.connections
            await until(lambda: len(server.connections) == 1)
    assert "Too many open files" in caplog.text
    assert "LimitNOFILE" in caplog.text


def remove(path: str, *, directory: bool = False) -> None:
    Path(path).unlink()
    if directory:
        Path(path).parent.rmdir()


def plant(path: str) -> None:
    Path(path).write_text("precious")


@pytest.mark.parametrize("removed", ["file", "directory"])
async def test_a_socket_that_somebody_removed_is_there_again_and_what_is_open_goes_on(
    path: str, removed: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accepting, "LOOK", 0.05)
    async with serving(path), await connect(path) as client:
        remove(path, directory=removed == "directory")
        await until(lambda: "it is there again" in caplog.text)
        assert await answered(path)
        client.send(status(7))
        assert await client.answers(1) == [(7, "status")]
    assert caplog.text.count(path) == 1


async def test_what_stands_in_the_sockets_place_is_told_once_and_stays(
    path: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accepting, "LOOK", 0.05)
    async with serving(path):
        remove(path)
        plant(path)
        await until(lambda: "clients do not find this daemon" in caplog.text)
        await asyncio.sleep(0.2)
        remove(path)
        await until(lambda: "it is there again" in caplog.text)
        assert await answered(path)
    assert caplog.text.count("clients do not find this daemon") == 1


@given(st.builds(Quotas, *[st.integers(1, 2**20)] * 3), st.integers(1, 2**21))
def test_connections_get_a_quarter_of_the_descriptors_at_most(asked: Quotas, descriptors: int) -> None:
    given = asked.within(descriptors)
    assert 1 <= given.all <= max(1, descriptors // 4)
    assert given == asked or given.all < asked.all
    assert all(1 <= got <= want for got, want in zip(given, asked, strict=True))
