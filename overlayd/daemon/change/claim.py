"""One daemon a data directory, which nobody else may write to.

Owns: the directory itself, and the lock in it.  Must not know: what else the directory holds.
"""

import fcntl
import logging
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from overlayd.daemon.change.durable import refused, sync_directory
from overlayd.errors import StateError
from overlayd.linux import process

log = logging.getLogger(__name__)

# Our own: how often, and after how many seconds, the lock of a daemon that is gone is tried again.
TRIES, PAUSE = 100, 0.02

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class InUse(StateError):
    """Another process holds the data directory; holder: its pid, 0 when the lock does not tell."""

    def __init__(self, directory: Path, holder: int) -> None:
        self.holder = holder
        who = process.describe(holder) if holder else "another process"
        super().__init__(f"data directory {directory} is in use by {who}")


def claim(directory: Path) -> int:
    """Make `directory`, 0700, when it is missing, and lock it.  Returns the descriptor that holds the lock.

    Raises InUse; StateError, too, for a directory that others could have written to, or that is another user's.
    """
    try:
        _make(directory)
        _require_ours(directory)
        return _lock(directory)
    except OSError as error:
        raise refused(f"cannot lock data directory {directory}", error) from error


def is_held(directory: Path, lock: int) -> bool:
    """Whether `lock` is still the lock of the directory: neither of them was removed or replaced meanwhile."""
    try:
        return os.path.samestat(os.fstat(lock), os.lstat(f"{directory}/lock"))
    except OSError:
        return False


@contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Inside the `with` no daemon works on `directory`, whatever its journal is like; a missing one stays missing.
    Raises InUse, or StateError.
    """
    try:
        lock = _lock(directory)
    except FileNotFoundError:
        yield
        return
    except OSError as error:
        raise refused(f"cannot lock data directory {directory}", error) from error
    try:
        yield
    finally:
        os.close(lock)


def require_own(path: Path, found: os.stat_result) -> None:
    """StateError when a file that holds our secrets belongs to somebody else, or others could have written to it."""
    if not _is_own(found):
        raise StateError(
            f"{path} belongs to user {found.st_uid}, who can read and change it, and the node's key is in it: if you "
            f"trust it, `chown {os.geteuid()} {path}; chmod 600 {path}`, else restore it from a backup"
        )
    if found.st_mode & _OTHERS_WRITE:
        raise StateError(
            f"{path} can be written by others (mode {stat.S_IMODE(found.st_mode):04o}): if you trust what is in it, "
            f"`chmod 600 {path}`, else restore it from a backup"
        )


def _make(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        if not directory.is_dir():
            raise StateError(
                f"data directory {directory} is not a directory: move it away, or change --data-dir"
            ) from None
        return
    sync_directory(directory.parent)


def _require_ours(directory: Path) -> None:
    found = directory.stat()
    if not _is_own(found):
        raise StateError(
            f"data directory {directory} belongs to user {found.st_uid}, who could read the node's key and change the "
            f"state: `chown {os.geteuid()} {directory}`, or choose another --data-dir"
        )
    if not found.st_mode & _OTHERS_WRITE:
        return
    mode = f"mode {stat.S_IMODE(found.st_mode):04o}"
    if (directory / "journal").exists():
        raise StateError(
            f"data directory {directory} can be written by others ({mode}), who could have replaced the journal in it: "
            f"if you trust what is there, `chmod go-w {directory}`, else restore it from a backup"
        )
    if others := sorted({each.name for each in directory.iterdir()} - {"lock"}):
        raise StateError(
            f"data directory {directory} can be written by others ({mode}) and has {others[0]!r} in it, which is not "
            f"overlayd's: choose another --data-dir, or `chmod go-w {directory}` if nobody else needs it"
        )
    directory.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS_WRITE)
    log.warning("data directory %s could be written by others (%s): taken from them, as it is new", directory, mode)


def _is_own(found: os.stat_result) -> bool:
    return found.st_uid in (0, os.geteuid())


def _lock(directory: Path) -> int:
    """The descriptor that holds the lock of `directory`.  Raises InUse.

    It is not inherited by programs that the daemon starts and that outlive it (os.open makes it so).
    """
    path = directory / "lock"
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    found = os.fstat(lock)
    if not stat.S_ISREG(found.st_mode):
        os.close(lock)
        raise StateError(f"{path} is not a regular file: move it away")
    if not _is_own(found) or found.st_mode & _OTHERS:
        os.close(lock)
        _remove_lock(directory, found)
        return _lock(directory)
    try:
        _hold(lock)
        # Always as long, over what is there: a full disk must not keep the daemon from its own directory.
        os.pwrite(lock, b"%10d\n" % os.getpid(), 0)
    except BlockingIOError:
        pid = os.pread(lock, 16, 0).strip()
        os.close(lock)
        raise InUse(directory, int(pid) if pid.isdigit() else 0) from None
    except BaseException:
        os.close(lock)
        raise
    return lock


def _hold(lock: int) -> None:
    """Take the lock.  BlockingIOError: a process holds it that lives, or that is out of sight.

    A daemon that was killed while it started a program leaves a copy of its descriptor with the child, until that has
    become the program: a moment that is waited for.
    """
    for _ in range(TRIES):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = os.pread(lock, 16, 0).strip()
            if not holder.isdigit() or Path(f"/proc/{int(holder)}").exists():
                raise
            time.sleep(PAUSE)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _remove_lock(directory: Path, found: os.stat_result) -> None:
    """Remove a lock that others may open, and so may hold for as long as they like.  InUse: a process of root or of our
    own user holds it.
    """
    holders = [pid for pid in _holders(found) if _uid(pid) in (0, os.geteuid())]
    if holders:
        raise InUse(directory, holders[0])
    path = directory / "lock"
    path.unlink()
    mode = stat.S_IMODE(found.st_mode)
    log.warning("%s of user %d, mode %04o, could be held by others: it is replaced", path, found.st_uid, mode)


def _holders(file: os.stat_result) -> Iterator[int]:
    """The processes that hold a lock on a file (/proc/locks, proc(5))."""
    number = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
    for line in Path("/proc/locks").read_text().splitlines():
        fields = [field for field in line.split() if field != "->"]
        if fields[5] == number:
            yield int(fields[4])


def _uid(pid: int) -> int:
    try:
        return Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return 0  # out of sight: taken for a daemon in another container
