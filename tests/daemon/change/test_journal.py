"""The journal in good times, and what it makes of a torn, damaged or missing file."""

# ruff: noqa: ASYNC220, ASYNC240 -- a test may block its loop

import asyncio
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from oracles_log import Change, Rows, states

from overlayd.daemon.change import journal, recovery
from overlayd.daemon.change.claim import InUse
from overlayd.daemon.change.journal import Journal
from overlayd.errors import StateError
from overlayd.proto import log

A, B, C = {("t", "a"): b"1"}, {("t", "b"): b"2"}, {("t", "a"): None, ("t", "c"): b"3"}
STATES = states([A, B, C])


@asynccontextmanager
async def opened(directory: Path, *, salvage: bool = False) -> AsyncIterator[Journal]:
    made = Journal.open(directory, salvage=salvage)
    try:
        yield made
    finally:
        await made.close()


async def write(directory: Path, *changes: Change) -> None:
    async with opened(directory) as made:
        for change in changes:
            await made.commit(change)


async def rows_of(directory: Path) -> Rows:
    async with opened(directory) as made:
        return made.rows


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


async def test_a_fresh_directory_is_made_private_and_starts_empty(tmp_path: Path) -> None:
    directory = tmp_path / "var" / "overlayd"
    old = os.umask(0)
    try:
        async with opened(directory) as made:
            assert made.rows == {}
            assert made.recovered is None
            assert files(directory) == {"lock"}
            await made.commit(A)
    finally:
        os.umask(old)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()} == {"lock": 0o600, "journal": 0o600}


async def test_a_restored_backup_that_all_may_read_is_made_private(tmp_path: Path) -> None:
    await write(tmp_path, A)
    (tmp_path / "journal").chmod(0o644)
    assert await rows_of(tmp_path) == STATES[1]
    assert (tmp_path / "journal").stat().st_mode & 0o777 == 0o600


async def test_commits_come_back_in_order(tmp_path: Path) -> None:
    for at, change in enumerate((A, B, C)):
        assert await rows_of(tmp_path) == STATES[at]
        await write(tmp_path, change)
    assert await rows_of(tmp_path) == STATES[3]


async def test_what_the_caller_does_to_its_mappings_reaches_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pin: Callable[[Path], int]
) -> None:
    await write(tmp_path, A)
    monkeypatch.setattr(journal, "CHECKPOINT_BYTES", 0)
    monkeypatch.setattr(journal, "CHECKPOINT_RATIO", 0)
    before = pin(tmp_path / "journal")
    async with opened(tmp_path) as made:
        mine: dict[tuple[str, str], bytes | None] = dict(B)
        done = made.commit(mine)
        mine.clear()
        made.rows.clear()
        await done
    assert (tmp_path / "journal").stat().st_ino != before
    assert await rows_of(tmp_path) == STATES[2]


async def test_concurrent_commits_share_syncs_and_keep_their_order(tmp_path: Path) -> None:
    async with opened(tmp_path) as made:
        await made.commit({("t", "n"): b"-1"})
        await asyncio.gather(*(made.commit({("t", "n"): b"%d" % n, ("t", f"k{n}"): b"0"}) for n in range(1000)))
        assert 1 <= made.syncs <= 100
    rows = await rows_of(tmp_path)
    assert len(rows) == 1001
    assert rows["t", "n"] == b"999"


async def test_commits_under_way_are_finished_by_close_and_later_ones_refused(tmp_path: Path) -> None:
    made = Journal.open(tmp_path)
    under_way = [made.commit(change) for change in (A, B, C)]
    await made.close()
    await made.close()
    assert all(done.done() and done.exception() is None for done in under_way)
    with pytest.raises(StateError, match="closed"):
        made.commit(A)
    assert await rows_of(tmp_path) == STATES[3]


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        ({}, ""),
        ({"f_flag": os.ST_RDONLY}, "its file system is read-only"),
        ({"f_bfree": 3}, "its file system has room for 12288 bytes"),
        ({"f_bfree": 0, "f_blocks": 0}, ""),
    ],
)
async def test_a_disk_that_will_refuse_the_next_change_is_seen(
    tmp_path: Path, shown: dict[str, int], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = {"f_flag": 0, "f_bfree": 1000, "f_frsize": 4096, "f_blocks": 2000} | shown
    async with opened(tmp_path) as made:
        assert made.obstacle() == ""
        monkeypatch.setattr(os, "statvfs", lambda _path: SimpleNamespace(**disk))
        assert made.obstacle() == said
        monkeypatch.undo()
        shutil.rmtree(tmp_path)
        assert made.obstacle() == "No such file or directory"


async def test_a_cancelled_commit_is_kept_and_disturbs_nobody(tmp_path: Path) -> None:
    async with opened(tmp_path) as made:
        cancelled, awaited = made.commit(A), made.commit(B)
        cancelled.cancel()
        await awaited
    assert await rows_of(tmp_path) == STATES[2]


async def test_a_row_that_is_not_json_is_refused_before_it_is_queued(tmp_path: Path) -> None:
    async with opened(tmp_path) as made:
        with pytest.raises(ValueError):
            made.commit({("t", "a"): b"{"})
        await made.commit(A)
    assert await rows_of(tmp_path) == STATES[1]


async def test_a_second_daemon_is_told_who_holds_the_directory(tmp_path: Path) -> None:
    await write(tmp_path, A)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from overlayd.daemon.change.journal import Journal\n"
            "held = Journal.open(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()",
            str(tmp_path),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(InUse, match=f"in use by pid {holder.pid} uid {os.getuid()} ") as caught:
            Journal.open(tmp_path)
        assert caught.value.holder == holder.pid
    finally:
        holder.kill()
        holder.communicate()
    async with opened(tmp_path) as made:  # a killed holder holds nothing
        assert made.rows == STATES[1]
        with pytest.raises(InUse) as caught:
            Journal.open(tmp_path)
        assert caught.value.holder == os.getpid()


async def test_the_lock_does_not_outlive_the_daemon_in_a_program_it_started(tmp_path: Path) -> None:
    made = Journal.open(tmp_path)
    started = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        await made.close()
        assert await rows_of(tmp_path) == {}
    finally:
        started.kill()
        started.wait()


# Checkpoints


async def test_a_long_log_is_replaced_by_its_live_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "CHECKPOINT_BYTES", 4096)
    path = tmp_path / "journal"
    longest = 0
    async with opened(tmp_path) as made:
        for n in range(400):
            await made.commit({("t", f"k{n % 10}"): b'"%0100d"' % n})
            longest = max(longest, path.stat().st_size)
    live = 10 * 110
    assert longest <= max(4096, 4 * live) + 2 * 200
    assert path.stat().st_size < longest
    assert files(tmp_path) == {"lock", "journal"}
    assert await rows_of(tmp_path) == {("t", f"k{n % 10}"): b'"%0100d"' % n for n in range(390, 400)}


async def test_a_large_state_is_not_rewritten_before_the_log_is_four_times_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pin: Callable[[Path], int]
) -> None:
    monkeypatch.setattr(journal, "CHECKPOINT_BYTES", 1000)
    path = tmp_path / "journal"
    async with opened(tmp_path) as made:
        await made.commit(A)
        await made.commit({("t", f"k{n}"): b'"%0100d"' % n for n in range(100)})
        inode, size = pin(path), path.stat().st_size
        while path.stat().st_size < 3.9 * size:
            await made.commit({("t", f"k{n}"): b'"%0100d"' % n for n in range(10)})
        assert path.stat().st_ino == inode
        await made.commit({("t", f"k{n}"): b'"%0100d"' % n for n in range(50)})
        await made.commit(B)  # written after the checkpoint, and does not cause another
        replaced = pin(path)
        assert replaced != inode
        await made.commit(C)
        assert path.stat().st_ino == replaced


# Torn, damaged and missing


async def test_a_torn_end_is_cut_off_kept_and_told(tmp_path: Path) -> None:
    await write(tmp_path, A, B)
    whole = (tmp_path / "journal").read_bytes()
    tail = log.record(3, 2, log.encode_change(C))[:-1]
    for kept_before in range(2):
        (tmp_path / "journal").write_bytes(whole + tail)
        async with opened(tmp_path) as made:
            assert made.rows == STATES[2]
            assert made.recovered is not None
            assert f"{len(tail)} bytes from byte {len(whole)}" in made.recovered
        assert (tmp_path / "journal").read_bytes() == whole
        kept = list(tmp_path.glob("journal.torn-*"))
        assert len(kept) == kept_before + 1
        assert any(str(path) in made.recovered for path in kept)
        for path in kept:
            assert path.read_bytes() == tail
            assert path.stat().st_mode & 0o777 == 0o600
    await write(tmp_path, C)
    assert await rows_of(tmp_path) == STATES[3]


async def test_of_the_copies_of_torn_ends_and_damaged_logs_the_newest_stay(tmp_path: Path) -> None:
    await write(tmp_path, A, B, C)
    data = damage(tmp_path)
    copies = [tmp_path / f"journal.{kind}-{number}" for kind in ("torn", "damaged") for number in range(9)]
    for age, path in enumerate(reversed(copies)):
        path.write_bytes(b"?")
        os.utime(path, (1e9 - age, 1e9 - age))
    for _ in range(2):
        with pytest.raises(StateError):
            Journal.open(tmp_path)
        (current,) = set(tmp_path.glob("journal.damaged-*")) - set(copies)
        os.utime(current, (1e8, 1e8))  # it was copied by a start of long ago
    async with opened(tmp_path, salvage=True):
        pass
    left = set(tmp_path.glob("journal.*"))
    assert left == {*copies[9 - recovery.COPIES : 9], *copies[18 - recovery.COPIES + 1 :], current}
    assert current.read_bytes() == data


def damage(directory: Path) -> bytes:
    """Flip a bit in the last but one commit; returns what the file holds then."""
    data = bytearray((directory / "journal").read_bytes())
    data[data.rindex(b'"b":2') + 4] ^= 1
    (directory / "journal").write_bytes(data)
    return bytes(data)


async def test_a_damaged_journal_is_refused_with_all_ways_out_and_copied_once(tmp_path: Path) -> None:
    await write(tmp_path, A, B, C)
    data = damage(tmp_path)
    for _ in range(3):
        with pytest.raises(StateError) as caught:
            Journal.open(tmp_path)
        (copy,) = tmp_path.glob("journal.damaged-*")
        for part in (f"{tmp_path}/journal is damaged at byte ", str(copy), "backup", "--salvage-journal", "away"):
            assert part in str(caught.value)
        assert copy.read_bytes() == data
        assert copy.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "journal").read_bytes() == data


async def test_salvage_keeps_what_precedes_the_damage_and_a_copy(tmp_path: Path) -> None:
    await write(tmp_path, A, B, C)
    data = damage(tmp_path)
    (tmp_path / "journal.new").write_bytes(b"OVL")  # of a checkpoint that a crash interrupted
    async with opened(tmp_path, salvage=True) as made:
        assert made.rows == STATES[1]
        assert made.recovered is not None
        assert "1 rows" in made.recovered
        await made.commit({("t", "later"): b"9"})
    (copy,) = tmp_path.glob("journal.damaged-*")
    assert copy.read_bytes() == data
    assert await rows_of(tmp_path) == STATES[1] | {("t", "later"): b"9"}


async def test_salvage_of_a_whole_journal_changes_nothing(tmp_path: Path) -> None:
    await write(tmp_path, A, B)
    before = (tmp_path / "journal").read_bytes()
    async with opened(tmp_path, salvage=True) as made:
        assert (made.rows, made.recovered) == (STATES[2], None)
    assert (tmp_path / "journal").read_bytes() == before


@pytest.mark.parametrize("salvage", [False, True])
@pytest.mark.parametrize("content", [b"", b"OVLA", b"SQLite format 3\0" * 9])
async def test_what_is_no_journal_is_refused_even_to_salvage(tmp_path: Path, content: bytes, salvage: bool) -> None:
    (tmp_path / "journal").write_bytes(content)
    with pytest.raises(StateError, match="start empty, which loses"):
        Journal.open(tmp_path, salvage=salvage)
    assert (tmp_path / "journal").read_bytes() == content
    # What the message says works, and the lock was let go of.
    for path in tmp_path.glob("journal*"):
        path.rename(tmp_path / f"away-{path.name}")
    assert await rows_of(tmp_path) == {}


async def test_a_journal_of_another_version_is_left_alone(tmp_path: Path) -> None:
    await write(tmp_path, A)
    data = (tmp_path / "journal").read_bytes()
    header = log.HEADER.pack(log.MAGIC, 2, 1, 1, 0)[:-4]
    data = header + zlib.crc32(header).to_bytes(4, "little") + data[log.HEADER.size :]
    (tmp_path / "journal").write_bytes(data)
    for salvage in (False, True):
        with pytest.raises(StateError, match="format 2 is unknown"):
            Journal.open(tmp_path, salvage=salvage)
    assert files(tmp_path) == {"lock", "journal"}
    assert (tmp_path / "journal").read_bytes() == data


@pytest.mark.parametrize("sign", ["journal.new", "journal.torn-1700000000", "journal.damaged-00000000"])
async def test_a_missing_journal_is_not_a_fresh_start(tmp_path: Path, sign: str) -> None:
    await write(tmp_path, A)
    (tmp_path / "journal").rename(tmp_path / sign)
    for salvage in (False, True):
        with pytest.raises(StateError, match="is missing") as caught:
            Journal.open(tmp_path, salvage=salvage)
        assert sign in str(caught.value)
    (tmp_path / sign).rename(tmp_path / "journal")
    assert await rows_of(tmp_path) == STATES[1]


async def test_what_an_interrupted_write_left_beside_the_journal_goes(tmp_path: Path) -> None:
    (tmp_path / "journal.first").write_bytes(b"OVL")
    await write(tmp_path, A)
    (tmp_path / "journal.first").write_bytes(b"OVL")
    shutil.copy(tmp_path / "journal", tmp_path / "journal.new")
    await write(tmp_path, B)
    assert files(tmp_path) == {"lock", "journal"}
    assert await rows_of(tmp_path) == STATES[2]
