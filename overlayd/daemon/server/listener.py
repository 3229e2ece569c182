"""The socket that a daemon listens on.

Owns: binding it, who may connect, and who holds its path already.  Must not know: what is served there.
"""

import ctypes
import errno
import grp
import os
import pwd
import socket
import stat
import struct
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from overlayd.errors import MechanismError, OverlaydError, StateError

DEFAULT_GROUP = "overlayd"

SO_PEERGROUPS = 59  # asm-generic/socket.h
FIRST_PASSED = 3  # sd_listen_fds(3), SD_LISTEN_FDS_START
MOST_GROUPS = 65536  # NGROUPS_MAX of linux/limits.h

_libc = ctypes.CDLL(None, use_errno=True)


class InUse(OverlaydError):
    """Another process holds the place."""


class Credentials(NamedTuple):
    """Who is at the other end of a connection (struct ucred, unix(7)).  groups: the supplementary ones; nobody asks
    for root's.
    """

    pid: int
    uid: int
    gid: int
    groups: frozenset[int] = frozenset()

    def __str__(self) -> str:
        return f"pid {self.pid} uid {self.uid} gid {self.gid}"


def credentials(connection: socket.socket) -> Credentials:
    """The kernel's word for who connected."""
    pid, uid, gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Credentials(pid, uid, gid, _groups(connection) if uid else frozenset())


def _groups(connection: socket.socket) -> frozenset[int]:
    """Those that the process had when it connected."""
    found = (ctypes.c_uint32 * MOST_GROUPS)()  # Python's own getsockopt takes 256 of them at most
    size = ctypes.c_uint32(ctypes.sizeof(found))
    if _libc.getsockopt(connection.fileno(), socket.SOL_SOCKET, SO_PEERGROUPS, found, ctypes.byref(size)):
        raise OSError(ctypes.get_errno(), "getsockopt SO_PEERGROUPS")
    return frozenset(found[: size.value // ctypes.sizeof(ctypes.c_uint32)])


class Admission:
    """Who may use the socket: root, the daemon's own user, members of a group.

    group: empty for no group; None for `DEFAULT_GROUP`, if this host has it.  StateError: there is no such group.
    """

    def __init__(self, group: str | None) -> None:
        name = DEFAULT_GROUP if group is None else group
        try:
            self._gid: int | None = grp.getgrnam(name).gr_gid if name else None
        except KeyError:
            if group is not None:
                raise StateError(
                    f"socket-group: there is no group {group}: create it (groupadd --system {group}), or name another"
                ) from None
            self._gid = None

    @property
    def gid(self) -> int | None:
        """The group's number, None when there is no such group."""
        return self._gid

    def __call__(self, client: Credentials) -> bool:
        if client.uid in (0, os.getuid()) or self._gid in (client.gid, *client.groups):
            return True
        # Last, since it may ask a directory service: who is a member by name, though the process has not heard of it.
        try:
            user = pwd.getpwuid(client.uid)
        except KeyError:
            return False
        return self._gid in os.getgrouplist(user.pw_name, user.pw_gid)


def bind(path: str, gid: int | None, mode: int = 0o660) -> socket.socket:
    """The listening socket, of that mode and the group `gid`, in a directory that all may enter.  InUse: somebody
    answers on the path.  A stale socket is replaced; StateError: something else is there.
    """
    _refuse_if_answered(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    mask = os.umask(0o022)  # members of the group must get through a directory that we make
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).unlink(missing_ok=True)
        os.umask(0o177)  # and nobody gets at the socket before it is its group's
        listener.bind(path)
        if gid is not None:
            os.chown(path, -1, gid)
        Path(path).chmod(mode)
    except OSError as error:
        listener.close()
        raise _refusal("bind socket", path, error) from error
    finally:
        os.umask(mask)
    return listener


def passed() -> dict[str, socket.socket]:
    """The listening sockets that a service manager holds for this process, by their paths (sd_listen_fds(3)).  Programs
    that this process starts do not get them.  StateError: one of them is no such socket.
    """
    mine = os.environ.pop("LISTEN_PID", "") == str(os.getpid())
    number, _ = os.environ.pop("LISTEN_FDS", "0"), os.environ.pop("LISTEN_FDNAMES", "")
    if mine and not number.isdecimal():
        raise StateError(f"LISTEN_FDS is {number!r}, and no number: unset it and LISTEN_PID")
    found = {}
    for descriptor in range(FIRST_PASSED, FIRST_PASSED + int(number)) if mine else ():
        try:
            held = socket.socket(fileno=descriptor)
        except OSError as error:
            raise StateError(
                f"LISTEN_FDS is {number}, but descriptor {descriptor} is not a socket ({error.strerror}): unset it and "
                "LISTEN_PID"
            ) from error
        held.set_inheritable(False)
        held.setblocking(False)
        is_stream = (held.family, held.type) == (socket.AF_UNIX, socket.SOCK_STREAM)
        if not is_stream or not held.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise StateError(
                f"descriptor {descriptor} from the service manager is not a listening Unix socket: ListenStream=/PATH"
            )
        found[str(held.getsockname())] = held
    return found


class Place:
    """A path at which clients find us.  socket: the one that listens there.  Made as by `bind`, unless it is `held`:
    that of this path which a service manager has; its mode, its group and its end are that one's affair.
    """

    def __init__(self, path: str, gid: int | None, mode: int = 0o660, *, held: socket.socket | None = None) -> None:
        self.path = path
        self._gid = gid
        self._mode = mode
        self._ours = held is None
        self._take(held if held is not None else bind(path, gid, mode))

    def is_lost(self) -> bool:
        """Whether somebody removed the socket from its path, or put something else there."""
        try:
            return not os.path.samestat(os.lstat(self.path), os.fstat(self._file))
        except OSError:
            return True

    def retake(self) -> socket.socket:
        """Listen at the path again; returns the socket of before, which the caller closes.  Raises as `bind` does."""
        former, file = self.socket, self._file
        self._take(bind(self.path, self._gid, self._mode))
        self._ours = True
        if file >= 0:
            os.close(file)
        return former

    def close(self) -> None:
        """Close the socket.  If it was made here, its file goes, unless the path is somebody else's by now."""
        self.socket.close()
        with suppress(FileNotFoundError):
            if self._ours and not self.is_lost():
                Path(self.path).unlink()
        if self._file >= 0:
            os.close(self._file)

    def _take(self, listener: socket.socket) -> None:
        self.socket = listener
        try:
            self._file = os.open(self.path, os.O_PATH | os.O_NOFOLLOW)  # held, so that no other file gets its number
        except FileNotFoundError:  # of a service manager's: it is lost already
            self._file = -1


def _refuse_if_answered(path: str) -> None:
    with suppress(OSError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):  # connect(2) cannot tell a regular file from a socket left behind
            raise StateError(
                f"socket {path}: what is there is not a socket, and stays: move it away, or change --socket"
            )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2)
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return
        except TimeoutError as error:
            raise InUse(f"somebody holds the socket {path} but does not accept connections") from error
        except OSError as error:
            raise _refusal("probe socket", path, error) from error
        raise InUse(f"{path} is served by {credentials(probe)} already")


def _refusal(what: str, path: str, error: OSError) -> OverlaydError:
    """StateError for a path at which no socket can ever be, and so for a setting."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
        return StateError(
            f"socket {path}: {error.strerror} (errno {error.errno}): none can be there, name another path (--socket, "
            "--cni-socket)"
        )
    return MechanismError(what, path, error.errno or 0)
