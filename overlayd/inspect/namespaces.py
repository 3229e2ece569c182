"""Work in another network namespace.

Owns: a thread that enters one and ends with its work.  Must not know: what is done there.
"""

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_libc = ctypes.CDLL(None, use_errno=True)


def inside(path: str | None, work: Callable[[], T]) -> T:
    """Do work in the namespace of a file (/proc/PID/ns/net), or in ours (None), and return what it returns.  OSError
    when it cannot be entered; else raises what the work does.
    """
    if path is None:
        return work()
    with ThreadPoolExecutor(1) as thread:  # its end is that of the thread: no other work gets into the namespace
        return thread.submit(_entered, path, work).result()


def _entered(path: str, work: Callable[[], T]) -> T:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(descriptor, _CLONE_NEWNET):
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), path)
    finally:
        os.close(descriptor)
    return work()
