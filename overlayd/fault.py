"""Fault points: named places between durable steps where a test may end the process or refuse an operation.

Owns: reading OVERLAYD_FAULT.  Must not know: what the points mean.

`OVERLAYD_FAULT=name:n` kills the process (SIGKILL) at the n-th passage of the point `name`, counted from 1;
`OVERLAYD_FAULT=name:n:errno` raises OSError(errno) there instead.  Unset, a point does nothing.
"""

import os
import signal
from collections.abc import Callable
from typing import Never


def _armed(spec: str) -> Callable[[str], None]:
    *names, last = spec.split(":")
    error = 0
    if names[-1].isdecimal():
        error, last = int(last), names.pop()
    target, passages = ":".join(names), int(last)

    def point(name: str) -> None:
        nonlocal passages
        if name == target:
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


point: Callable[[str], None] = _armed(os.environ["OVERLAYD_FAULT"]) if os.environ.get("OVERLAYD_FAULT") else _unarmed
