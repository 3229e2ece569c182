"""The file of the journal: a log that is appended to or replaced, durably or not at all.

Owns: the file `journal` and what is known of it.  Must not know: what a row means, how a log is laid out (`proto.log`),
who waits for what is written (`journal`), or what a start finds (`recovery`).

An append that fails is cut off again.  When that cannot be trusted either (the cut fails; or fdatasync failed, after
which nobody knows which pages are on the disk), the file is suspect, and has to be replaced before the next append.
"""

import logging
import os
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from overlayd import fault
from overlayd.daemon.change.claim import require_own
from overlayd.daemon.change.durable import sync_directory, write_all
from overlayd.errors import StateError
from overlayd.proto import log

logger = logging.getLogger(__name__)

# What a row costs in a log beside its table, key and value: quotes, colon, comma.
_ROW_OVERHEAD = 6
LONGEST = 1 << 30  # our own constant, bytes: a start reads all of it; 10,000 peers take some 5 MiB


class LogFile:
    """The log on the disk.  One thread at a time.

    rows: the durable ones, of which a replacement is made.  live_bytes: about how long a log of only them is.
    sequence: of the newest durable record.  length: the bytes that are durable.  suspect: what else lies on the disk is
    not known.
    """

    def __init__(self, path: Path) -> None:
        """No file yet: `replace` makes the first one."""
        self.path = path
        self.rows: dict[log.Row, bytes] = {}
        self.live_bytes = 0
        self.sequence = 0
        self.length = 0
        self.suspect = False
        self._file = -1

    @property
    def exists(self) -> bool:
        """Whether there is a file to append to."""
        return self._file >= 0

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._file >= 0:
            os.close(self._file)

    def open(self) -> bytes:
        """Open the file that is there, and return what it holds.  FileNotFoundError when there is none; StateError when
        others may have written it.
        """
        if not stat.S_ISREG(self.path.lstat().st_mode):
            raise StateError(
                f"{self.path} is not a regular file: move it away, and put the journal itself in its place"
            )
        self._file = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW)
        found = os.fstat(self._file)
        require_own(self.path, found)
        if found.st_size > LONGEST:
            raise StateError(f"{self.path} has {found.st_size} bytes, which is no journal: restore it from a backup")
        if found.st_nlink > 1:
            logger.warning(
                "journal: %s has %d names (find -samefile), and each can damage it: while no overlayd runs, "
                "replace it by a copy",
                self.path,
                found.st_nlink,
            )
        if found.st_mode & 0o077:  # as a restored backup may be
            logger.warning("journal: %s could be read by others, and the node's key is in it: now mode 0600", self.path)
            os.fchmod(self._file, 0o600)
        # A crash may have come before the sync of what is now read and acted upon: make it durable first.
        os.fsync(self._file)
        sync_directory(self.path.parent)
        with open(self._file, "rb", closefd=False) as opened:
            return opened.read()

    def displaced(self) -> str:
        """What somebody has done to the file since the last append, in words; empty when it is in its place.

        Two system calls: for every append.
        """
        if self._file < 0 or self.suspect:
            return ""
        mine = os.fstat(self._file)
        try:
            there = os.lstat(self.path)
        except OSError as error:
            return f"is gone ({error.strerror})"
        if not os.path.samestat(mine, there):
            return "is another file than the one that this daemon writes"
        if mine.st_size != self.length:
            return f"has {mine.st_size} bytes, and not the {self.length} that this daemon wrote"
        return ""

    def take_over(self, found: log.Recovered) -> None:
        """Go on from what was found in the file; what follows it is cut off by `cut`."""
        self.rows = found.rows
        self.live_bytes = sum(_row_bytes(row, value) for row, value in found.rows.items())
        self.sequence = found.sequence
        self.length = found.good_length

    def cut(self) -> None:
        """Durably give up what follows the durable part.  Raises OSError."""
        os.ftruncate(self._file, self.length)
        os.fsync(self._file)

    def append(self, changes: Sequence[tuple[log.Change, bytes]]) -> None:
        """Append changes with their encoded bodies, all or none.  Raises OSError, or whatever a bug raises."""
        floor = self.sequence
        data = b"".join(log.record(floor + 1 + at, floor, body) for at, (_, body) in enumerate(changes))
        try:
            fault.point("journal:write")
            write_all(self._file, data, self.length)
            self.suspect = True  # until the sync succeeds
            fault.point("journal:sync")
            os.fdatasync(self._file)
            self.suspect = False
        except BaseException:
            self._roll_back()
            raise
        fault.point("journal:synced")
        self.sequence += len(changes)
        self.length += len(data)
        for change, _ in changes:
            self.live_bytes += apply(change, self.rows)

    def replace(self, rows: dict[log.Row, bytes], sequence: int) -> None:
        """Put a log of just `rows`, which become the durable ones, in place of the one there is, or make the first one.

        When it fails the log is as it was, or suspect.
        """
        data, newest = log.checkpoint(rows, sequence)
        old = self._file
        file = self._write_beside(self.path.with_name("journal.first" if old < 0 else "journal.new"), data)
        self._file, self.sequence, self.length = file, newest, len(data)
        if old >= 0:
            self.suspect = True  # a power cut may bring the old log back, until the directory is synced
            os.close(old)
        try:
            fault.point("journal:checkpoint:directory")
            sync_directory(self.path.parent)
        except OSError:
            if old < 0:
                self._file = -1
                os.close(file)
                self.path.unlink()
            raise
        self.rows, self.live_bytes = rows, len(data)
        self.suspect = False
        fault.point("journal:checkpoint:done")

    def _write_beside(self, new: Path, data: bytes) -> int:
        """Make the file `new` of `data`, durable, and rename it to the journal; returns its descriptor."""
        fault.point("journal:checkpoint:create")
        file = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        try:
            fault.point("journal:checkpoint:write")
            write_all(file, data, 0)
            fault.point("journal:checkpoint:sync")
            os.fsync(file)
            fault.point("journal:checkpoint:rename")
            new.rename(self.path)
        except BaseException:
            os.close(file)
            new.unlink()  # a full disk needs the room
            raise
        return file

    def keep_stranger(self) -> None:
        """Move another file that lies in our place beside it: it may be a backup that somebody restored."""
        with suppress(FileNotFoundError):
            if not os.path.samestat(os.fstat(self._file), self.path.lstat()):
                kept = self.path.with_name(f"journal.displaced-{time.time_ns()}")
                self.path.rename(kept)
                logger.warning("journal: the file in place of %s is kept as %s", self.path, kept)

    def _roll_back(self) -> None:
        """Cut a failed batch off the file, durably, or have the file rewritten before the next one."""
        try:
            fault.point("journal:rollback")
            self.cut()
        except OSError as error:
            self.suspect = True
            logger.warning("journal: cannot undo a failed write to %s: %s", self.path, error.strerror)


def apply(change: log.Change, rows: dict[log.Row, bytes]) -> int:
    """Carry out `change` on `rows`; returns by how many bytes a log of them grows."""
    grown = 0
    for row, value in change.items():
        if (old := rows.get(row)) is not None:
            grown -= _row_bytes(row, old)
        if value is None:
            rows.pop(row, None)
        else:
            rows[row] = value
            grown += _row_bytes(row, value)
    return grown


def _row_bytes(row: log.Row, value: bytes) -> int:
    return len(row[1]) + len(value) + _ROW_OVERHEAD
