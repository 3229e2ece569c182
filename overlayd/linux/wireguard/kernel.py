"""WireGuard in the kernel, by generic netlink.

Owns: the WireGuard link's making and end, and the dialogue about its configuration.  Must not know: the layout of
WireGuard's messages (`proto.wgnl`), addresses and MTU of the link (`link`).

A socket is opened for each call: it belongs to the network namespace of the thread that opens it, and to no other
thread.
"""

import os
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from errno import EEXIST, EINVAL, ENOENT, EPROTO
from typing import Literal

from overlayd import fault
from overlayd.errors import MechanismError, ProtocolError
from overlayd.linux import rtnetlink as rt
from overlayd.linux.link import delete_request, find_link
from overlayd.linux.netlink import NETLINK_GENERIC, Netlink, Request
from overlayd.linux.wireguard.backend import peer_changes
from overlayd.model.objects import Device, Step
from overlayd.proto import wgnl
from overlayd.proto.netlink import NLM_F_CREATE, NLM_F_EXCL, attributes, nested, text
from overlayd.proto.wireguard import Activity, DeviceState, Own, PeerChange

# linux/genetlink.h
_GENL_ID_CTRL, _CTRL_CMD_GETFAMILY = 16, 3
_CTRL_ATTR_FAMILY_ID, _CTRL_ATTR_FAMILY_NAME = 1, 2
_GENERIC_HEADER = struct.Struct("=BBxx")  # struct genlmsghdr: command, version

_KIND = "wireguard"  # as rtnetlink calls the links

# Our own constant.
_MESSAGE = 32 * 1024  # bytes of peers in one message: half of what a nest can hold, some 250 peers


class Kernel:
    """Devices of the kernel's own.  The contract is `wireguard.Backend`'s."""

    name: Literal["kernel"] = "kernel"

    def __init__(self) -> None:
        # Whether this kernel can drop one allowed IP (since Linux 6.16); it says so when it is first asked to.
        self._drops = True

    def missing(self) -> str:
        try:
            with Netlink(NETLINK_GENERIC) as generic:
                _family(generic)
        except MechanismError as error:
            return error.detail or str(error)
        return ""

    def version(self, device: str) -> str:
        return os.uname().release

    def installed(self) -> str:
        return os.uname().release

    def is_current(self, device: str) -> bool:
        return True

    def create(self, device: Device) -> None:
        with Netlink() as route:
            made = not _is_link(route, device.name)
            if made:
                kind = nested(rt.IFLA_LINKINFO, text(rt.IFLA_INFO_KIND, _KIND))
                body = rt.link_body(text(rt.IFLA_IFNAME, device.name), kind)
                flags = NLM_F_CREATE | NLM_F_EXCL
                route.transact([Request("create WireGuard device", device.name, rt.RTM_NEWLINK, flags, body)])
        try:
            fault.point("wireguard:started")
            shown = self.read_own(device.name)
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
        with Netlink() as route:
            if _is_link(route, name):
                route.transact([delete_request(name)])

    def set_peers(self, device: str, steps: Sequence[Step]) -> None:
        changes = peer_changes(steps, drops=self._drops)
        if not changes:
            return
        with _reported("set peers of", device), Netlink(NETLINK_GENERIC) as generic:
            try:
                _send_peers(generic, device, changes)
            except MechanismError as error:
                if error.errno != EINVAL or not any(change.drop for change in changes):
                    raise
                self._drops = False
                _send_peers(generic, device, peer_changes(steps, drops=False))

    def read(self, device: str) -> DeviceState:
        with _reported("read", device):
            return wgnl.parse_device(_dump(device))

    def read_own(self, device: str) -> Own:
        with _reported("read", device):
            return wgnl.parse_own(_dump(device))

    def activity(self, device: str) -> dict[bytes, Activity]:
        with _reported("read", device):
            return wgnl.parse_activity(_dump(device))

    def end_if_silent(self, device: str) -> int:
        """The kernel answers."""
        return 0

    def alive(self, device: str) -> bool:
        with suppress(MechanismError), Netlink() as route:
            return _is_link(route, device)
        return False

    def serves(self, name: str, link: str) -> bool:
        """The kernel goes by the link, whatever that is called."""
        return name == link and self.alive(link)

    def _set_device(self, device: Device, key: bytes, port: int) -> None:
        """Send what differs only."""
        new_key = device.private_key if device.private_key != key else None
        new_port = device.listen_port if device.listen_port != port else None
        if new_key is not None or new_port is not None:
            with Netlink(NETLINK_GENERIC) as generic:
                body = wgnl.encode_device(device.name, new_key, new_port)
                fault.point("wireguard:configure")
                generic.transact([Request("configure WireGuard device", device.name, _family(generic), 0, body)])


@contextmanager
def _reported(operation: str, name: str) -> Iterator[None]:
    """What cannot be said to or read from the device inside `with` becomes a MechanismError about it."""
    operation = f"{operation} WireGuard device"
    try:
        yield
    except ProtocolError as error:
        raise MechanismError(operation, name, EPROTO, str(error)) from error
    except ValueError as error:
        raise MechanismError(operation, name, EINVAL, str(error)) from error


def _family(generic: Netlink) -> int:
    """The number that the kernel has given to WireGuard; asking for it loads the module."""
    body = _GENERIC_HEADER.pack(_CTRL_CMD_GETFAMILY, 1) + text(_CTRL_ATTR_FAMILY_NAME, wgnl.FAMILY)
    operation = "find generic netlink family"
    try:
        (answer,) = generic.transact([Request(operation, wgnl.FAMILY, _GENL_ID_CTRL, 0, body)])
    except MechanismError as error:
        if error.errno != ENOENT:
            raise
        lacking = f"no generic netlink family {wgnl.FAMILY} in this kernel (load the module wireguard)"
        raise MechanismError(operation, wgnl.FAMILY, ENOENT, lacking) from error
    return int.from_bytes(dict(attributes(answer[_GENERIC_HEADER.size :]))[_CTRL_ATTR_FAMILY_ID], sys.byteorder)


def _is_link(route: Netlink, name: str) -> bool:
    """Whether a WireGuard link of that name exists; MechanismError, errno EEXIST, when it is of another kind."""
    link = find_link(route, name)
    if link is not None and link.kind != _KIND:
        raise MechanismError("find WireGuard device", name, EEXIST, f"a link of another kind than {_KIND}")
    return link is not None


def _send_peers(generic: Netlink, device: str, changes: Sequence[PeerChange]) -> None:
    family = _family(generic)
    for message in wgnl.encode_peers(device, changes, _MESSAGE):
        fault.point("wireguard:peers")
        generic.transact([Request("set peers of WireGuard device", device, family, 0, message)])


def _dump(device: str) -> list[memoryview]:
    with Netlink(NETLINK_GENERIC) as generic:
        return generic.dump("read WireGuard device", _family(generic), wgnl.encode_get(device), device)
