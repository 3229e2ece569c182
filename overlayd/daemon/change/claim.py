"""One daemon a data directory.

Owns: the directory itself, and the lock in it.  Must not know: what else the directory holds.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from overlayd.daemon.change.durable import refused, sync_directory
from overlayd.errors import StateError


class InUse(StateError):
    """Another process holds the data directory; holder: its pid, 0 when the lock does not tell."""

    def __init__(self, directory: Path, holder: int) -> None:
        self.holder = holder
        who = f"process {holder}" if holder else "another process"
        super().__init__(f"data directory {directory} is in use by {who}")


def claim(directory: Path) -> int:
    """Make `directory`, 0700, when it is missing, and lock it.  Returns the descriptor that holds the lock.  Raises
    InUse, or StateError.
    """
    try:
        _make(directory)
        return _lock(directory)
    except OSError as error:
        raise refused(f"cannot lock data directory {directory}", error) from error


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


def _make(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        return
    sync_directory(directory.parent)


def _lock(directory: Path) -> int:
    """The descriptor that holds the lock of `directory`.  Raises InUse.

    It is not inherited by programs that the daemon starts and that outlive it (os.open makes it so).
    """
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
