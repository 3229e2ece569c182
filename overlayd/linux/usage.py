"""What this process uses of the machine.

Owns: the fields of proc_pid_stat(5), proc_stat(5) and getrlimit(2) that tell it.  Must not know: who asks.
"""

import os
import resource
from pathlib import Path
from typing import NamedTuple

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")  # of a second
# proc_pid_stat(5), counted from behind the name of the program, which may hold spaces and parentheses.
_USER, _SYSTEM, _STARTED, _VIRTUAL, _RESIDENT = 11, 12, 19, 20, 21


class Usage(NamedTuple):
    """cpu: seconds, of user and system.  virtual, resident: bytes.  started: Unix seconds.  open, most: descriptors,
    and the soft limit of their number, which is never infinite.
    """

    cpu: float
    virtual: int
    resident: int
    started: float
    open: int
    most: int


def usage() -> Usage:
    """Read the usage of this process.  OSError: there is no /proc."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return Usage(
        (int(fields[_USER]) + int(fields[_SYSTEM])) / _TICKS,
        int(fields[_VIRTUAL]),
        int(fields[_RESIDENT]) * _PAGE,
        _booted() + int(fields[_STARTED]) / _TICKS,
        sum(1 for _ in Path("/proc/self/fd").iterdir()) - 1,  # without the one that lists them
        resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    )


def _booted() -> int:
    """Unix seconds, which change when the clock is set."""
    lines = Path("/proc/stat").read_text().splitlines()
    return next(int(line.removeprefix("btime")) for line in lines if line.startswith("btime "))
