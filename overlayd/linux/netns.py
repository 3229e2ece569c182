"""Network namespaces: which one a process lives in, whether it still does, and a netlink socket inside it.

Owns: /proc/PID/stat and /proc/PID/ns/net, setns(2) and the way back.  Must not know: what is configured inside.

A namespace is identified by its inode and by a process, itself identified by pid and start time, so that a reused pid
is never taken for the old process.  Sources: proc(5), namespaces(7), setns(2), pidfd_open(2).
"""

import ctypes
import errno
import logging
import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from overlayd.errors import MechanismError
from overlayd.linux import rtnetlink as rt
from overlayd.linux.netlink import Netlink, Request
from overlayd.model.objects import Netns

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_INIT = 1  # the pid of init, which is no container and not always to be looked at
_OWN = "/proc/thread-self/ns/net"  # not /proc/self: threads may be in different namespaces

_STAT = 4096  # bytes, more than /proc/PID/stat has

_log = logging.getLogger(__name__)

_libc = ctypes.CDLL(None, use_errno=True)


def identify(pid: int) -> Netns:
    """The namespace that process `pid` lives in now.

    Raises MechanismError with errno ESRCH when there is no such process or it has exited (a zombie counts as gone),
    EACCES or EPERM when we may not look.
    """
    started = _started(pid)
    try:
        inode = os.stat(f"/proc/{pid}/ns/net").st_ino  # noqa: PTH116 - a third of the time of Path.stat
    except OSError as error:
        raise _unreadable(pid, error) from error
    if _started(pid) != started:
        raise _gone(pid, "exited meanwhile")
    return Netns(pid, started, inode)


def process_of(pid: int) -> int:
    """The process that a number of a process or of a thread stands for; the number itself when there is neither.

    A thread is found in /proc by its own number as well, but lives no longer than itself, and is not seen to end.
    Almost every number is a process's, of which pidfd_open(2) opens no other thread: it tells in a twentieth of the
    time that /proc takes.
    """
    try:
        os.close(os.pidfd_open(pid))
        return pid
    except OSError:
        pass
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("Tgid:"):
                return int(line.split()[1])
    except (FileNotFoundError, ProcessLookupError):
        pass
    return pid


def open_namespace(netns: Netns) -> int:
    """A descriptor of the namespace, which the caller closes; it keeps the namespace alive.

    Raises MechanismError with errno ESRCH when that very process is gone or has left that namespace, EACCES or EPERM
    when we may not enter it, EINVAL when it is the namespace that the calling thread is in: a container never shares
    it.
    """
    try:
        descriptor = os.open(f"/proc/{netns.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(netns.pid, error) from error
    try:
        # Looked at after the open: had the pid been reused before it, the start time or the inode tells.
        inode = os.fstat(descriptor).st_ino
        ensure_running(netns)
        if inode != netns.inode:
            raise _gone(netns.pid, "the process has moved to another network namespace")
        if inode == own_inode():
            raise MechanismError(
                "open network namespace of",
                f"process {netns.pid}",
                errno.EINVAL,
                "the process lives in the host's own network namespace",
            )
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def is_alive(netns: Netns) -> bool:
    """Whether that very process still lives, and in that very namespace; raises MechanismError when we may not look."""
    try:
        return identify(netns.pid) == netns
    except MechanismError as error:
        if error.errno == errno.ESRCH:
            return False
        raise


def inhabited(ids: Collection[int]) -> frozenset[int]:
    """Those of the network namespaces in which a process lives, by the ids that the calling thread's namespace has for
    them; all of them when there is a process that we may not look at.  Looks at every process of the machine.
    """
    found: set[int] = set()
    seen = {own_inode()}
    with Netlink() as netlink:
        for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
            path = Path(f"/proc/{pid}/ns/net")
            try:
                if path.stat().st_ino in seen:
                    continue
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ESRCH) or pid == _INIT:
                    continue  # it has exited, but another one may still live there
                _log.warning("containers of other daemons all count as living: %s", _unreadable(pid, error))
                return frozenset(ids)
            try:
                seen.add(os.fstat(descriptor).st_ino)
                body = rt.namespace_id_body(descriptor)
                request = Request("identify network namespace of", f"process {pid}", rt.RTM_GETNSID, 0, body)
                found.update(map(rt.parse_namespace_id, netlink.transact([request])))
            finally:
                os.close(descriptor)
    return frozenset(found.intersection(ids))


def ensure_running(netns: Netns) -> None:
    """Raise MechanismError, errno ESRCH, unless that very process still runs; in which namespace is not looked at."""
    if _started(netns.pid) != netns.started:
        raise _gone(netns.pid, "the pid now belongs to another process")


def own_inode() -> int:
    """The inode of the namespace that the calling thread is in."""
    return os.stat(_OWN).st_ino  # noqa: PTH116 - a third of the time of Path.stat


def open_own() -> int:
    """A descriptor of the namespace that the calling thread is in, which the caller closes."""
    return os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)


def pidfd(netns: Netns) -> int:
    """A pidfd of that very process, readable once it exits; the caller closes it.  Raises MechanismError, errno ESRCH,
    when it is gone.
    """
    try:
        descriptor = os.pidfd_open(netns.pid)
    except ProcessLookupError as error:
        raise _gone(netns.pid, "") from error
    except OSError as error:
        raise MechanismError("open pidfd of", f"process {netns.pid}", error.errno or 0) from error
    try:
        ensure_running(netns)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def entered(descriptor: int) -> Iterator[None]:
    """The calling thread is in the namespace of `descriptor` for the body of the `with`; sockets opened there stay
    there.

    Raises MechanismError when the kernel refuses the way in.  A thread that cannot come back would act on the wrong
    host's links with every later call, and a pool would hand it such calls: the process is aborted.  The data plane
    outlives it, and its next start adopts it.
    """
    home = open_own()
    try:
        if _setns(descriptor):
            raise no_way_in(ctypes.get_errno())
        try:
            yield
        finally:
            if _setns(home):
                reason = os.strerror(ctypes.get_errno())
                sys.stderr.write(f"overlayd: cannot return to the own network namespace: {reason}; aborting\n")
                sys.stderr.flush()
                os.abort()
    finally:
        os.close(home)


def socket_in(descriptor: int) -> Netlink:
    """A netlink socket that lives in the namespace of `descriptor`; the caller closes it.  Raises as `entered` does."""
    with entered(descriptor):
        return Netlink()


def _setns(descriptor: int) -> int:
    return int(_libc.setns(descriptor, _CLONE_NEWNET))


def _started(pid: int) -> int:
    """Start time of a process in clock ticks since boot; raises MechanismError, errno ESRCH, when it has exited."""
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)  # a third of the time of Path.read_bytes
        try:
            stat = os.read(descriptor, _STAT)
        finally:
            os.close(descriptor)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise _gone(pid, "") from error
    # The second field, the program's name in parentheses, may itself hold spaces and parentheses.
    fields = stat[stat.rindex(b")") + 2 :].split()
    if fields[0] in (b"Z", b"X"):
        raise _gone(pid, "it has exited and waits to be reaped")
    return int(fields[19])


def no_way_in(number: int) -> MechanismError:
    """The error when a namespace could not be entered, from its errno."""
    return MechanismError("enter", "network namespace", number, _capability(number, "CAP_SYS_ADMIN"))


def _gone(pid: int, detail: str) -> MechanismError:
    return MechanismError("find", f"process {pid}", errno.ESRCH, detail)


def _capability(number: int, capability: str) -> str:
    return f"missing capability {capability}" if number in (errno.EACCES, errno.EPERM) else ""


def _unreadable(pid: int, error: OSError) -> MechanismError:
    if error.errno in (errno.ENOENT, errno.ESRCH):
        return _gone(pid, "")
    number = error.errno or 0
    return MechanismError("open network namespace of", f"process {pid}", number, _capability(number, "CAP_SYS_PTRACE"))
