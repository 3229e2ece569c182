"""Deleting veths: together, and answered when they are gone.

Owns: the threads that wait for the kernel.  Must not know: whose veths they are.

A veth's name and addresses are gone in under a millisecond, but the kernel's answer comes after an RCU barrier, 16 ms
later.  So the deletion is left to a thread of ours while the caller looks whether the links are still there; and those
who come while the threads wait share the next deletion, which costs one barrier however many links it has.
"""

from collections.abc import Mapping
from socket import if_nametoindex
from threading import Event, Lock

from overlayd.linux import veth_removal
from overlayd.linux.threads import Pool
from overlayd.model.objects import Netns, NetnsPath

# Our own constants.
THREADS = 4  # deletions under way at once: their barriers overlap
GLANCE = 0.0005  # seconds between two looks whether the links are gone


class _Batch:
    """Links that are deleted together.  began: the deletion is under way; ended: it is over, with `error` or not."""

    def __init__(self) -> None:
        self.namespaces: dict[str, Netns | NetnsPath] = {}  # by the names of host ends
        self.began = False
        self.ended = Event()
        self.error: Exception | None = None


class Reaper:
    """Deletes veths in threads of its own.  Any thread may call."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._next = _Batch()
        self._threads = Pool(THREADS, "reaper")

    def delete(self, mine: Mapping[str, Netns | NetnsPath]) -> None:
        """Return when no link of ours has one of these names any more.  MechanismError: the kernel refused.

        mine: where the container's ends are, by the names of the host ends.
        """
        with self._lock:
            batch = self._next
            if not batch.namespaces:
                self._threads.submit(self._delete_next)
            batch.namespaces |= mine
        while not batch.ended.wait(GLANCE):
            if batch.began and not any(map(_exists, mine)):
                return
        if batch.error is not None:
            raise batch.error

    def close(self) -> None:
        """Wait until the kernel is done."""
        self._threads.shutdown()

    def _delete_next(self) -> None:
        with self._lock:
            batch, self._next = self._next, _Batch()
        batch.began = True
        try:
            veth_removal.delete(batch.namespaces, batch.namespaces)
        except Exception as error:  # whatever it is, those who wait must hear of it
            batch.error = error
        finally:
            batch.ended.set()


def _exists(name: str) -> bool:
    try:
        if_nametoindex(name)
    except OSError:
        return False
    return True
