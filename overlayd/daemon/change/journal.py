"""The journal: keeps the state's rows on the disk, and gives them back at the next start.

Owns: the thread that writes, the order of commits, and when a long log is rewritten.  Must not know: what a row means,
how a log is laid out (`proto.log`) and put on the disk (`logfile`), or what a start does about a damaged one
(`recovery`).

Why not SQLite, which this replaces: the rows are few and all held in memory anyway, so a database would only be a log
with a query engine that nobody queries; every byte here is under a checksum, which a SQLite database page is not; a
commit is one write and one fdatasync, shared by all who wait; nothing is loaded at start for it.  The price: no tool
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
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

import msgspec

from overlayd.daemon.change.claim import claim, is_held
from overlayd.daemon.change.durable import refused
from overlayd.daemon.change.logfile import LogFile, apply
from overlayd.daemon.change.recovery import recover
from overlayd.errors import DiskError, StateError
from overlayd.linux import threads
from overlayd.proto import log

logger = logging.getLogger(__name__)

# A log is replaced by a checkpoint when it is longer than both. 1 MiB: reading it back takes a start under 30 ms, and a
# small state is not rewritten all the time. 4: a checkpoint of n bytes is paid by 3 n bytes of commits, so it adds a
# third to what is written.
CHECKPOINT_BYTES = 1 << 20
CHECKPOINT_RATIO = 4
ROOM = 1 << 16  # our own constant, bytes: with less than that left, changes will soon be refused


class _Commit(msgspec.Struct, frozen=True):
    change: log.Change
    body: bytes
    done: asyncio.Future[None]
    then: Callable[[], None] | None


class Journal:
    """An open journal.

    rows: what was recovered, for the caller to take.  recovered: a sentence for the log when the start had to cut or
    salvage, else None.  syncs: how many times a batch of commits was synced.  synced: told by the thread how many
    seconds each took, if anybody wants to know.  displaced: what somebody did to the file under this daemon the last
    time, empty for nothing.
    """

    def __init__(self, lock: int, file: LogFile, recovered: str | None) -> None:
        """Not for callers: see `open`.  lock: the descriptor that holds the directory's lock."""
        self.rows = dict(file.rows)
        self.recovered = recovered
        self.syncs = 0
        self.displaced = ""
        self.synced: Callable[[float], None] | None = None
        self._lock = lock
        self._path = file.path
        self._directory = file.path.parent
        self._queue: SimpleQueue[_Commit | None] = SimpleQueue()
        self._closing = False
        self._thread = Thread(target=self._write_batches, name="journal", daemon=True)
        # From here on: the writer thread's own.
        self._file = file
        self._no_checkpoint_below = 0
        threads.start(self._thread)

    @classmethod
    def open(cls, directory: Path, *, salvage: bool = False) -> "Journal":
        """Lock `directory` (made, 0700, when it is missing), recover the journal in it, be ready for commits.

        Blocks.  salvage: keep of a damaged journal what precedes the damage, instead of refusing it.  Raises InUse, or
        StateError that says what is wrong and what to do.
        """
        lock = claim(directory)
        try:
            return cls(lock, *recover(directory, salvage=salvage))
        except BaseException:
            os.close(lock)
            raise

    def commit(
        self,
        change: Mapping[log.Row, bytes | None],
        then: Callable[[], None] | None = None,
        done: asyncio.Future[None] | None = None,
    ) -> asyncio.Future[None]:
        """Keep `change` (None removes the row), after every change committed before it and all or nothing.

        Resolves when the change is durable, with StateError when it was refused and undone.  Commits that arrive while
        others are being synced share the next sync, and its fate; a refusal does not stop the commits queued behind it,
        so a caller whose next change builds on this one awaits it.  Cancelling the future takes nothing back.
        Raises ValueError for a value that is not JSON: see `log.encode_change`.

        then: called by the thread that has made the change durable; it neither waits nor raises.  It hands on to
        the one that resolves `done`, which is the future then: the loop hears of both together.
        """
        if self._closing:
            raise StateError(f"{self._path} is closed")
        if done is None:
            done = asyncio.get_running_loop().create_future()
        self._queue.put(_Commit(dict(change), log.encode_change(change), done, then))
        return done

    async def check(self) -> None:
        """Rewrite the log if somebody removed, moved, replaced or cut it, as every commit does.  Raises StateError when
        that fails.
        """
        if not self._closing:
            commit = _Commit({}, b"", asyncio.get_running_loop().create_future(), None)
            self._queue.put(commit)
            await commit.done

    def obstacle(self) -> str:
        """Why the next change cannot be written, as far as the file system tells; empty when it can.  Blocks."""
        try:
            shown = os.statvfs(self._directory)
        except OSError as error:
            return error.strerror or str(error)
        if shown.f_flag & os.ST_RDONLY:
            return "its file system is read-only"
        room = shown.f_bfree * shown.f_frsize
        if shown.f_blocks and room < ROOM:  # some have no limit, and say that they have no blocks
            return f"its file system has room for {room} bytes"
        try:
            os.close(os.open(self._path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError as error:
            if error.errno != errno.ENOENT:  # it is made again
                return str(refused("it cannot be opened", error))
        return ""

    async def close(self) -> None:
        """Finish the commits under way, end the writer thread, release the lock.  Idempotent."""
        if self._closing:
            return
        self._closing = True
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)
        self._release()

    def _release(self) -> None:
        self._file.close()
        os.close(self._lock)

    # The writer thread.

    def _write_batches(self) -> None:
        while (first := self._queue.get()) is not None:
            batch, more = self._gather(first)
            refused = self._write(batch)
            if refused is None:
                for commit in batch:
                    if commit.then is not None:
                        commit.then()
                batch = [commit for commit in batch if commit.then is None]
            if batch:
                batch[0].done.get_loop().call_soon_threadsafe(_settle, batch, refused)
            if not more:
                break
            if refused is None:
                self._checkpoint_if_long()
        if refused := self._write([]):  # nobody else would bring back a file that is removed while the daemon stops
            logger.error("journal: %s", refused)

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
            file = self._file
            self._return_to_place()
            batch = [commit for commit in batch if commit.change]
            if not batch:
                return None
            if not file.exists:
                rows = dict(file.rows)
                for commit in batch:
                    apply(commit.change, rows)
                file.replace(rows, file.sequence)
            else:
                if file.suspect:
                    file.replace(file.rows, file.sequence)
                began = time.perf_counter()
                file.append([(commit.change, commit.body) for commit in batch])
                self.syncs += 1
                if self.synced is not None:
                    self.synced(time.perf_counter() - began)
        except StateError as error:
            return str(error)
        except Exception as error:  # whatever it is, the waiters must hear of it and the thread must live on
            if not isinstance(error, OSError):
                logger.exception("journal: writing %d commits failed", len(batch))
            return str(refused(f"cannot write {self._path}, so nothing was changed", error))
        return None

    def _return_to_place(self) -> None:
        """Bring back directory, lock and log if somebody removed or changed them.  Raises OSError, StateError."""
        directory = self._directory
        if not is_held(directory, self._lock):
            logger.warning("journal: somebody removed %s, or the lock in it: it is made again", directory)
            lock = claim(directory)
            os.close(self._lock)
            self._lock = lock
        if displaced := self._file.displaced():
            self._file.keep_stranger()
            self._file.replace(self._file.rows, self._file.sequence)
            self.displaced = f"{self._path} {displaced}: written again from memory"
            logger.warning("journal: %s", self.displaced)

    def _checkpoint_if_long(self) -> None:
        file = self._file
        if file.length <= max(CHECKPOINT_BYTES, CHECKPOINT_RATIO * file.live_bytes, self._no_checkpoint_below):
            return
        try:
            file.replace(file.rows, file.sequence)
        except Exception as error:  # see _write
            # The long log is as good as ever. Not again at every commit: when it has grown by as much once more.
            self._no_checkpoint_below = file.length + CHECKPOINT_BYTES
            logger.warning("%s", refused(f"cannot write a checkpoint beside {self._path}", error))


def _settle(batch: list[_Commit], refused: str | None) -> None:
    for commit in batch:
        if commit.done.done():
            continue  # cancelled: nobody waits
        if refused is None:
            commit.done.set_result(None)
        else:
            commit.done.set_exception(DiskError(refused))
