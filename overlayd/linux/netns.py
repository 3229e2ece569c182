"""Network namespaces: which one a process lives in, whether it still does, and a netlink socket inside it.

Owns: /proc/PID/stat and /proc/PID/ns/net, the files of namespaces, setns(2) and the way back.  Must not know: what is
configured inside.

A namespace is identified by its inode and by a process, itself identified by pid and start time, so that a reused pid
is never taken for the old process; or by its file, of which the cookie tells that an inode is not a later one.  We keep
no descriptor of a namespace by its file, which would keep it alive: the file is opened again, where that is in sight,
or who has it lends a descriptor for as long as it is needed.  Sources: proc(5), namespaces(7), setns(2),
pidfd_open(2), ioctl_ns(2), linux/nsfs.h.
"""

import ctypes
import errno
import fcntl
import logging
import os
import socket
import stat
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from threading import Lock

from overlayd.errors import MechanismError
from overlayd.linux import rtnetlink as rt
from overlayd.linux.netlink import Netlink, Request
from overlayd.model.objects import Netns, NetnsPath

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_NS_GET_NSTYPE = 0xB703  # linux/nsfs.h
_SO_NETNS_COOKIE = 71  # asm-generic/socket.h
_INIT = 1  # the pid of init, which is no container and not always to be looked at
_OWN = "/proc/thread-self/ns/net"  # not /proc/self: threads may be in different namespaces

_FILES = ("/run/netns", "/run/docker/netns")  # where ip-netns(8), CNI runtimes and Docker keep theirs

_STAT = 4096  # bytes, more than /proc/PID/stat has

_log = logging.getLogger(__name__)

_libc = ctypes.CDLL(None, use_errno=True)

_lent: dict[int, list[int]] = {}  # descriptors, by the identity of the namespace that they are of
_lending = Lock()


def identify(pid: int) -> Netns:
    """The namespace that process `pid` lives in now.

    Raises MechanismError with errno ESRCH when there is no such process or it has exited (a zombie counts as gone),
    EACCES or EPERM when we may not look.
    """
    try:
        place = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(pid, error) from error
    try:  # all that is read by this descriptor is of one process, also where another one gets the pid meanwhile
        return Netns(pid, _started(pid, place), os.stat("ns/net", dir_fd=place).st_ino)
    except OSError as error:
        raise _unreadable(pid, error) from error
    finally:
        os.close(place)


def open_file(path: str) -> int:
    """A descriptor of a namespace's file, which the caller closes.  MechanismError: it cannot be opened; with EINVAL it
    can be no such file.
    """
    try:
        # Looked at before it is opened: opening a pipe may take forever, and a device may do something.
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(place).st_mode):
                raise MechanismError("identify", path, errno.EINVAL, "it is no network namespace")
            return os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(place)
    except OSError as error:
        raise MechanismError("open network namespace", path, error.errno or 0) from error


def identify_file(descriptor: int, path: str) -> NetnsPath:
    """The namespace that a descriptor is of.  path: what it is to be known by.

    MechanismError with errno EINVAL: it is of something else, or of the namespace that the calling thread is in.
    """
    try:
        kind = fcntl.ioctl(descriptor, _NS_GET_NSTYPE)
    except OSError:
        kind = 0
    if kind != _CLONE_NEWNET:
        raise MechanismError("identify", path, errno.EINVAL, "it is no network namespace")
    found = os.fstat(descriptor)
    if found.st_ino == own_inode():
        raise MechanismError("identify", path, errno.EINVAL, "it is the host's own network namespace")
    return NetnsPath(path, found.st_dev, found.st_ino, _cookie(descriptor))


def _cookie(descriptor: int) -> int:
    """SO_NETNS_COOKIE of a namespace; 0 before Linux 5.14."""
    with entered(descriptor), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), sys.byteorder)
        except OSError:
            return 0


@contextmanager
def lent(namespace: NetnsPath, descriptor: int) -> Iterator[None]:
    """Inside the `with` that namespace is entered by this descriptor, whether its file is in sight or not."""
    key = namespace.identity
    with _lending:
        _lent.setdefault(key, []).append(descriptor)
    try:
        yield
    finally:
        with _lending:
            _lent[key].remove(descriptor)
            if not _lent[key]:
                del _lent[key]


def leads_to(namespace: NetnsPath) -> bool:
    """Whether that very namespace is in sight, by its file or a descriptor that somebody lends."""
    try:
        os.close(_open_file_of(namespace))
    except MechanismError:
        return False
    return True


def _open_file_of(namespace: NetnsPath) -> int:
    with _lending:
        if descriptors := _lent.get(namespace.identity):
            return os.dup(descriptors[-1])
    descriptor = open_file(namespace.path)
    try:
        if identify_file(descriptor, namespace.path) == namespace:
            return descriptor
        raise MechanismError("open network namespace", namespace.path, errno.ESRCH, "another one is there now")
    except BaseException:
        os.close(descriptor)
        raise


def process_of(pid: int) -> int:
    """The process that a number of a process or of a thread stands for; the number itself when there is neither.

    A thread is found in /proc by its own number as well, but lives no longer than itself, and is not seen to end.
    Almost every number is a process's, of which pidfd_open(2) opens no other thread: it tells in a twentieth of the
    time that /proc takes.
    """
    try:
        os.close(os.pidfd_open(pid))
        return pid
    except (OSError, OverflowError):  # no process has a number that does not fit
        pass
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("Tgid:"):
                return int(line.split()[1])
    except (FileNotFoundError, ProcessLookupError):
        pass
    return pid


def open_namespace(netns: Netns | NetnsPath) -> int:
    """A descriptor of the namespace, which the caller closes; it keeps the namespace alive.

    Raises MechanismError with errno ESRCH when that very process is gone or has left that namespace, EACCES or EPERM
    when we may not enter it, EINVAL when it is the namespace that the calling thread is in: a container never shares
    it.  Of a file: with ESRCH when it leads to another namespace, ENOENT or others when it is not in sight.
    """
    if isinstance(netns, NetnsPath):
        return _open_file_of(netns)
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
                found.add(id_here(netlink, descriptor, f"process {pid}"))
            finally:
                os.close(descriptor)
    return frozenset(found.intersection(ids))


def find(ids: Collection[int]) -> dict[int, NetnsPath]:
    """The network namespaces with these ids, in the calling thread's, that are in sight: by the files that runtimes
    make, or by a process.  Looks at every process of the machine.
    """
    found: dict[int, NetnsPath] = {}
    with Netlink() as netlink:
        for path in chain(*(Path(each).glob("*") for each in _FILES), Path("/proc").glob("[0-9]*/ns/net")):
            try:
                descriptor = open_file(str(path))
            except MechanismError:
                continue  # it has gone, or it is not for us
            try:
                number = id_here(netlink, descriptor, str(path))
                if number in ids and number not in found:
                    found[number] = identify_file(descriptor, str(path))
            except MechanismError as error:
                _log.debug("passed over: %s", error)
            finally:
                os.close(descriptor)
    return found


def id_here(netlink: Netlink, descriptor: int, whose: str) -> int:
    """The id that the calling thread's namespace has for that of a descriptor; NO_NAMESPACE_ID when it has none.
    whose: the namespace, for errors.
    """
    body = rt.namespace_id_body(descriptor)
    request = Request("identify network namespace of", whose, rt.RTM_GETNSID, 0, body)
    return rt.parse_namespace_id(netlink.transact([request])[0])


def ensure_running(netns: Netns | NetnsPath) -> None:
    """Raise MechanismError, errno ESRCH, unless that very process still runs; in which namespace is not looked at.  A
    namespace by its file needs no process.
    """
    if isinstance(netns, Netns) and _started(netns.pid) != netns.started:
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


def _started(pid: int, place: int | None = None) -> int:
    """Start time of a process in clock ticks since boot; raises MechanismError, errno ESRCH, when it has exited.

    place: a descriptor of its directory, where that is open.
    """
    path = f"/proc/{pid}/stat" if place is None else "stat"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=place)  # a third of the time of Path.read_bytes
        try:
            stat = os.read(descriptor, _STAT)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _unreadable(pid, error) from error
    # The second field, the program's name in parentheses, may itself hold spaces and parentheses.
    fields = stat[stat.rindex(b")") + 2 :].split(maxsplit=20)
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
