"""The journal: keeps the state's rows on the disk, and gives them back at the next start.

Owns: the data directory's lock, the files `journal*` in it, and the thread that writes them.  Must not know: what a row
means, or how a log is laid out (`proto.log`).

Why not SQLite, which this replaces: the rows are few and all held in memory anyway, so a database would only be a log
with a query engine that nobody queries; every byte here is under a checksum, which a SQLite database page is not; a
commit is one write and one fdatasync, shared by whoever waits; nothing is loaded at start for it.  The price: no tool
but ours reads the file, and the code below has to be right.

The files, all 0600:

- `lock`: held (flock) by the one daemon of the directory, with its pid.
- `journal`: the log.
- `journal.first`, `journal.new`: a log being written, to become `journal` by a rename: the directory's first, or a
  checkpoint that replaces a long one.  Left over from a crash, neither holds anything that `journal` does not.  They
  differ in name so that `journal.new` without a `journal` proves that one is missing.
- `journal.torn-TIME`: the end of a log that a power cut tore, kept for a person to look at.
- `journal.damaged-CRC`: a copy of a log that a start refused.  The same damage is copied once, however often a service
  manager tries.

Of each of the last two kinds the newest few stay.

A commit is answered when it is durable, or refused with StateError and undone: the file is cut back to the last
durable commit.  When that cannot be trusted either (the cut fails; or fdatasync failed, after which nobody knows which
pages are on the disk), the next commit first rewrites the log from the durable rows.  So the journal works again,
without a restart, as soon as the disk does.  A power cut between such a failure and the rewrite may still bring a
refused commit back: a disk that refuses to forget cannot be made to.
"""

import asyncio
import errno
import fcntl
import logging
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

from overlayd import fault
from overlayd.daemon.change.durable import keep, keep_newest, refusal, sync_directory, write_all
from overlayd.errors import DiskError, StateError
from overlayd.proto import log

logger = logging.getLogger(__name__)

# A log is replaced by a checkpoint when it is longer than both. 1 MiB: reading it back takes a start under 30 ms, and a
# small state is not rewritten all the time. 4: a checkpoint of n bytes is paid by 3 n bytes of commits, so it adds a
# third to what is written.
CHECKPOINT_BYTES = 1 << 20
CHECKPOINT_RATIO = 4

# Copies of torn ends, and of damaged logs, that stay.  The newest tell most, and a machine that loses its power daily
# must not fill its disk with them.
COPIES = 4

# What a row costs in a log beside its table, key and value: quotes, colon, comma.
_ROW_OVERHEAD = 6

_REMEDIES = {
    errno.ENOSPC: "free space on that file system",
    errno.EDQUOT: "free space or raise the quota",
    errno.EROFS: "find out why the file system is read-only (dmesg) and remount it writable",
    errno.EIO: "the disk fails: look at dmesg, and move the data directory to another disk",
}


class InUse(StateError):
    """Another process holds the data directory; holder: its pid, 0 when the lock does not tell."""

    def __init__(self, directory: Path, holder: int) -> None:
        self.holder = holder
        who = f"process {holder}" if holder else "another process"
        super().__init__(f"data directory {directory} is in use by {who}")


@dataclass(frozen=True, slots=True)
class _Commit:
    change: log.Change
    body: bytes
    done: asyncio.Future[None]


class Journal:
    """An open journal.

    rows: what was recovered, for the caller to take.  recovered: a sentence for the log when the start had to cut or
    salvage, else None.  syncs: how many times a batch of commits was synced.
    """

    rows: dict[log.Row, bytes]

    def __init__(self, directory: Path, lock: int) -> None:
        """Not for callers: see `open`."""
        self._directory = directory
        self._path = directory / "journal"
        self._lock = lock
        self.recovered: str | None = None
        self.syncs = 0
        self._queue: SimpleQueue[_Commit | None] = SimpleQueue()
        self._closing = False
        self._thread = Thread(target=self._write_batches, name="journal", daemon=True)
        # From here on: the writer thread's own, once it runs.
        self._file = -1  # no log yet: the first commit makes it
        self._live: dict[log.Row, bytes] = {}  # durable rows only, for checkpoints are made of them
        self._live_bytes = 0
        self._sequence = 0  # the newest durable record
        self._length = 0  # the bytes of the file that are durable
        self._suspect = False  # what lies on the disk is not known: rewrite before anything else
        self._no_checkpoint_below = 0

    @classmethod
    def open(cls, directory: Path, *, salvage: bool = False) -> "Journal":
        """Lock `directory` (made, 0700, when it is missing), recover the journal in it, be ready for commits.

        Blocks.  salvage: keep of a damaged journal what precedes the damage, instead of refusing it.  Raises InUse, or
        StateError that says what is wrong and what to do.
        """
        try:
            _make(directory)
            lock = _lock(directory)
        except OSError as error:
            raise _refusal(f"cannot lock data directory {directory}", error) from error
        journal = cls(directory, lock)
        try:
            journal._recover(salvage)
        except BaseException as error:
            journal._release()
            if isinstance(error, OSError):
                raise _refusal(f"cannot recover {journal._path}", error) from error
            raise
        journal.rows = dict(journal._live)
        journal._thread.start()
        return journal

    def commit(self, change: Mapping[log.Row, bytes | None]) -> asyncio.Future[None]:
        """Keep `change` (None removes the row), after every change committed before it and all or nothing.

        Resolves when the change is durable, with StateError when it was refused and undone.  Commits that arrive while
        others are being synced share the next sync, and its fate; a refusal does not stop the commits queued behind it,
        so a caller whose next change builds on this one awaits it.  Cancelling the future takes nothing back.
        Raises ValueError for a value that is not JSON: see `log.encode_change`.
        """
        if self._closing:
            raise StateError(f"{self._path} is closed")
        commit = _Commit(dict(change), log.encode_change(change), asyncio.get_running_loop().create_future())
        self._queue.put(commit)
        return commit.done

    async def close(self) -> None:
        """Finish the commits under way, end the writer thread, release the lock.  Idempotent."""
        if self._closing:
            return
        self._closing = True
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)
        self._release()

    def _release(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        os.close(self._lock)

    # Recovery, before the writer thread runs.

    def _recover(self, salvage: bool) -> None:
        leftovers = sorted(path for path in self._directory.glob("journal.*"))
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            if lost := [path.name for path in leftovers if path.name != "journal.first"]:
                raise StateError(
                    f"{self._path} is missing, and {', '.join(lost)} beside it shows that there was one. Restore it "
                    f"from a backup; to start empty instead, with a new identity and no address reserved, move those "
                    f"files away too."
                ) from None
        else:
            os.fchmod(self._file, 0o600)  # a restored backup may be readable by all, and it holds the node's key
            # A crash may have come before the sync of what is now read and acted upon: make it durable first.
            os.fsync(self._file)
            sync_directory(self._directory)
            self._load(_read(self._file), salvage)
        for path in leftovers:
            if path.name in ("journal.first", "journal.new"):
                path.unlink(missing_ok=True)  # a salvage has used the name
        try:
            for kind in ("torn", "damaged"):
                keep_newest(self._directory.glob(f"journal.{kind}-*"), COPIES)
        except OSError as error:
            logger.warning("journal: cannot remove an old copy in %s: %s", self._directory, error.strerror)

    def _load(self, data: bytes, salvage: bool) -> None:
        try:
            self._adopt(log.recover(data))
        except log.LogDamaged as damage:
            copy = self._directory / f"journal.damaged-{zlib.crc32(data):08x}"
            try:
                keep(copy, data)
                kept = f"A copy was kept as {copy}."
            except OSError as error:
                if salvage:
                    raise
                kept = f"No copy could be kept as {copy}: {error.strerror}."
            if not salvage:
                raise StateError(
                    f"{self._path} is {damage}. {kept} Either restore {self._path} from a backup; or start once with "
                    f"`overlayd --salvage-journal`, which keeps everything before the damage and gives up the rest; or "
                    f"move {self._path} and every file {self._path}.* away to start empty, which loses the node's "
                    f"identity and the addresses it has handed out."
                ) from damage
            self._salvage(data, damage, kept)
        except StateError as error:
            raise StateError(f"{self._path}: {error}. Start the overlayd that wrote it, or a newer one.") from error

    def _adopt(self, found: log.Recovered) -> None:
        self._live = found.rows
        self._live_bytes = sum(_row_bytes(row, value) for row, value in found.rows.items())
        self._sequence = found.sequence
        self._length = found.good_length
        if found.torn:
            self._cut(found)

    def _cut(self, found: log.Recovered) -> None:
        """Cut off the torn end of the log and keep it beside it."""
        tail = os.pread(self._file, found.torn, found.good_length)
        moment = int(time.time())
        while (kept := self._directory / f"journal.torn-{moment}").exists():
            moment += 1
        try:
            keep(kept, tail)
            fault.point("journal:recover:cut")
            os.ftruncate(self._file, found.good_length)
            os.fsync(self._file)
            outcome = f"cut off and kept as {kept}"
        except OSError as error:
            # A full disk is how a log gets torn, and no reason not to start. The next commit rewrites the log.
            self._suspect = True
            outcome = f"ignored, and left in place until the next commit ({error.strerror})"
        self.recovered = (
            f"{self._path} ends in a write that never finished: {found.torn} bytes from byte {found.good_length} on, "
            f"after commit {found.sequence}; they were {outcome}"
        )

    def _salvage(self, data: bytes, damage: log.LogDamaged, kept: str) -> None:
        try:
            found = log.salvage(data)
        except log.LogDamaged as hopeless:
            raise StateError(
                f"{self._path} is {hopeless}. {kept} Restore it from a backup, or move {self._path} and every file "
                f"{self._path}.* away to start empty, which loses the node's identity and the addresses it handed out."
            ) from hopeless
        self._replace(found.rows, found.sequence)
        self.recovered = (
            f"{self._path} was {damage}. {kept} Salvaged: {len(found.rows)} rows as of commit {found.sequence}; given "
            f"up: the {found.torn} bytes after byte {found.good_length}."
        )

    # The writer thread.

    def _write_batches(self) -> None:
        while (first := self._queue.get()) is not None:
            batch, more = self._gather(first)
            refused = self._write(batch)
            batch[0].done.get_loop().call_soon_threadsafe(_settle, batch, refused)
            if not more:
                return
            if refused is None:
                self._checkpoint_if_long()

    def _gather(self, first: _Commit) -> tuple[list[_Commit], bool]:
        """The commits that wait, and whether more may come: False after the end was asked for."""
        batch = [first]
        while True:
            try:
                commit = self._queue.get_nowait()
            except Empty:
                return batch, True
            if commit is None:
                return batch, False
            batch.append(commit)

    def _write(self, batch: list[_Commit]) -> str | None:
        """Make `batch` durable; returns why not when it was refused, and nothing of it is kept then."""
        try:
            if self._file < 0:
                rows = dict(self._live)
                for commit in batch:
                    _apply(commit.change, rows)
                self._replace(rows, self._sequence)
            else:
                if self._suspect:
                    self._replace(self._live, self._sequence)
                self._append(batch)
        except Exception as error:  # whatever it is, the waiters must hear of it and the thread must live on
            if not isinstance(error, OSError):
                logger.exception("journal: writing %d commits failed", len(batch))
            return str(_refusal(f"cannot write {self._path}, so nothing was changed", error))
        return None

    def _append(self, batch: list[_Commit]) -> None:
        floor = self._sequence
        data = b"".join(log.record(floor + 1 + at, floor, commit.body) for at, commit in enumerate(batch))
        try:
            fault.point("journal:write")
            write_all(self._file, data, self._length)
            self._suspect = True  # until the sync succeeds
            fault.point("journal:sync")
            os.fdatasync(self._file)
            self.syncs += 1
            self._suspect = False
        except BaseException:
            self._roll_back()
            raise
        fault.point("journal:synced")
        self._sequence += len(batch)
        self._length += len(data)
        for commit in batch:
            self._live_bytes += _apply(commit.change, self._live)

    def _roll_back(self) -> None:
        """Cut a failed batch off the file, durably, or have the file rewritten before the next one."""
        try:
            fault.point("journal:rollback")
            os.ftruncate(self._file, self._length)
            os.fsync(self._file)
        except OSError as error:
            self._suspect = True
            logger.warning("journal: cannot undo a failed write to %s: %s", self._path, error.strerror)

    def _checkpoint_if_long(self) -> None:
        if self._length <= max(CHECKPOINT_BYTES, CHECKPOINT_RATIO * self._live_bytes, self._no_checkpoint_below):
            return
        try:
            self._replace(self._live, self._sequence)
        except Exception as error:  # see _write
            # The long log is as good as ever. Not again at every commit: when it has grown by as much once more.
            self._no_checkpoint_below = self._length + CHECKPOINT_BYTES
            logger.warning("%s", _refusal(f"cannot write a checkpoint beside {self._path}", error))

    def _replace(self, rows: dict[log.Row, bytes], sequence: int) -> None:
        """Put a log of just `rows`, which is to become `_live`, in place of the one there is, or make the first one.

        When it fails the log is as it was, or suspect.
        """
        data, newest = log.checkpoint(rows, sequence)
        old = self._file
        file = self._write_beside(self._directory / ("journal.first" if old < 0 else "journal.new"), data)
        self._file, self._sequence, self._length = file, newest, len(data)
        if old >= 0:
            self._suspect = True  # a power cut may bring the old log back, until the directory is synced
            os.close(old)
        try:
            fault.point("journal:checkpoint:directory")
            sync_directory(self._directory)
        except OSError:
            if old < 0:
                self._file = -1
                os.close(file)
                self._path.unlink()
            raise
        self._live, self._live_bytes = rows, len(data)
        self._suspect = False
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
            new.rename(self._path)
        except BaseException:
            os.close(file)
            new.unlink()  # a full disk needs the room
            raise
        return file


def _settle(batch: list[_Commit], refused: str | None) -> None:
    for commit in batch:
        if commit.done.done():
            continue  # cancelled: nobody waits
        if refused is None:
            commit.done.set_result(None)
        else:
            commit.done.set_exception(DiskError(refused))


def _apply(change: log.Change, rows: dict[log.Row, bytes]) -> int:
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


def _refusal(what: str, error: Exception) -> StateError:
    if not isinstance(error, OSError) or error.errno is None:
        return StateError(f"{what}: {error!r}, a bug in overlayd")
    remedy = _REMEDIES.get(error.errno, "check the directory and the disk below it")
    return refusal(f"{what}: {error.strerror} (errno {error.errno}); {remedy}, then try again", error)


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
        raise _refusal(f"cannot lock data directory {directory}", error) from error
    try:
        yield
    finally:
        os.close(lock)


def _read(file: int) -> bytes:
    with open(file, "rb", closefd=False) as opened:
        return opened.read()
