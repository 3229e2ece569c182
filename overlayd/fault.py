"""Fault points: named places between durable steps where a test may end the process or refuse an operation.

Owns: reading OVERLAYD_FAULT and OVERLAYD_FAULT_TRACE.  Must not know: what the points mean.

`OVERLAYD_FAULT=name:n` kills the process (SIGKILL) at the n-th passage of the point `name`, counted from 1, or of any
point if the name is `*`; `OVERLAYD_FAULT=name:n:errno` raises OSError(errno) there instead.  Several are separated by
commas.  `OVERLAYD_FAULT_TRACE=FILE` appends the name of every point passed to FILE, a line each.  Unset, a point does
nothing.
"""

import os
import signal
from collections.abc import Callable
from typing import Never


def _armed(specs: str, trace: str) -> Callable[[str], None]:
    faults = [_fault(spec) for spec in specs.split(",") if spec]
    told = os.open(trace, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600) if trace else -1

    def point(name: str) -> None:
        if told >= 0:
            os.write(told, name.encode() + b"\n")
        for fault in faults:
            fault(name)

    return point


def _fault(spec: str) -> Callable[[str], None]:
    *names, last = spec.split(":")
    error = 0
    if names[-1].isdecimal():
        error, last = int(last), names.pop()
    target, passages = ":".join(names), int(last)

    def point(name: str) -> None:
        nonlocal passages
        if target in (name, "*"):
            passages -= 1
            if passages == 0:
                _strike(error)

    return point


def _strike(error: int) -> Never:
    if error:
        raise OSError(error, os.strerror(error))
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("a process survived SIGKILL")


def _unarmed(name: str) -> None:
    pass


def _chosen(spec: str, trace: str) -> Callable[[str], None]:
    return _armed(spec, trace) if spec or trace else _unarmed


# Whether a point does anything: for callers on a hot path.
ARMED = bool(os.environ.get("OVERLAYD_FAULT", "") or os.environ.get("OVERLAYD_FAULT_TRACE", ""))

point: Callable[[str], None] = _chosen(os.environ.get("OVERLAYD_FAULT", ""), os.environ.get("OVERLAYD_FAULT_TRACE", ""))
