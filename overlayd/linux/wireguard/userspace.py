"""WireGuard in user space: devices served by wireguard-go.

Owns: the dialogue on a device's Unix socket, and what a device that does not answer costs.  Must not know: the text of
the dialogue (`proto.uapi`), how the process is started and ended (`process`), addresses and MTU of the link (`link`).
"""

import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from errno import EADDRINUSE, ECONNREFUSED, ECONNRESET, EEXIST, ENAMETOOLONG, ENOENT, EPIPE, EPROTO, ETIMEDOUT
from ipaddress import IPv4Network
from secrets import token_bytes
from typing import Literal, Self

from overlayd import fault
from overlayd.errors import MechanismError, ProtocolError
from overlayd.keys import KEY_SIZE
from overlayd.linux.wireguard import process, program
from overlayd.linux.wireguard.backend import peer_changes, udp_port_is_free
from overlayd.model.objects import Device, Step
from overlayd.proto import uapi
from overlayd.proto.wireguard import Activity, DeviceState, Own, PeerChange

_IFNAMSIZ = 16  # linux/if.h, with the terminating zero
# What a dialogue with a process ends in that ends: EPROTO is an answer cut short.
_HUNG_UP = (ECONNREFUSED, ECONNRESET, ENOENT, EPIPE, EPROTO)

# Our own constants.
_BATCH = 128 * 1024  # bytes of one set operation: some 500 peers, in which no other operation gets its turn
_RECEIVE = 256 * 1024  # bytes of thousands of peers that are asked of the socket at once,
_SHORT = 4 * 1024  # and of an answer that says whether something was done
_LEAST = 0.002  # seconds that the end of an answer is waited for, however late it is
_ANY_NETWORK = IPv4Network("0.0.0.0/0")


class Userspace:
    """Devices served by wireguard-go.  The contract is `wireguard.Backend`'s."""

    name: Literal["userspace"] = "userspace"

    def __init__(self, program: str = "") -> None:
        """program: the path of the wireguard-go to use; empty: the newest in PATH."""
        self._program = program
        self._versions: dict[str, str] = {}  # of what serves each device
        # Whether the process behind a device can drop one allowed IP; asked when it is first needed.
        self._drops: dict[str, bool] = {}
        self._readers: dict[str, uapi.ActivityReader] = {}
        # Devices that did not answer the last time: until `activity` hears of them again nobody else waits for them.
        self._silent: set[str] = set()

    def missing(self) -> str:
        return process.missing(self._program)

    def version(self, device: str) -> str:
        return self._versions.get(device, "")

    def installed(self) -> str:
        path = program.choose(self._program)
        return program.version(path) if path else ""

    def is_current(self, device: str) -> bool:
        with process.reported("look at", device):
            serving = process.process_behind(device)
            if serving is None:
                return False
            with serving:
                return program.is_file(program.choose(self._program), serving.executable)

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
        if process.socket_path(device.name).exists():
            raise MechanismError("create WireGuard device", device.name, EEXIST, "its socket serves another link")
        with process.reported("create", device.name):
            fault.point("wireguard:start")
            process.start(device.name, self._program)
        try:
            self._take_up(device)
        except BaseException:
            self.delete(device.name)
            raise

    def add_name(self, old: str, new: str) -> None:
        with process.reported("rename", old):
            process.share_socket(old, new)

    def configure(self, have: Device, want: Device) -> None:
        with process.reported("rename", have.name):
            process.rename_socket(have.name, want.name)
        self._forget(have.name)
        try:
            # What is there, and not what should be: after a failure half-way only the device knows.
            shown = self.read_own(want.name)
            self._set_device(want, key=shown.private_key, port=shown.listen_port)
        except BaseException:
            process.rename_socket(want.name, have.name)
            raise

    def delete(self, name: str) -> None:
        with process.reported("delete", name):
            serving = process.process_behind(name)
            if serving is not None:
                with serving:
                    if not serving.serves(name) and not serving.is_ending(self._program):
                        return
                    fault.point("wireguard:end")
                    serving.end()
            self._forget(name)
            fault.point("wireguard:ended")
            served = process.socket_path(name).resolve()
            for path in (path for path in process.SOCKETS.glob("*.sock") if path.resolve() == served):
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
        return uapi.parse_device(self._shown(device))

    def read_own(self, device: str) -> Own:
        return uapi.parse_own(self._shown(device))

    def activity(self, device: str) -> dict[bytes, Activity]:
        with self._dialogue("read", device, patient=True) as dialogue:
            lines = dialogue.ask(uapi.GET)
            self._silent.discard(device)
            return self._readers.setdefault(device, uapi.ActivityReader()).read(lines)

    def end_if_silent(self, device: str) -> int:
        with process.reported("end", device), process.connect(device) as connection:
            try:
                _exchange(connection, uapi.GET)
            except ProtocolError:
                return 0  # an answer, if a bad one
            except TimeoutError:
                # It is the one at the other end that is silent, whoever serves the name by now.
                with process.Process(process.peer_process(connection), device) as silent:
                    if silent.serves(device):
                        silent.end()
                        return silent.pid
        return 0

    def alive(self, device: str) -> bool:
        with suppress(OSError), process.connect(device):
            return bool(socket.if_nametoindex(device))
        return False

    def serves(self, name: str, link: str) -> bool:
        with suppress(OSError):
            serving = process.process_behind(name)
            if serving is not None:
                with serving:
                    return serving.serves(link)
        return False

    def _shown(self, device: str) -> bytes:
        """What a device says of itself and its peers."""
        with self._dialogue("read", device) as dialogue:
            if device not in self._versions:
                self._versions[device] = dialogue.version()
            return dialogue.ask(uapi.GET)

    def _take_up(self, device: Device) -> None:
        """Give the process that serves a device what it lacks of its key and port."""
        fault.point("wireguard:started")
        self._versions.pop(device.name, None)
        shown = self.read_own(device.name)
        self._set_device(device, key=shown.private_key, port=shown.listen_port)
        with process.reported("create", device.name):
            serving = process.process_behind(device.name)
            if serving is not None:
                with serving:
                    serving.ignore_lost_news()

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
            nobody = PeerChange(token_bytes(KEY_SIZE), update_only=True, drop=(_ANY_NETWORK,))
            with self._dialogue("probe", device) as dialogue:
                errno, _ = dialogue.answer(b"".join(uapi.encode_peers([nobody], _BATCH)))
            self._drops[device] = errno == 0
        return self._drops[device]

    def _forget(self, name: str) -> None:
        """Forget what is known of the process that serves a name: another may from now on."""
        self._drops.pop(name, None)
        self._readers.pop(name, None)
        self._silent.discard(name)
        self._versions.pop(name, None)

    def _dialogue(self, operation: str, device: str, *, patient: bool = False) -> "_Dialogue":
        return _Dialogue(f"{operation} WireGuard device", device, self._silent, patient)


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
            self._socket = process.connect(self._device)
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
            raise MechanismError(self._operation, self._device, errno, f"refused by {program.NAME}")
        return lines

    def version(self) -> str:
        """The version of who is at the other end."""
        with suppress(ProcessLookupError), process.Process(process.peer_process(self._socket), self._device) as serving:
            return program.version(serving.executable)
        return ""

    def _failure(self, error: OSError | ProtocolError) -> MechanismError:
        if isinstance(error, ProtocolError):
            return MechanismError(self._operation, self._device, EPROTO, str(error))
        if isinstance(error, TimeoutError):
            self._silent.add(self._device)
            return MechanismError(self._operation, self._device, ETIMEDOUT, f"{program.NAME} does not answer")
        nobody = f"no {program.NAME} on {process.socket_path(self._device)}"
        return MechanismError(self._operation, self._device, error.errno or 0, nobody)


def _exchange(connection: socket.socket, operation: bytes) -> tuple[int, bytes]:
    """Ask, and return error number and lines of the response.  Raises TimeoutError when it is not there in time,
    ProtocolError when it is none.
    """
    deadline = time.monotonic() + process.ANSWER_DEADLINE
    connection.sendall(operation)
    response, most = uapi.Response(), _RECEIVE if operation == uapi.GET else _SHORT
    while True:
        connection.settimeout(max(deadline - time.monotonic(), _LEAST))
        data = connection.recv(most)
        if response.feed(data) or not data:
            return response.result()


def _require_free(port: int, name: str) -> None:
    """Raise MechanismError when a UDP port is taken.

    wireguard-go opens the port when the link goes up, where nobody hears of a failure; and when the link is up, it
    closes the old port before it finds that it cannot have the new one.
    """
    if not udp_port_is_free(port):
        raise MechanismError("configure WireGuard device", name, EADDRINUSE, f"UDP port {port}")
