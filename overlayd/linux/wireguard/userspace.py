"""WireGuard in user space: one wireguard-go process a device, driven over its Unix socket.

Owns: start, adoption and end of those processes, their sockets in /var/run/wireguard, and the dialogue on them.  Must
not know: the text of the dialogue (`proto.uapi`), addresses and MTU of the link (`link`).

The process is no child of ours and outlives us.  Its socket is named after the link as it was called at the start,
and the process ends itself when that file goes; so after a rename the new name is a symbolic link to it.
"""

import ctypes
import fcntl
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from errno import EADDRINUSE, ECONNREFUSED, ECONNRESET, EEXIST, ENAMETOOLONG, ENOENT, EPIPE, EPROTO, ETIMEDOUT
from ipaddress import IPv4Network
from pathlib import Path
from typing import IO, Self

from overlayd import fault
from overlayd.errors import MechanismError, ProtocolError
from overlayd.linux.wireguard.backend import Activity, DeviceState, peer_changes, udp_port_is_free
from overlayd.model.names import PREFIX
from overlayd.model.objects import Device, Step
from overlayd.proto import uapi
from overlayd.proto.wireguard import KEY_SIZE, PeerChange

PROGRAM = "wireguard-go"
SOCKETS = Path("/var/run/wireguard")
_TUN = Path("/dev/net/tun")
_IFNAMSIZ = 16  # linux/if.h, with the terminating zero
# What a dialogue with a process ends in that ends: EPROTO is an answer cut short.
_HUNG_UP = (ECONNREFUSED, ECONNRESET, ENOENT, EPIPE, EPROTO)
_UCRED = struct.Struct("iII")  # struct ucred, unix(7)

_PIDFD_GETFD = 438  # asm-generic/unistd.h, Linux 5.6
_SOL_NETLINK, _NETLINK_NO_ENOBUFS = 270, 5  # linux/socket.h, linux/netlink.h
_LIBC = ctypes.CDLL(None, use_errno=True)

# Our own constants.
_START_DEADLINE = 5.0  # seconds until the process answers; it takes 20 ms on an idle machine
_END_DEADLINE = 2.0  # seconds between SIGTERM and SIGKILL; it takes 10 ms
_ANSWER_DEADLINE = 5.0  # seconds for one operation and its whole answer; the longest, a batch of peers, takes 0.2 s
_POLL = 0.002  # seconds between two looks at a process that starts
_BATCH = 128 * 1024  # bytes of one set operation: some 500 peers, in which no other operation gets its turn
_OUTPUT_KEPT = 4096  # bytes of the process's output, for the message when it does not come up
_RECEIVE = 256 * 1024  # bytes asked of the socket at once
_ANY_NETWORK = IPv4Network("0.0.0.0/0")


class Userspace:
    """Devices served by wireguard-go.  The contract is `wireguard.Backend`'s."""

    name = "userspace"

    def __init__(self) -> None:
        # Whether the process behind a device can drop one allowed IP; asked when it is first needed.
        self._drops: dict[str, bool] = {}
        self._readers: dict[str, uapi.ActivityReader] = {}
        # Devices that did not answer the last time: until `activity` hears of them again nobody else waits for them.
        self._silent: set[str] = set()

    @staticmethod
    def missing() -> str:
        if shutil.which(PROGRAM) is None:
            return f"{PROGRAM} is not in PATH"
        if not _TUN.exists():
            return f"{_TUN} does not exist (load the module tun, or pass the device to the container)"
        return ""

    def create(self, device: Device) -> None:
        if len(device.name.encode()) >= _IFNAMSIZ:
            raise MechanismError("create WireGuard device", device.name, ENAMETOOLONG)
        if self.alive(device.name):
            try:
                self._take_up(device)
                return
            except MechanismError as error:
                if error.errno not in _HUNG_UP or self.alive(device.name):
                    raise  # else it was on its way out, and there is nothing to take up
        self.delete(device.name)
        if _socket(device.name).exists():
            raise MechanismError("create WireGuard device", device.name, EEXIST, "its socket serves another link")
        with _reported("create", device.name):
            fault.point("wireguard:start")
            _start(device.name)
        try:
            self._take_up(device)
        except BaseException:
            self.delete(device.name)
            raise

    def add_name(self, old: str, new: str) -> None:
        with _reported("rename", old):
            _share_socket(old, new)

    def configure(self, have: Device, want: Device) -> None:
        with _reported("rename", have.name):
            _rename_socket(have.name, want.name)
        self._forget(have.name)
        try:
            # What is there, and not what should be: after a failure half-way only the device knows.
            shown = self.read(want.name)
            self._set_device(want, key=shown.private_key, port=shown.listen_port)
        except BaseException:
            _rename_socket(want.name, have.name)
            raise

    def delete(self, name: str) -> None:
        self._forget(name)
        with _reported("delete", name):
            process = _process_behind(name)
            if process is not None:
                with process:
                    if not process.serves(name) and not process.is_ending():
                        return
                    fault.point("wireguard:end")
                    process.end()
            fault.point("wireguard:ended")
            served = _socket(name).resolve()
            for path in (path for path in SOCKETS.glob("*.sock") if path.resolve() == served):
                path.unlink(missing_ok=True)

    def set_peers(self, device: str, steps: Sequence[Step]) -> None:
        changes = peer_changes(steps, drops=True)
        if any(change.drop for change in changes) and not self._can_drop(device):
            changes = peer_changes(steps, drops=False)
        if changes:
            with self._dialogue("set peers of", device) as dialogue:
                for operation in uapi.encode_peers(changes, _BATCH):
                    fault.point("wireguard:peers")
                    dialogue.ask(operation)

    def read(self, device: str) -> DeviceState:
        with self._dialogue("read", device) as dialogue:
            return uapi.parse_device(dialogue.ask(uapi.GET))

    def activity(self, device: str) -> dict[bytes, Activity]:
        with self._dialogue("read", device, patient=True) as dialogue:
            lines = dialogue.ask(uapi.GET)
            self._silent.discard(device)
            return self._readers.setdefault(device, uapi.ActivityReader()).read(lines)

    def end_if_silent(self, device: str) -> int:
        with _reported("end", device), _connect(device) as connection:
            try:
                _exchange(connection, uapi.GET)
            except ProtocolError:
                return 0  # an answer, if a bad one
            except TimeoutError:
                # It is the one at the other end that is silent, whoever serves the name by now.
                with _Process(_peer_process(connection), device) as process:
                    if process.serves(device):
                        process.end()
                        return process.pid
        return 0

    def alive(self, device: str) -> bool:
        with suppress(OSError), _connect(device):
            return bool(socket.if_nametoindex(device))
        return False

    def _take_up(self, device: Device) -> None:
        """Give the process that serves a device what it lacks of its key and port."""
        fault.point("wireguard:started")
        shown = self.read(device.name)
        self._set_device(device, key=shown.private_key, port=shown.listen_port)
        with _reported("create", device.name):
            process = _process_behind(device.name)
            if process is not None:
                with process:
                    process.ignore_lost_news()

    def _set_device(self, device: Device, key: bytes, port: int) -> None:
        """Send what differs only: the same port again would close and open the UDP socket."""
        new_key = device.private_key if device.private_key != key else None
        new_port = device.listen_port if device.listen_port != port else None
        if new_port:
            _require_free(new_port, device.name)
        if new_key is not None or new_port is not None:
            with self._dialogue("configure", device.name) as dialogue:
                fault.point("wireguard:configure")
                dialogue.ask(uapi.encode_device(new_key, new_port))

    def _can_drop(self, device: str) -> bool:
        """Whether `allowed_ip=-CIDR` is understood, tried on a peer that does not exist and is not created."""
        if device not in self._drops:
            nobody = PeerChange(os.urandom(KEY_SIZE), update_only=True, drop=(_ANY_NETWORK,))
            with self._dialogue("probe", device) as dialogue:
                errno, _ = dialogue.answer(b"".join(uapi.encode_peers([nobody], _BATCH)))
            self._drops[device] = errno == 0
        return self._drops[device]

    def _forget(self, name: str) -> None:
        """Another process may serve the name from now on."""
        self._drops.pop(name, None)
        self._readers.pop(name, None)
        self._silent.discard(name)

    def _dialogue(self, operation: str, device: str, *, patient: bool = False) -> "_Dialogue":
        return _Dialogue(f"{operation} WireGuard device", device, self._silent, patient)


@contextmanager
def _reported(operation: str, name: str) -> Iterator[None]:
    """What the system refuses inside `with` becomes a MechanismError about the device."""
    try:
        yield
    except OSError as error:
        errno = ETIMEDOUT if isinstance(error, TimeoutError) else error.errno or 0
        raise MechanismError(f"{operation} WireGuard device", name, errno, str(error.filename or "")) from error


class _Dialogue:
    """A connection to a device's process.  Inside `with`, what goes wrong becomes a MechanismError about the device.

    silent: the devices that only who is `patient` asks; one that does not answer is added.
    """

    def __init__(self, operation: str, device: str, silent: set[str], patient: bool) -> None:
        self._operation = operation
        self._device = device
        self._silent = silent
        self._patient = patient

    def __enter__(self) -> Self:
        try:
            if self._device in self._silent and not self._patient:
                raise TimeoutError
            self._socket = _connect(self._device)
        except OSError as error:
            raise self._failure(error) from error
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._socket.close()
        if isinstance(error, OSError | ProtocolError):
            raise self._failure(error) from error

    def answer(self, operation: bytes) -> tuple[int, bytes]:
        """Error number and lines of the response.  After an error the connection is of no more use."""
        return _exchange(self._socket, operation)

    def ask(self, operation: bytes) -> bytes:
        """The lines of the response to an operation that succeeds."""
        errno, lines = self.answer(operation)
        if errno:
            raise MechanismError(self._operation, self._device, errno, f"refused by {PROGRAM}")
        return lines

    def _failure(self, error: OSError | ProtocolError) -> MechanismError:
        if isinstance(error, ProtocolError):
            return MechanismError(self._operation, self._device, EPROTO, str(error))
        if isinstance(error, TimeoutError):
            self._silent.add(self._device)
            return MechanismError(self._operation, self._device, ETIMEDOUT, f"{PROGRAM} does not answer")
        return MechanismError(
            self._operation, self._device, error.errno or 0, f"no {PROGRAM} on {_socket(self._device)}"
        )


def _exchange(connection: socket.socket, operation: bytes) -> tuple[int, bytes]:
    """Error number and lines of the response.  Raises TimeoutError when it is not there in time, ProtocolError when it
    is none.
    """
    deadline = time.monotonic() + _ANSWER_DEADLINE
    connection.sendall(operation)
    response = uapi.Response()
    while True:
        connection.settimeout(max(deadline - time.monotonic(), _POLL))
        data = connection.recv(_RECEIVE)
        if response.feed(data) or not data:
            return response.result()


class _Process:
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
        raise MechanismError(f"end {PROGRAM} of", self._name, ETIMEDOUT, f"process {self.pid} survives SIGKILL")

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

    def is_ending(self) -> bool:
        """Whether it is a wireguard-go on its way out, for whatever reason: it closes its TUN before its socket."""
        try:
            program = Path(f"/proc/{self.pid}/comm").read_text().rstrip()
        except (FileNotFoundError, ProcessLookupError):
            return True
        return program == PROGRAM and self.link() is None

    def link(self) -> str | None:
        """The present name of the TUN link that it serves, empty when that is deleted, None when it serves none."""
        with suppress(FileNotFoundError, ProcessLookupError):  # at its end
            for descriptor in Path(f"/proc/{self.pid}/fd").iterdir():
                with suppress(FileNotFoundError):
                    if descriptor.readlink() == _TUN:
                        info = Path(f"/proc/{self.pid}/fdinfo/{descriptor.name}").read_text()
                        return info.partition("iff:")[2].partition("\n")[0].strip()
        return None


def _require_free(port: int, name: str) -> None:
    """Raise MechanismError when a UDP port is taken.

    wireguard-go opens the port when the link goes up, where nobody hears of a failure; and when the link is up, it
    closes the old port before it finds that it cannot have the new one.
    """
    if not udp_port_is_free(port):
        raise MechanismError("configure WireGuard device", name, EADDRINUSE, f"UDP port {port}")


def _same_link(one: str, other: str) -> bool:
    """Whether two names are one link's, of which the second may be an alternative name."""
    with suppress(OSError):
        return one == other or socket.if_nametoindex(one) == socket.if_nametoindex(other)
    return False


def _process_behind(name: str) -> _Process | None:
    """The process that listens on the socket of `name`."""
    try:
        with _connect(name) as connection:
            return _Process(_peer_process(connection), name)
    except (FileNotFoundError, ConnectionRefusedError, ProcessLookupError):
        return None


def _peer_process(connection: socket.socket) -> int:
    """The pid of the process at the other end of a connection."""
    return int(_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[0])


def _start(name: str) -> None:
    """Start the process of a new link and return once it listens."""
    SOCKETS.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _output_file() as output:
        process = _spawn(name, output)
        with process:
            deadline = time.monotonic() + _START_DEADLINE
            while True:
                with suppress(FileNotFoundError, ConnectionRefusedError), _connect(name):
                    return
                if process.ended(_POLL):
                    raise _start_failure(name, 0, output)
                if time.monotonic() > deadline:
                    process.end()
                    raise _start_failure(name, ETIMEDOUT, output)


def _spawn(name: str, output: IO[bytes]) -> _Process:
    """A shell starts it in the background and exits: so it belongs to init, in a session of its own."""
    program = shutil.which(PROGRAM)
    if program is None:
        raise MechanismError("create WireGuard device", name, ENOENT, f"{PROGRAM} is not in PATH")
    shell = subprocess.run(
        ["/bin/sh", "-c", '"$0" "$1" >&2 & echo $!', program, name],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=output,
        cwd="/",
        # In the foreground it is itself what SO_PEERCRED names, and does not print that the kernel can do it better.
        env=os.environ | {"LOG_LEVEL": "error", "WG_PROCESS_FOREGROUND": "1"},
        start_new_session=True,
        check=False,
    )
    if shell.returncode:
        raise _start_failure(name, 0, output)
    try:
        return _Process(int(shell.stdout), name)
    except ProcessLookupError as error:
        raise _start_failure(name, 0, output) from error


def _start_failure(name: str, errno: int, output: IO[bytes]) -> MechanismError:
    text = os.pread(output.fileno(), _OUTPUT_KEPT, 0).rstrip(b"\0").decode(errors="replace")
    missing = Userspace.missing()
    return MechanismError("create WireGuard device", name, errno, missing or " ".join(text.split()))


def _output_file() -> IO[bytes]:
    """A file in memory that cannot grow: it takes the first words of the process and nothing of what it logs later."""
    descriptor = os.memfd_create(PROGRAM, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, _OUTPUT_KEPT)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    return os.fdopen(descriptor, "rb")


def remove_stale_sockets() -> None:
    """Remove sockets named as those of our devices that nobody serves: what a killed process leaves."""
    for path in SOCKETS.glob(f"{PREFIX}*.sock"):
        with _reported("delete", path.stem):
            with suppress(FileNotFoundError, ConnectionRefusedError), _connect(path.stem):
                continue
            path.unlink(missing_ok=True)


def _socket(name: str) -> Path:
    return SOCKETS / f"{name}.sock"


def _connect(name: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(_ANSWER_DEADLINE)
        connection.connect(str(_socket(name)))
    except BaseException:
        connection.close()
        raise
    return connection


def _rename_socket(old: str, new: str) -> None:
    """Make the socket of the link that was called `old` reachable as that of `new`, and as no other."""
    _share_socket(old, new)
    fault.point("wireguard:renamed")
    if new != old and _socket(old).is_symlink():
        _socket(old).unlink()


def _share_socket(old: str, new: str) -> None:
    """Make the socket of the link `old` reachable as that of `new` too; fine when it is reachable only so."""
    if not _socket(old).exists():
        return
    served = _socket(old).resolve()
    path = _socket(new)
    if path.resolve() != served:
        with suppress(FileNotFoundError, ConnectionRefusedError), _connect(new):
            raise MechanismError("rename WireGuard device", old, EEXIST, f"{path} serves another link")
        path.unlink(missing_ok=True)
        fault.point("wireguard:share")
        path.symlink_to(served.name)
