"""The journal where things go wrong at the worst moment: crashes at every step, disks that refuse."""

# ruff: noqa: ASYNC110, ASYNC221 -- a test may block its loop, and poll

import asyncio
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_log import Change, Rows, states
from test_journal import STATES, A, B, C, files, opened, rows_of, write

from overlayd import fault
from overlayd.daemon.change import journal
from overlayd.daemon.change.journal import Journal
from overlayd.errors import StateError
from overlayd.proto import log

POINTS = [
    "journal:checkpoint:create",
    "journal:checkpoint:write",
    "journal:checkpoint:sync",
    "journal:checkpoint:rename",
    "journal:checkpoint:directory",
    "journal:write",
    "journal:sync",
]
CRASH_POINTS = [*POINTS, "journal:checkpoint:done", "journal:synced"]

# Commits the changes on stdin in groups; says what it is about to commit and what it was told is durable.
CHILD = """
import asyncio, json, os, sys
from pathlib import Path
from overlayd.daemon.change import journal
journal.CHECKPOINT_BYTES = 600
journal.CHECKPOINT_RATIO = 2

async def main():
    opened = journal.Journal.open(Path(sys.argv[1]))
    groups = json.load(sys.stdin)
    made = told = 0
    for group in groups:
        changes = [{(t, k): None if v is None else v.encode() for t, k, v in change} for change in group]
        made += len(changes)
        os.write(1, b"made %d\\n" % made)
        await asyncio.gather(*map(opened.commit, changes))
        told += len(changes)
        os.write(1, b"told %d\\n" % told)
    await opened.close()

asyncio.run(main())
"""


@contextmanager
def failing(*points: str, error: int) -> Iterator[None]:
    """Refuse the next operation at each of `points`, once."""
    left = list(points)

    def point(name: str) -> None:
        if name in left:
            left.remove(name)
            raise OSError(error, os.strerror(error))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fault, "point", point)
        yield


def random_groups(seed: int, groups: int) -> list[list[Change]]:
    """Batches of changes over few rows, so that rows are set again and removed, and the log outgrows its state."""
    draw = random.Random(seed)
    return [
        [
            {
                (draw.choice("tu"), f"k{draw.randrange(6)}"): draw.choice([None, b'"%d"' % draw.randrange(10**9)])
                for _ in range(draw.randint(1, 3))
            }
            for _ in range(draw.randint(1, 4))
        ]
        for _ in range(groups)
    ]


def run_child(directory: Path, groups: list[list[Change]], armed: str = "") -> tuple[int, int, int]:
    """Exit status, changes made and changes that were told to be durable."""
    given_ = [[[[t, k, v and v.decode()] for (t, k), v in change.items()] for change in group] for group in groups]
    ended = subprocess.run(
        [sys.executable, "-c", CHILD, str(directory)],
        input=json.dumps(given_).encode(),
        stdout=subprocess.PIPE,
        env={**os.environ, "OVERLAYD_FAULT": armed},
        check=False,
    )
    said = [line.split() for line in ended.stdout.decode().splitlines()]
    made, told = (max((int(n) for what, n in said if what == word), default=0) for word in ("made", "told"))
    return ended.returncode, made, told


# Crashes


@pytest.mark.parametrize("passage", [1, 2, 5])
@pytest.mark.parametrize("point", CRASH_POINTS)
async def test_a_crash_at_every_step_loses_nothing_that_was_told_durable(
    tmp_path: Path, point: str, passage: int
) -> None:
    groups = random_groups(seed=passage, groups=40)
    changes = [change for group in groups for change in group]
    status, made, told = run_child(tmp_path, groups, f"{point}:{passage}")
    assert status == -signal.SIGKILL
    assert told <= made < len(changes)
    history = states(changes)
    recovered = await rows_of(tmp_path)
    assert recovered in history[told : made + 1]
    assert files(tmp_path) <= {"lock", "journal"}
    # Life goes on from what came back.
    status, _, _ = run_child(tmp_path, groups)
    assert status == 0
    assert await rows_of(tmp_path) == states([recovered, *changes])[-1]


async def test_a_crash_while_the_torn_end_is_cut_off_only_repeats_it(tmp_path: Path) -> None:
    await write(tmp_path, A, B)
    with (tmp_path / "journal").open("ab") as torn:
        torn.write(log.record(3, 2, log.encode_change(C))[:-1])
    status, _, _ = run_child(tmp_path, [], "journal:recover:cut:1")
    assert status == -signal.SIGKILL
    async with opened(tmp_path) as made:
        assert made.rows == STATES[2]
        assert made.recovered is not None


Step = tuple[str, list[Change]]
changes_ = st.dictionaries(
    st.tuples(st.sampled_from("tu"), st.sampled_from("abc")), st.none() | st.sampled_from([b"1", b'"xyz"']), max_size=3
)
steps = st.lists(
    st.tuples(st.sampled_from(["commit", "reopen", *POINTS]), st.lists(changes_, min_size=1, max_size=3)),
    max_size=12,
)


@settings(max_examples=60)
@given(steps)
def test_random_commits_failures_and_restarts_follow_the_oracle(script: list[Step]) -> None:
    """Each step commits a batch; some of them are refused at a random place, and then must have left no trace."""

    async def play(directory: Path) -> None:
        rows: Rows = {}
        made = Journal.open(directory)
        try:
            for what, batch in script:
                if what == "reopen":
                    await made.close()
                    made = Journal.open(directory)
                    assert made.rows == rows
                    assert made.recovered is None
                with failing(what, error=errno.EIO):
                    outcomes = await asyncio.gather(*map(made.commit, batch), return_exceptions=True)
                refused = [isinstance(outcome, StateError) for outcome in outcomes]
                for change, was_refused in zip(batch, refused, strict=True):
                    if not was_refused:
                        rows = states([rows, change])[-1]
                # What the disk holds now is what a kill -9 would leave.
                path = directory / "journal"
                assert (log.recover(path.read_bytes()).rows if path.exists() else {}) == rows
        finally:
            await made.close()

    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patched:
        patched.setattr(journal, "CHECKPOINT_BYTES", 300)
        patched.setattr(journal, "CHECKPOINT_RATIO", 1)
        asyncio.run(play(Path(name)))


# Disks that refuse


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("points", [*((point,) for point in POINTS), ("journal:sync", "journal:rollback")])
async def test_a_refused_commit_never_comes_back_and_the_next_one_is_kept(
    tmp_path: Path, points: tuple[str, ...], error: int
) -> None:
    is_first = "checkpoint" in points[0]
    async with opened(tmp_path) as made:
        if not is_first:
            await made.commit(A)
        with failing(*points, error=error), pytest.raises(StateError) as caught:
            await made.commit({("t", "refused"): b"0"})
        assert f"cannot write {tmp_path}/journal" in str(caught.value)
        assert f"(errno {error})" in str(caught.value)
        if is_first:
            assert files(tmp_path) == {"lock"}
            await made.commit(A)
        await made.commit(B)
        assert log.recover((tmp_path / "journal").read_bytes()).rows == STATES[2]
    assert files(tmp_path) == {"lock", "journal"}
    assert await rows_of(tmp_path) == STATES[2]


@pytest.mark.parametrize("point", POINTS[:5])
async def test_a_failed_sync_is_followed_by_a_rewrite_that_may_fail_too(
    tmp_path: Path, point: str, pin: Callable[[Path], int]
) -> None:
    async with opened(tmp_path) as made:
        await made.commit(A)
        inode = pin(tmp_path / "journal")
        for points in [("journal:sync",), (point,), (point,)]:
            with failing(*points, error=errno.EIO), pytest.raises(StateError):
                await made.commit({("t", "refused"): b"0"})
            assert log.recover((tmp_path / "journal").read_bytes()).rows == STATES[1]
        await made.commit(B)
        assert (tmp_path / "journal").stat().st_ino != inode
    assert files(tmp_path) == {"lock", "journal"}
    assert await rows_of(tmp_path) == STATES[2]


async def test_no_commit_relies_on_a_checkpoint_whose_name_may_not_be_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pin: Callable[[Path], int]
) -> None:
    path = tmp_path / "journal"
    await write(tmp_path, A)  # by another one: whether a checkpoint is due is asked after the answer, so perhaps below
    async with opened(tmp_path) as made:
        with failing("journal:checkpoint:directory", error=errno.EIO), monkeypatch.context() as patched:
            patched.setattr(journal, "CHECKPOINT_BYTES", 0)
            patched.setattr(journal, "CHECKPOINT_RATIO", 0)
            await made.commit(B)
            while made._no_checkpoint_below == 0:
                await asyncio.sleep(0.001)
        replaced = pin(path)
        await made.commit(C)
        assert path.stat().st_ino != replaced
    assert await rows_of(tmp_path) == STATES[3]


async def test_an_unforeseen_exception_fails_its_batch_and_not_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object) -> None:
        raise KeyError("unforeseen")

    async with opened(tmp_path) as made:
        await made.commit(A)
        with monkeypatch.context() as patched:
            patched.setattr(fault, "point", bug)
            with pytest.raises(StateError, match="KeyError"):
                await made.commit({("t", "refused"): b"0"})
        await made.commit(B)
    assert await rows_of(tmp_path) == STATES[2]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with pytest.raises(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filler


BIG = b'"%s"' % (b"x" * 9000)


async def test_a_full_disk_refuses_commits_until_there_is_room(small_disk: Path) -> None:
    directory = small_disk / "data"
    async with opened(directory) as made:
        filler = fill(small_disk)
        with pytest.raises(StateError, match="free space"):  # there is no log yet
            await made.commit({("t", "big"): BIG})
        assert files(directory) == {"lock"}
        filler.unlink()
        await made.commit(A)
        size = (directory / "journal").stat().st_size
        filler = fill(small_disk)
        outcomes = await asyncio.gather(
            *(made.commit({("t", f"big{n}"): BIG}) for n in range(5)), return_exceptions=True
        )
        assert all(isinstance(outcome, StateError) and "No space left" in str(outcome) for outcome in outcomes)
        assert (directory / "journal").stat().st_size == size
        filler.unlink()
        await made.commit(B)
        await made.commit({("t", "big"): BIG})
    assert await rows_of(directory) == STATES[2] | {("t", "big"): BIG}


async def test_a_disk_without_room_for_a_checkpoint_still_takes_commits(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(journal, "CHECKPOINT_BYTES", 60_000)
    monkeypatch.setattr(journal, "CHECKPOINT_RATIO", 1)
    directory = small_disk / "data"
    async with opened(directory) as made:
        await made.commit({("t", f"big{n}"): BIG for n in range(15)})
        for _ in range(8):  # 135 KB live, 207 KB of log: a checkpoint is due and does not fit
            await made.commit({("t", "big0"): BIG})
    assert "cannot write a checkpoint" in caplog.text
    assert files(directory) == {"lock", "journal"}
    assert await rows_of(directory) == {("t", f"big{n}"): BIG for n in range(15)}


async def test_a_full_disk_does_not_keep_a_torn_log_from_starting(small_disk: Path) -> None:
    directory = small_disk / "data"
    await write(directory, A)
    whole = (directory / "journal").read_bytes()
    torn = log.record(2, 1, log.encode_change({("t", "big"): BIG}))[:-1]
    (directory / "journal").write_bytes(whole + torn)
    filler = fill(small_disk)
    async with opened(directory) as made:
        assert made.rows == STATES[1]
        assert made.recovered is not None
        assert "No space left" in made.recovered
        assert files(directory) == {"lock", "journal"}
        filler.unlink()
        await made.commit(B)
    async with opened(directory) as made:
        assert (made.rows, made.recovered) == (STATES[2], None)


async def test_a_read_only_disk_is_named_at_the_start(small_disk: Path) -> None:
    directory = small_disk / "data"
    await write(directory, A)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StateError, match="remount it writable"):
        Journal.open(directory)
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    assert await rows_of(directory) == STATES[1]


async def test_a_file_system_that_turns_read_only_refuses_commits_and_keeps_the_rest(tmp_path: Path) -> None:
    """ext4 does this after an error on its disk; there is no way back but to mount it anew."""
    image, disk = tmp_path / "image", tmp_path / "disk"
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(4 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop,errors=remount-ro", image, disk], check=True)
    try:
        async with opened(disk / "data") as made:
            await made.commit(A)
            subprocess.run(["mount", "-o", "remount,abort", disk], check=True)
            for _ in range(2):
                with pytest.raises(StateError, match="Read-only file system"):
                    await made.commit({("t", "refused"): b"0"})
    finally:
        subprocess.run(["umount", disk], check=True)
    # A copy: the loop device of the first may still be going, and what it holds in its cache would be mounted again.
    mended = tmp_path / "mended"
    shutil.copyfile(image, mended)
    assert subprocess.run(["e2fsck", "-p", mended], capture_output=True, check=False).returncode in (0, 1)  # 1: mended
    subprocess.run(["mount", "-o", "loop", mended, disk], check=True)
    try:
        await write(disk / "data", B)
        assert await rows_of(disk / "data") == STATES[2]
    finally:
        subprocess.run(["umount", disk], check=True)
