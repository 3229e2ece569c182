"""What an operation costs: time, the processor time and the context switches of whoever serves it.

Owns: reading these of a process.  Must not know: what the operation is.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


def processor_seconds(pid: int) -> float:
    """What a process has used, with threads that have ended (its CPU clock, clock_getcpuclockid(3))."""
    return time.clock_gettime(~pid << 3 | 2)


def switches(pid: int) -> int:
    """How often the threads of a process have gone to sleep: voluntary context switches (proc(5)), for the others are
    the scheduler's business.
    """
    count = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            status = (task / "status").read_text()
            count += int(status.partition("\nvoluntary_ctxt_switches:")[2].split(None, 1)[0])
    return count


def memory(pid: int) -> int:
    """Resident bytes, those of other processes' pages too (proc(5))."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@dataclass
class Meter:
    """What a block has cost, once it has ended.  operations: what it is divided by."""

    operations: float = 1
    sample: dict[str, float] = field(default_factory=dict)


@contextmanager
def metered(pid: int, operations: float = 1) -> Iterator[Meter]:
    """Measure a block that has the process serve so many operations; the block may correct how many they were."""
    meter = Meter(operations)
    used, slept, start = processor_seconds(pid), switches(pid), time.perf_counter()
    yield meter
    took = time.perf_counter() - start
    meter.sample["time"] = took / meter.operations
    meter.sample["cpu"] = (processor_seconds(pid) - used) / meter.operations
    meter.sample["switches"] = max(switches(pid) - slept, 0) / meter.operations


def percentile(times: list[float], share: float) -> float:
    """The value that this share of the times, 0 to 1, does not exceed."""
    return sorted(times)[min(int(len(times) * share), len(times) - 1)]
