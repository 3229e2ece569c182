"""The journal beside sqlite3 (WAL, synchronous=FULL) on the same disk in the same run.

    python bench/bench_journal.py --fast [-o FILE.json]

The directory is made under TMPDIR: point it at the disk in question; a tmpfs shows the cost without a disk.
Rows look like peers: a 44-byte key and 110 bytes of JSON.
"""

import asyncio
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from smoke import SMOKE, make_runner

from overlayd.daemon.change import journal
from overlayd.daemon.change.journal import Journal
from overlayd.proto import log

START_ROWS = 100 if SMOKE else 11_000  # 10,000 peers, and the services and addresses of a full node
CHECKPOINT_ROWS = 100 if SMOKE else 10_000
WAITERS = 64

Rows = dict[tuple[str, str], bytes]


def peers(count: int) -> Rows:
    row = b'{"endpoint":"203.0.113.%d:51820","allowed_ips":["10.77.%d.0/28"],"keepalive":25,"scope":"global","at":%d}'
    return {("peer", f"{at:043}="): row % (at % 250, at % 250, at) for at in range(count)}


def database(directory: Path) -> sqlite3.Connection:
    made = sqlite3.connect(directory / "state.db", isolation_level=None)
    made.execute("PRAGMA journal_mode=WAL")
    made.execute("PRAGMA synchronous=FULL")
    made.execute(
        "CREATE TABLE IF NOT EXISTS rows (name TEXT, key TEXT, row BLOB, PRIMARY KEY (name, key)) WITHOUT ROWID"
    )
    return made


def store(made: sqlite3.Connection, rows: Rows) -> None:
    made.execute("BEGIN IMMEDIATE")
    made.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?, ?)", ((t, k, v) for (t, k), v in rows.items()))
    made.execute("COMMIT")


def journal_commits(loops: int, waiters: int) -> float:
    """Seconds for `loops` rounds of `waiters` concurrent commits of one row."""
    changes: list[Rows] = [{row: value} for row, value in peers(waiters).items()]

    async def run(directory: Path) -> float:
        made = Journal.open(directory)
        await made.commit(changes[0])
        start = time.perf_counter()
        for _ in range(loops):
            await asyncio.gather(*map(made.commit, changes))
        spent = time.perf_counter() - start
        await made.close()
        return spent

    with tempfile.TemporaryDirectory() as name:
        return asyncio.run(run(Path(name)))


def sqlite_commits(loops: int, waiters: int) -> float:
    """Seconds for `loops` transactions of `waiters` rows, which is the best a caller that gathers could get."""
    rows = peers(waiters)
    with tempfile.TemporaryDirectory() as name:
        made = database(Path(name))
        start = time.perf_counter()
        for _ in range(loops):
            store(made, rows)
        spent = time.perf_counter() - start
        made.close()
        return spent


def journal_start(loops: int, as_commits: bool) -> float:
    """Seconds to open a journal of START_ROWS rows, in a checkpoint or in as many commits."""
    rows = peers(START_ROWS)
    data, newest = log.checkpoint({} if as_commits else rows, 0)
    if as_commits:
        bodies = (log.encode_change({row: value}) for row, value in rows.items())
        data += b"".join(log.record(at, at - 1, body) for at, body in enumerate(bodies, newest + 1))
    spent = 0.0
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "journal").write_bytes(data)
        for _ in range(loops):
            start = time.perf_counter()
            made = Journal.open(directory)
            spent += time.perf_counter() - start
            assert len(made.rows) == START_ROWS
            asyncio.run(made.close())
    return spent


def sqlite_start(loops: int) -> float:
    spent = 0.0
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        made = database(directory)
        store(made, peers(START_ROWS))
        made.close()
        for _ in range(loops):
            start = time.perf_counter()
            made = database(directory)
            rows = {(t, k): v for t, k, v in made.execute("SELECT name, key, row FROM rows")}
            spent += time.perf_counter() - start
            assert len(rows) == START_ROWS
            made.close()
    return spent


def checkpoint_stall(loops: int) -> float:
    """Seconds that a commit takes which arrives as a checkpoint of CHECKPOINT_ROWS rows begins."""
    journal.CHECKPOINT_BYTES = 0
    rows = peers(CHECKPOINT_ROWS)

    async def run(directory: Path) -> float:
        made = Journal.open(directory)
        await made.commit(rows)
        spent = 0.0
        for _ in range(loops):
            journal.CHECKPOINT_RATIO = 0
            await made.commit({("node", "n"): b"1"})  # answered; the checkpoint that it made due begins
            start = time.perf_counter()
            journal.CHECKPOINT_RATIO = 1 << 40
            await made.commit({("node", "n"): b"2"})
            spent += time.perf_counter() - start
        await made.close()
        return spent

    with tempfile.TemporaryDirectory() as name:
        return asyncio.run(run(Path(name)))


def main() -> None:
    runner = make_runner()
    cases: list[tuple[str, Callable[..., float], tuple[int | bool, ...]]] = [
        ("commit: journal", journal_commits, (1,)),
        ("commit: sqlite3", sqlite_commits, (1,)),
        (f"{WAITERS} waiters: journal", journal_commits, (WAITERS,)),
        (f"{WAITERS} rows in one transaction: sqlite3", sqlite_commits, (WAITERS,)),
        (f"open {START_ROWS} rows: journal, checkpoint", journal_start, (False,)),
        (f"open {START_ROWS} rows: journal, commits", journal_start, (True,)),
        (f"open {START_ROWS} rows: sqlite3", sqlite_start, ()),
        (f"commit that meets a checkpoint of {CHECKPOINT_ROWS} rows: journal", checkpoint_stall, ()),
    ]
    for name, case, arguments in cases:
        runner.bench_time_func(name, case, *arguments)


if __name__ == "__main__":
    main()
