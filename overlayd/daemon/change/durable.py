"""Putting files on the disk so that they are still there after a power cut.

Owns: the order of write, fsync and the directory's fsync, how many old copies of a file stay, and what is said when the
disk refuses.  Must not know: what the files hold.  Every function that touches the disk raises OSError.
"""

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from overlayd.errors import DiskError, StateError

# What is refused until somebody corrects the path or its permissions, and not by the disk.
_WRONG_PATH = frozenset(
    (errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.EPERM)
)

_REMEDIES = {
    errno.ENOSPC: "free space on that file system",
    errno.EDQUOT: "free space or raise the quota",
    errno.EROFS: "find out why the file system is read-only (dmesg) and remount it writable",
    errno.EPERM: "look at its attributes (lsattr, chattr -i -a) and at security modules",
    errno.EIO: "the disk fails: look at dmesg, and move the data directory to another disk",
}


def refusal(message: str, error: OSError) -> StateError:
    """What to raise in place of an error of the disk: DiskError, unless it is the path that is wrong."""
    return StateError(message) if error.errno in _WRONG_PATH else DiskError(message)


def refused(what: str, error: Exception) -> StateError:
    """As `refusal`, with the errno, and what to do about it.  An error that is not the disk's is a bug of ours."""
    if not isinstance(error, OSError) or error.errno is None:
        return StateError(f"{what}: {error!r}, a bug in overlayd")
    remedy = _REMEDIES.get(error.errno, "check the directory and the disk below it")
    return refusal(f"{what}: {error.strerror} (errno {error.errno}); {remedy}, then try again", error)


def write_all(file: int, data: bytes, offset: int) -> None:
    """Write all of `data` at `offset`, however many calls that takes."""
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        view = view[written:]
        offset += written


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` durable."""
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def keep(path: Path, data: bytes) -> None:
    """Make `path`, durable, with the content `data`; date it again if that is what it holds; leave nothing if it
    fails.
    """
    if path.exists() and path.read_bytes() == data:
        os.utime(path)
        return
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        write_all(file, data, 0)
        os.fsync(file)
    except BaseException:
        path.unlink()
        raise
    finally:
        os.close(file)
    sync_directory(path.parent)


def keep_newest(paths: Iterable[Path], count: int) -> None:
    """Remove all but the `count` files that were written last."""
    for old in sorted(paths, key=lambda path: path.lstat().st_mtime, reverse=True)[count:]:
        old.unlink()
