"""WireGuard in the kernel, by generic netlink.

Owns: the WireGuard link's making and end, and the dialogue about its configuration.  Must not know: the layout of
WireGuard's messages (`proto.wgnl`), addresses and MTU of the link (`link`).

A socket is opened for each call: it belongs to the network namespace of the thread that opens it, and to no other
thread.
"""

import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from errno import EBUSY, EEXIST, EINVAL, ENODEV, ENOENT, EPROTO, ETIMEDOUT
from typing import Self

from overlayd import fault
from overlayd.errors import MechanismError, ProtocolError
from overlayd.linux.wireguard import Activity, DeviceState, peer_changes
from overlayd.model.objects import Device, Step
from overlayd.proto import wgnl
from overlayd.proto.wireguard import PeerChange

# linux/netlink.h
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP_INTR = 0x1, 0x4, 0x10
_NLM_F_EXCL, _NLM_F_CREATE, _NLM_F_DUMP, _NLM_F_ACK_TLVS = 0x200, 0x400, 0x300, 0x200
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 270, 10, 11
_NLMSGERR_ATTR_MSG = 1
# linux/genetlink.h
_NETLINK_GENERIC = 16
_GENL_ID_CTRL, _CTRL_CMD_GETFAMILY = 16, 3
_CTRL_ATTR_FAMILY_ID, _CTRL_ATTR_FAMILY_NAME = 1, 2
# linux/rtnetlink.h, linux/if_link.h
_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK = 16, 17, 18
_IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_INFO_KIND = 3, 18, 1
_KIND = "wireguard"

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_GENERIC_HEADER = struct.Struct("=BBxx")  # struct genlmsghdr: command, version
_ANY_LINK = bytes(16)  # struct ifinfomsg that leaves the choice of the link to the attributes
_ERROR = struct.Struct("=i")  # struct nlmsgerr's first field; the header it answers follows

# Our own constants.
_MESSAGE = 32 * 1024  # bytes of peers in one message: half of what a nest can hold, some 250 peers
_READ = 64 * 1024  # bytes of one read; the kernel fills at most 32 KiB at once
_DUMP_TRIES = 16  # a dump that a change interrupts is read again; each takes milliseconds
_SILENCE = 10.0  # seconds without an answer; the kernel answers before the send returns


class Kernel:
    """Devices of the kernel's own.  The contract is `wireguard.Backend`'s."""

    name = "kernel"

    def __init__(self) -> None:
        # Whether this kernel can drop one allowed IP (since Linux 6.16); it says so when it is first asked to.
        self._drops = True

    @staticmethod
    def missing() -> str:
        try:
            with _Netlink(_NETLINK_GENERIC) as generic:
                _family(generic)
        except OSError as error:
            return str(error.strerror)
        return ""

    def create(self, device: Device) -> None:
        with _reported("create", device.name), _Netlink(socket.NETLINK_ROUTE) as route:
            made = not _is_link(route, device.name)
            if made:
                kind = wgnl.nest(_IFLA_LINKINFO, wgnl.name_attribute(_IFLA_INFO_KIND, _KIND))
                body = _ANY_LINK + wgnl.name_attribute(_IFLA_IFNAME, device.name) + kind
                fault.point("wireguard:start")
                route.request(_RTM_NEWLINK, _NLM_F_CREATE | _NLM_F_EXCL, body)
        try:
            fault.point("wireguard:started")
            shown = self.read(device.name)
            self._set_device(device, key=shown.private_key, port=shown.listen_port)
        except BaseException:
            if made:
                self.delete(device.name)
            raise

    def add_name(self, old: str, new: str) -> None:
        """The link is the device: its name is all there is."""

    def configure(self, have: Device, want: Device) -> None:
        self._set_device(want, key=have.private_key, port=have.listen_port)

    def delete(self, name: str) -> None:
        with _reported("delete", name), _Netlink(socket.NETLINK_ROUTE) as route:
            if _is_link(route, name):
                fault.point("wireguard:end")
                route.request(_RTM_DELLINK, 0, _ANY_LINK + wgnl.name_attribute(_IFLA_IFNAME, name))

    def set_peers(self, device: str, steps: Sequence[Step]) -> None:
        changes = peer_changes(steps, drops=self._drops)
        if not changes:
            return
        with _reported("set peers of", device), _Netlink(_NETLINK_GENERIC) as generic:
            try:
                _send_peers(generic, device, changes)
            except OSError as error:
                if error.errno != EINVAL or not any(change.drop for change in changes):
                    raise
                self._drops = False
                _send_peers(generic, device, peer_changes(steps, drops=False))

    def read(self, device: str) -> DeviceState:
        with _reported("read", device):
            return wgnl.parse_device(_dump(device))

    def activity(self, device: str) -> dict[bytes, Activity]:
        with _reported("read", device):
            return wgnl.parse_activity(_dump(device))

    def end_if_silent(self, device: str) -> int:
        """The kernel answers."""
        return 0

    def alive(self, device: str) -> bool:
        with suppress(MechanismError), _reported("find", device), _Netlink(socket.NETLINK_ROUTE) as route:
            return _is_link(route, device)
        return False

    def _set_device(self, device: Device, key: bytes, port: int) -> None:
        """Send what differs only."""
        new_key = device.private_key if device.private_key != key else None
        new_port = device.listen_port if device.listen_port != port else None
        if new_key is not None or new_port is not None:
            with _reported("configure", device.name), _Netlink(_NETLINK_GENERIC) as generic:
                fault.point("wireguard:configure")
                generic.request(_family(generic), 0, wgnl.encode_device(device.name, new_key, new_port))


@contextmanager
def _reported(operation: str, name: str) -> Iterator[None]:
    """What goes wrong inside `with` becomes a MechanismError about the device."""
    operation = f"{operation} WireGuard device"
    try:
        yield
    except OSError as error:
        detail = error.strerror if error.strerror != os.strerror(error.errno or 0) else ""
        raise MechanismError(operation, name, error.errno or ETIMEDOUT, detail or "") from error
    except ProtocolError as error:
        raise MechanismError(operation, name, EPROTO, str(error)) from error
    except ValueError as error:
        raise MechanismError(operation, name, EINVAL, str(error)) from error


class _Netlink:
    """A netlink socket for one request after the other.  Its methods raise OSError when the kernel refuses."""

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.settimeout(_SILENCE)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)  # an error says why
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)  # and does not repeat the request
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def request(self, kind: int, flags: int, body: bytes) -> list[bytes]:
        """Send one message; the bodies of its answers, once it is acknowledged."""
        answers, _ = self._exchange(kind, _NLM_F_REQUEST | _NLM_F_ACK | flags, body)
        return answers

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """The bodies of a dump that no change has interrupted."""
        for _ in range(_DUMP_TRIES):
            answers, interrupted = self._exchange(kind, _NLM_F_REQUEST | _NLM_F_DUMP, body)
            if not interrupted:
                return answers
        raise OSError(EBUSY, f"changed during each of {_DUMP_TRIES} dumps")

    def _exchange(self, kind: int, flags: int, body: bytes) -> tuple[list[bytes], bool]:
        self._sequence += 1
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0) + body)
        answers: list[bytes] = []
        interrupted = False
        while True:
            for answer, marks, payload in self._receive():
                interrupted |= bool(marks & _NLM_F_DUMP_INTR)
                if answer in (_NLMSG_ERROR, _NLMSG_DONE):
                    _check(marks, payload)
                    return answers, interrupted
                answers.append(payload)

    def _receive(self) -> Iterator[tuple[int, int, bytes]]:
        """Type, flags and body of each message of one read that answers the last request."""
        data = self._socket.recv(_READ)
        offset = 0
        while offset < len(data):
            if len(data) - offset < _HEADER.size:
                raise ProtocolError("netlink: a message is cut short")
            length, answer, flags, sequence, _ = _HEADER.unpack_from(data, offset)
            if not _HEADER.size <= length <= len(data) - offset:
                raise ProtocolError("netlink: a message is cut short")
            if sequence == self._sequence:
                yield answer, flags, data[offset + _HEADER.size : offset + length]
            offset += length + -length % 4


def _check(flags: int, payload: bytes) -> None:
    """Raise OSError when the end of an answer is an error, with the kernel's own words if it has any."""
    (number,) = _ERROR.unpack_from(payload)
    if number == 0:
        return
    reason = os.strerror(-number)
    if flags & _NLM_F_ACK_TLVS:
        for kind, start, end in wgnl.attributes(payload, _ERROR.size + _HEADER.size, len(payload)):
            if kind == _NLMSGERR_ATTR_MSG:
                reason = payload[start:end].rstrip(b"\0").decode(errors="replace")
    raise OSError(-number, reason)


def _family(generic: _Netlink) -> int:
    """The number that the kernel has given to WireGuard; asking for it loads the module."""
    body = _GENERIC_HEADER.pack(_CTRL_CMD_GETFAMILY, 1) + wgnl.name_attribute(_CTRL_ATTR_FAMILY_NAME, wgnl.FAMILY)
    try:
        answers = generic.request(_GENL_ID_CTRL, 0, body)
    except OSError as error:
        if error.errno != ENOENT:
            raise
        raise OSError(
            ENOENT, f"no generic netlink family {wgnl.FAMILY} in this kernel (load the module wireguard)"
        ) from error
    for answer in answers:
        for kind, start, end in wgnl.attributes(answer, _GENERIC_HEADER.size, len(answer)):
            if kind == _CTRL_ATTR_FAMILY_ID:
                return int.from_bytes(answer[start:end], sys.byteorder)
    raise ProtocolError("generic netlink: a family without a number")


def _is_link(route: _Netlink, name: str) -> bool:
    """Whether a WireGuard link of that name exists.  Raises OSError when it is of another kind."""
    try:
        (answer,) = route.request(_RTM_GETLINK, 0, _ANY_LINK + wgnl.name_attribute(_IFLA_IFNAME, name))
    except OSError as error:
        if error.errno == ENODEV:
            return False
        raise
    for kind, start, end in wgnl.attributes(answer, len(_ANY_LINK), len(answer)):
        if kind == _IFLA_LINKINFO:
            for inner, first, last in wgnl.attributes(answer, start, end):
                if inner == _IFLA_INFO_KIND and answer[first:last] == _KIND.encode() + b"\0":
                    return True
    raise OSError(EEXIST, f"a link of another kind than {_KIND}")


def _send_peers(generic: _Netlink, device: str, changes: Sequence[PeerChange]) -> None:
    family = _family(generic)
    for message in wgnl.encode_peers(device, changes, _MESSAGE):
        fault.point("wireguard:peers")
        generic.request(family, 0, message)


def _dump(device: str) -> list[bytes]:
    with _Netlink(_NETLINK_GENERIC) as generic:
        return generic.dump(_family(generic), wgnl.encode_get(device))
