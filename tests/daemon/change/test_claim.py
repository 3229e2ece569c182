"""Whose a data directory and the files in it are, and who else could have written to them."""

# ruff: noqa: ASYNC240 -- a test may block its loop

import fcntl
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from overlayd.daemon.change.claim import InUse, claim, claimed, is_held
from overlayd.daemon.change.journal import Journal
from overlayd.errors import StateError

STRANGER = 64990  # a user that need not exist

HOLD = """
import fcntl, os, sys
held = os.open(sys.argv[1], os.O_RDWR)
fcntl.flock(held, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.mkdir(mode=0o755)
    return made


def test_a_directory_of_ours_is_taken_as_it_is(directory: Path, caplog) -> None:
    lock = claim(directory)
    assert directory.stat().st_mode & 0o777 == 0o755
    assert (directory / "lock").stat().st_mode & 0o777 == 0o600
    assert is_held(directory, lock)
    (directory / "lock").unlink()
    assert not is_held(directory, lock)
    os.close(lock)
    assert caplog.records == []


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o1777])
def test_a_new_directory_that_others_may_write_is_taken_from_them(directory: Path, mode: int, caplog) -> None:
    directory.chmod(mode)
    os.close(claim(directory))
    assert directory.stat().st_mode & 0o022 == 0
    (line,) = caplog.records
    assert line.levelno == logging.WARNING
    assert f"mode {mode:04o}" in line.getMessage()


def test_somebody_elses_directory_is_not_taken_from_them(directory: Path) -> None:
    (directory / "theirs").touch()
    directory.chmod(0o1777)
    with pytest.raises(StateError, match=r"has 'theirs' in it, .* choose another --data-dir"):
        claim(directory)
    assert directory.stat().st_mode & 0o7777 == 0o1777
    assert [each.name for each in directory.iterdir()] == ["theirs"]


def test_what_is_no_directory_or_no_file_is_left_as_it_is(directory: Path) -> None:
    file = directory / "file"
    file.touch()
    file.chmod(0o666)
    with pytest.raises(StateError, match="is not a directory: move it away, or change --data-dir"):
        claim(file)
    assert file.stat().st_mode & 0o777 == 0o666
    os.mkfifo(directory / "lock", 0o600)
    with pytest.raises(StateError, match="lock is not a regular file"):
        claim(directory)


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757])
async def test_a_journal_that_others_could_have_replaced_is_refused_with_the_cure(directory: Path, mode: int) -> None:
    made = Journal.open(directory)
    await made.commit({("t", "a"): b"1"})
    await made.close()
    directory.chmod(mode)
    with pytest.raises(StateError, match=f"`chmod go-w {directory}`"):
        claim(directory)
    directory.chmod(0o755)
    os.close(claim(directory))


def test_a_directory_of_another_user_is_refused(directory: Path) -> None:
    os.chown(directory, STRANGER, -1)
    with pytest.raises(StateError, match=f"belongs to user {STRANGER}.*`chown 0 {directory}`"):
        claim(directory)


@pytest.mark.parametrize("harm", ["owner", "writable"])
async def test_a_journal_that_others_could_have_written_is_refused(directory: Path, harm: str) -> None:
    made = Journal.open(directory)
    await made.commit({("t", "a"): b"1"})
    await made.close()
    path = directory / "journal"
    if harm == "owner":
        os.chown(path, STRANGER, -1)
    else:
        path.chmod(0o620)
    with pytest.raises(StateError, match=rf"chmod 600 {path}`, else restore it from a backup"):
        Journal.open(directory)
    assert path.stat().st_uid == (STRANGER if harm == "owner" else 0), "nothing is changed"


async def test_a_journal_that_others_could_only_read_is_taken_and_told(directory: Path, caplog) -> None:
    made = Journal.open(directory)
    await made.commit({("t", "a"): b"1"})
    await made.close()
    (directory / "journal").chmod(0o644)
    made = Journal.open(directory)
    await made.close()
    assert (directory / "journal").stat().st_mode & 0o777 == 0o600
    assert "could be read by others" in caplog.text


@pytest.mark.parametrize(("user", "mode"), [(STRANGER, 0o600), (0, 0o666), (0, 0o644)])
def test_a_lock_that_others_may_hold_is_replaced_though_they_hold_it(
    directory: Path, user: int, mode: int, caplog
) -> None:
    path = directory / "lock"
    path.touch()
    path.chmod(mode)
    os.chown(path, user, -1)
    directory.parent.chmod(0o755)
    with path.open("r+b") as squatted:
        pid = os.fork()
        if not pid:
            os.setresuid(STRANGER, STRANGER, STRANGER)
            fcntl.flock(squatted, fcntl.LOCK_EX)
            os._exit(0)
        os.waitpid(pid, 0)
    os.close(claim(directory))
    found = path.stat()
    assert (found.st_uid, found.st_mode & 0o777) == (0, 0o600)
    assert "could be held by others" in caplog.text


def test_a_daemon_that_holds_such_a_lock_keeps_it(directory: Path) -> None:
    path = directory / "lock"
    path.touch()
    path.chmod(0o666)
    argv = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(InUse, match=f"in use by pid {holder.pid} uid 0"):
            claim(directory)
        holder.communicate()
    os.close(claim(directory))


def test_a_teardown_needs_no_directory(tmp_path: Path) -> None:
    with claimed(tmp_path / "none"):
        assert not (tmp_path / "none").exists()


def test_a_copy_of_the_lock_that_outlives_a_killed_daemon_for_a_moment_is_waited_for(directory: Path) -> None:
    """As in a child of it between fork(2) and exec(2): here a child that holds on for longer."""
    ready, done = os.pipe(), os.pipe()
    daemon = os.fork()
    if not daemon:
        claim(directory)
        if not os.fork():
            os.write(ready[1], b"1")
            os.read(done[0], 1)
        os._exit(0)
    os.waitpid(daemon, 0)
    os.read(ready[0], 1)
    os.write(done[1], b"1")
    os.close(claim(directory))
    for end in (*ready, *done):
        os.close(end)
