"""The journal's file, its lock and its directory are removed, moved or changed under a running daemon."""

# ruff: noqa: ASYNC240 -- a test may block its loop

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from overlayd.daemon.change.claim import InUse
from overlayd.daemon.change.journal import Journal
from overlayd.proto import log

A, B = {("t", "a"): b"1"}, {("t", "b"): b"2"}

Harm = Callable[[Path], object]


def replace_by_a_copy(directory: Path) -> None:
    shutil.copy(directory / "journal", directory / "copy")
    (directory / "copy").rename(directory / "journal")


def extend(directory: Path) -> None:
    with (directory / "journal").open("ab") as file:
        file.write(b"x")


HARM: dict[str, Harm] = {
    "deleted": lambda directory: (directory / "journal").unlink(),
    "moved": lambda directory: (directory / "journal").rename(directory.parent / "gone"),
    "replaced": replace_by_a_copy,
    "emptied": lambda directory: os.truncate(directory / "journal", 0),
    "cut": lambda directory: os.truncate(directory / "journal", (directory / "journal").stat().st_size - 1),
    "extended": extend,
    "directory deleted": shutil.rmtree,
    "directory moved": lambda directory: directory.rename(directory.with_name("elsewhere")),
}
every_harm = pytest.mark.parametrize("harm", HARM.values(), ids=HARM)


async def test_nothing_is_said_of_a_journal_that_nobody_touches(tmp_path: Path, caplog) -> None:
    made = Journal.open(tmp_path / "data")
    for change in (A, B):
        await made.check()
        await made.commit(change)
    await made.close()
    assert made.displaced == ""
    assert caplog.records == []


@every_harm
@pytest.mark.parametrize("then", ["a commit", "a check", "the end"])
async def test_the_next_commit_check_or_end_brings_everything_back(
    tmp_path: Path, caplog, harm: Harm, then: str
) -> None:
    directory = tmp_path / "data"
    made = Journal.open(directory)
    await made.commit(A)
    harm(directory)
    if then == "a commit":
        await made.commit(B)
    elif then == "a check":
        await made.check()
    if then != "the end":
        assert "journal" in made.displaced
        assert made.displaced.endswith("written again from memory")
    await made.close()
    assert made.displaced in caplog.text
    again = Journal.open(directory)
    await again.close()
    assert again.rows == (A | B if then == "a commit" else A)
    assert again.recovered is None
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (directory, *directory.iterdir())}
    assert modes.pop("data") == "0o700"
    assert set(modes.values()) == {"0o600"}


async def test_a_file_that_somebody_put_in_its_place_is_kept(tmp_path: Path) -> None:
    made = Journal.open(tmp_path)
    await made.commit(A)
    (tmp_path / "journal").unlink()
    (tmp_path / "journal").write_text("a backup")
    await made.commit(B)
    await made.close()
    (kept,) = tmp_path.glob("journal.displaced-*")
    assert kept.read_text() == "a backup"
    again = Journal.open(tmp_path)
    await again.close()
    assert again.rows == A | B


async def test_a_removed_lock_is_taken_again_before_anything_is_written(tmp_path: Path) -> None:
    made = Journal.open(tmp_path)
    await made.commit(A)
    (tmp_path / "lock").unlink()
    await made.commit(B)
    with pytest.raises(InUse):
        Journal.open(tmp_path)
    await made.close()


async def test_whoever_took_the_directory_meanwhile_keeps_it(tmp_path: Path) -> None:
    made = Journal.open(tmp_path)
    await made.commit(A)
    (tmp_path / "lock").unlink()
    other = Journal.open(tmp_path)
    with pytest.raises(Exception, match="in use by"):
        await made.commit(B)
    await other.close()
    await made.close()
    assert log.recover((tmp_path / "journal").read_bytes()).rows == A
