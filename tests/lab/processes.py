"""Starting, finding and ending programs.

Owns: the environment that every program of a laboratory runs in, and the mark by which it is found again.  Must not
know: nodes, links or the daemon.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from lab.patience import LIMIT, until

ROOT = Path(__file__).resolve().parents[2]
# Environment variable that every program of a laboratory inherits; its value is the laboratory's prefix
MARK = "OVERLAYD_LAB"


class CommandFailed(Exception):
    """A program ended with a non-zero code; the message holds the command line and what it printed."""


def environment(prefix: str = "") -> dict[str, str]:
    """The environment for a program of the laboratory `prefix`: this checkout's code first, the C locale, the mark."""
    ours = (str(ROOT), str(ROOT / "tests"))
    path = os.pathsep.join(part for part in (*ours, os.environ.get("PYTHONPATH", "")) if part)
    return {**os.environ, "PYTHONPATH": path, "LC_ALL": "C.UTF-8"} | ({MARK: prefix} if prefix else {})


def run(argv: Sequence[str | Path], *, timeout: float = LIMIT, prefix: str = "", stdin: str = "") -> str:
    """Run a program to its end and return what it printed; CommandFailed when it fails."""
    done = subprocess.run(
        argv, input=stdin, capture_output=True, text=True, timeout=timeout, env=environment(prefix), check=False
    )
    if done.returncode:
        raise CommandFailed(
            f"{' '.join(map(str, argv))}: exit code {done.returncode}\n{done.stdout}{done.stderr}".rstrip()
        )
    return done.stdout


def pids() -> Iterator[int]:
    """Every process of this machine."""
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def start_time(pid: int) -> int | None:
    """When `pid` started, in clock ticks since boot (field 22 of /proc/PID/stat, proc(5)); None when it is gone or a
    zombie.
    """
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if after_name[0] in "ZX" else int(after_name[19])


def name(pid: int) -> str:
    """The name of the program that `pid` runs, at most 15 bytes; empty when the process is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def namespace_of(pid: int) -> int | None:
    """The inode of the network namespace that `pid` lives in; None when the process is gone."""
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None


def marked(variable: str, value: str) -> set[int]:
    """The processes, other than this one, that inherited `variable=value`."""
    wanted = f"{variable}={value}".encode()
    found = set()
    for pid in pids():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if pid != os.getpid() and wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.add(pid)
    return found


def stop(pid: int) -> None:
    """SIGSTOP a process, and wait until none of its threads goes on: on a busy machine they do for a while."""
    os.kill(pid, signal.SIGSTOP)

    def has_stopped() -> bool:
        states = set()
        for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
                states.add(stat.read_text().rpartition(")")[2].split()[0])
        return states == {"T"}

    until(has_stopped, lambda: f"process {pid} goes on")


def end(victims: Collection[int]) -> None:
    """SIGKILL these processes and wait until each is gone or a zombie."""
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    left = set(victims)

    def are_gone() -> bool:
        left.intersection_update({pid for pid in left if start_time(pid) is not None})
        return not left

    until(are_gone, lambda: f"processes {sorted(left)} survive SIGKILL")
