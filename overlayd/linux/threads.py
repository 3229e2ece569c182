"""Threads, on a host that may have none to give (RLIMIT_NPROC, pids.max).

Owns: what is said then, and that work which was accepted is done.  Must not know: what the threads do.
"""

import logging
from concurrent.futures import ThreadPoolExecutor
from errno import EAGAIN
from threading import Thread

from overlayd.errors import MechanismError

log = logging.getLogger(__name__)

REMEDY = (
    "the limit of processes and threads is used up (TasksMax=, LimitNPROC=, a container's --pids-limit), or that of "
    "memory (LimitAS=, LimitDATA=): raise it"
)


def start(thread: Thread) -> None:
    """Start a thread.  MechanismError: there is none."""
    try:
        thread.start()
    except RuntimeError as error:
        raise MechanismError("start thread", thread.name, EAGAIN, REMEDY) from error


class Pool(ThreadPoolExecutor):
    """Up to `most` threads, and one from the start: with fewer than it wants, work waits for those that there are.

    The pool of the library raises instead, and does the work nevertheless as soon as a thread is free.  MechanismError:
    not even one can be started.
    """

    def __init__(self, most: int, name: str) -> None:
        self._name = name
        super().__init__(most, thread_name_prefix=name)
        self.submit(int)

    def _adjust_thread_count(self) -> None:
        try:
            super()._adjust_thread_count()
        except RuntimeError as error:
            if not self._threads:
                raise MechanismError("start thread", self._name, EAGAIN, REMEDY) from error
            log.warning("no further thread (%s): work waits for another's end: %s", self._name, REMEDY)
