"""The wireguard-go process of a device, and its Unix socket.

Owns: start, recognition and end of those processes, and the names of their sockets in /var/run/wireguard.  Must not
know: what is said on a socket (`userspace`).

The process is no child of ours and outlives us.  Its socket is named after the link as it was called at the start, and
the process ends itself when that file goes; so after a rename the new name is a symbolic link to it.
"""

import ctypes
import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EAGAIN, EEXIST, ENOENT, ETIMEDOUT
from itertools import takewhile
from pathlib import Path
from typing import IO, Self

from overlayd import fault
from overlayd.errors import MechanismError
from overlayd.linux.threads import REMEDY
from overlayd.linux.wireguard import program
from overlayd.model.names import PREFIX

SOCKETS = Path("/var/run/wireguard")
_TUN = Path("/dev/net/tun")
_COMM_LENGTH = 15  # linux/sched.h, TASK_COMM_LEN less its zero
_UCRED = struct.Struct("iII")  # struct ucred, unix(7)

_PIDFD_GETFD = 438  # asm-generic/unistd.h, Linux 5.6
_SOL_NETLINK, _NETLINK_NO_ENOBUFS = 270, 5  # linux/socket.h, linux/netlink.h
_LIBC = ctypes.CDLL(None, use_errno=True)

# Our own constants.
ANSWER_DEADLINE = 5.0  # seconds for one operation and its whole answer; the longest, a batch of peers, takes 0.2 s
_START_DEADLINE = 5.0  # seconds until the process answers; it takes 20 ms on an idle machine
_END_DEADLINE = 2.0  # seconds between SIGTERM and SIGKILL; it takes 10 ms
_POLL = 0.002  # seconds between two looks at a process that starts
_OUTPUT_KEPT = 4096  # bytes of the process's output, for the message when it does not come up
_STACKS = ("goroutine ", "runtime stack:")


def missing(configured: str) -> str:
    """What this machine lacks for wireguard-go, for a person; empty when it can be started.  configured: see
    `program.choose`.
    """
    if lacking := program.missing(configured):
        return lacking
    if not _TUN.exists():
        return f"{_TUN} does not exist (load the module tun, or pass the device to the container)"
    return ""


@contextmanager
def reported(operation: str, name: str) -> Iterator[None]:
    """What the system refuses inside `with` becomes a MechanismError about the device."""
    try:
        yield
    except OSError as error:
        errno = ETIMEDOUT if isinstance(error, TimeoutError) else error.errno or 0
        raise MechanismError(f"{operation} WireGuard device", name, errno, str(error.filename or "")) from error


class Process:
    """A running process by its pidfd, so that no signal can reach another one under a reused pid."""

    def __init__(self, pid: int, name: str) -> None:
        """Raises ProcessLookupError when there is none.  name: of the device, for messages."""
        self.pid = pid
        self._name = name
        self._fd = os.pidfd_open(pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def ended(self, timeout: float) -> bool:
        """Whether it is at its end, waiting for that at most `timeout` seconds."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(timeout * 1000))

    def end(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fd, number)
            if self.ended(_END_DEADLINE):
                return
        raise MechanismError(f"end {program.NAME} of", self._name, ETIMEDOUT, f"process {self.pid} survives SIGKILL")

    def ignore_lost_news(self) -> None:
        """Keep it alive when more links change at once than it is told of in time.

        wireguard-go listens to all changes of links, and takes ENOBUFS on that socket for the end of its own device:
        three hundred attaches in a row can end every tunnel of the node.  NETLINK_NO_ENOBUFS is an option of the
        socket, whoever sets it.  It does without the news: they are only of use for its own link, which we look after.
        """
        for descriptor in Path(f"/proc/{self.pid}/fd").iterdir():
            with suppress(OSError):  # closed meanwhile; or we lack CAP_SYS_PTRACE, and it lives as it was written
                if not str(descriptor.readlink()).startswith("socket:"):
                    continue
                copy = _LIBC.syscall(_PIDFD_GETFD, self._fd, int(descriptor.name), 0)
                if copy >= 0:
                    with socket.socket(fileno=copy) as theirs:
                        if theirs.family == socket.AF_NETLINK:
                            theirs.setsockopt(_SOL_NETLINK, _NETLINK_NO_ENOBUFS, 1)

    def serves(self, name: str) -> bool:
        """Whether it is a wireguard-go, and not that of a link which was called `name` only when it started."""
        link = self.link()
        return link is not None and (not link or _same_link(link, name))

    @property
    def executable(self) -> str:
        """A path of what it runs, which may be another file by now than the one at the path that it was started by."""
        return f"/proc/{self.pid}/exe"

    def is_ending(self, configured: str) -> bool:
        """Whether it is a wireguard-go on its way out, for whatever reason: it closes its TUN before its socket."""
        try:
            command = Path(f"/proc/{self.pid}/comm").read_text().rstrip()
        except (FileNotFoundError, ProcessLookupError):
            return True
        names = (program.NAME, Path(configured).name[:_COMM_LENGTH])
        return command in names and self.link() is None

    def link(self) -> str | None:
        """The present name of the TUN link that it serves, empty when that is deleted, None when it serves none."""
        with suppress(FileNotFoundError, ProcessLookupError):  # at its end
            for descriptor in Path(f"/proc/{self.pid}/fd").iterdir():
                with suppress(FileNotFoundError):
                    if descriptor.readlink() == _TUN:
                        info = Path(f"/proc/{self.pid}/fdinfo/{descriptor.name}").read_text()
                        return info.partition("iff:")[2].partition("\n")[0].strip()
        return None


def _same_link(one: str, other: str) -> bool:
    """Whether two names are one link's, of which the second may be an alternative name."""
    with suppress(OSError):
        return one == other or socket.if_nametoindex(one) == socket.if_nametoindex(other)
    return False


def process_behind(name: str) -> Process | None:
    """The process that listens on the socket of `name`."""
    try:
        with connect(name) as connection:
            return Process(peer_process(connection), name)
    except (FileNotFoundError, ConnectionRefusedError, ProcessLookupError):
        return None


def peer_process(connection: socket.socket) -> int:
    """The pid of the process at the other end of a connection."""
    return int(_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[0])


def start(name: str, configured: str) -> None:
    """Start the process of a new link and return once it listens.  configured: see `program.choose`."""
    SOCKETS.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _output_file() as output:
        process = _spawn(name, configured, output)
        with process:
            deadline = time.monotonic() + _START_DEADLINE
            while True:
                with suppress(FileNotFoundError, ConnectionRefusedError), connect(name):
                    return
                if process.ended(_POLL):
                    raise _start_failure(name, 0, output, configured)
                if time.monotonic() > deadline:
                    process.end()
                    raise _start_failure(name, ETIMEDOUT, output, configured)


def _spawn(name: str, configured: str, output: IO[bytes]) -> Process:
    """A shell starts it in the background and exits: so it belongs to init, in a session of its own."""
    path = program.choose(configured)
    if not path:
        raise MechanismError("create WireGuard device", name, ENOENT, program.missing(configured))
    try:
        shell = subprocess.run(
            ["/bin/sh", "-c", '"$0" "$1" >&2 & echo $!', path, name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            cwd="/",
            # In the foreground it is itself what SO_PEERCRED names, and does not print that the kernel can do better.
            env=os.environ | {"LOG_LEVEL": "error", "WG_PROCESS_FOREGROUND": "1"},
            start_new_session=True,
            check=False,
        )
    except OSError as error:
        why = REMEDY if error.errno == EAGAIN else f"run {path} by /bin/sh"
        raise MechanismError("create WireGuard device", name, error.errno or 0, why) from error
    if shell.returncode:
        raise _start_failure(name, 0, output, configured)
    try:
        return Process(int(shell.stdout), name)
    except ProcessLookupError as error:
        raise _start_failure(name, 0, output, configured) from error


def _start_failure(name: str, errno: int, output: IO[bytes], configured: str) -> MechanismError:
    text = os.pread(output.fileno(), _OUTPUT_KEPT, 0).rstrip(b"\0").decode(errors="replace")
    # What Go prints when it crashes goes on with the stack of every thread.
    words = takewhile(lambda line: not line.startswith(_STACKS), text.splitlines())
    return MechanismError(
        "create WireGuard device", name, errno, missing(configured) or " ".join(" ".join(words).split())
    )


def _output_file() -> IO[bytes]:
    """A file in memory that cannot grow: it takes the first words of the process and nothing of what it logs later."""
    descriptor = os.memfd_create(program.NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, _OUTPUT_KEPT)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    return os.fdopen(descriptor, "rb")


def remove_stale_sockets() -> None:
    """Remove sockets named as those of our devices that nobody serves: what a killed process leaves."""
    for path in SOCKETS.glob(f"{PREFIX}*.sock"):
        with reported("delete", path.stem):
            with suppress(FileNotFoundError, ConnectionRefusedError), connect(path.stem):
                continue
            path.unlink(missing_ok=True)


def socket_path(name: str) -> Path:
    return SOCKETS / f"{name}.sock"


def connect(name: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(ANSWER_DEADLINE)
        connection.connect(str(socket_path(name)))
    except BaseException:
        connection.close()
        raise
    return connection


def rename_socket(old: str, new: str) -> None:
    """Make the socket of the link that was called `old` reachable as that of `new`, and as no other."""
    share_socket(old, new)
    fault.point("wireguard:renamed")
    if new != old and socket_path(old).is_symlink():
        socket_path(old).unlink()


def share_socket(old: str, new: str) -> None:
    """Make the socket of the link `old` reachable as that of `new` too; fine when it is reachable only so."""
    if not socket_path(old).exists():
        return
    served = socket_path(old).resolve()
    path = socket_path(new)
    if path.resolve() != served:
        with suppress(FileNotFoundError, ConnectionRefusedError), connect(new):
            raise MechanismError("rename WireGuard device", old, EEXIST, f"{path} serves another link")
        path.unlink(missing_ok=True)
        fault.point("wireguard:share")
        path.symlink_to(served.name)
