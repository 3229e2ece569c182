"""What a WireGuard backend does, and what every one of them needs for it.

Owns: the contract, and how a difference between two peers becomes the smallest change of a device.  Must not know: how
a backend does it (`kernel`, `userspace`), which one is used (`choice`), or addresses, MTU, alias and group of a
device's link (`link`).
"""

import socket
from collections.abc import Iterable, Sequence
from errno import EADDRINUSE
from typing import Literal, Protocol

from overlayd.model.objects import Device, DevicePeer, Step
from overlayd.proto.wireguard import Activity, DeviceState, Own, PeerChange


class Backend(Protocol):
    """One way to have WireGuard devices.  Every method blocks, and raises MechanismError when the device says no.

    Methods may run in several threads at once for different devices.
    """

    @property
    def name(self) -> Literal["kernel", "userspace"]:
        """The preference that names it: "kernel" or "userspace"."""

    def missing(self) -> str:
        """What this machine lacks for the backend, for a person; empty when it can be used."""

    def version(self, device: str) -> str:
        """The version of what serves a device, as it was when the device was last made or read as a whole; empty when
        that is not known.  Does not block.
        """

    def installed(self) -> str:
        """The version that a device made now would have, empty when that is not known."""

    def is_current(self, device: str) -> bool:
        """Whether a device made now would be served by the same program as this one."""

    def create(self, device: Device) -> None:
        """Make the link with key and port, down and without addresses.

        A device of that name that is alive is adopted: it gets key and port and keeps its peers and its traffic.  On
        failure a link made here is gone again.
        """

    def add_name(self, old: str, new: str) -> None:
        """Let the device of link `old` be reached as `new` too, before its link is called so: were we to die between,
        nobody would be known to serve the link.
        """

    def configure(self, have: Device, want: Device) -> None:
        """Change key and port in place, as far as they differ.  The link is already called `want.name`."""

    def delete(self, name: str) -> None:
        """Remove the link and whatever serves it.  Nothing of that name is no error."""

    def set_peers(self, device: str, steps: Sequence[Step]) -> None:
        """Apply steps of DevicePeer, sending only what differs between a step's `have` and `want`.

        An endpoint that does not differ is not sent, so one to which the peer has roamed stays; one that becomes None
        stays too, for WireGuard cannot forget it.  An allowed IP goes to the peer that wants it, whatever the order
        of the steps.  On failure a part of the steps may have been applied.
        """

    def read(self, device: str) -> DeviceState:
        """Everything.  Costs tens of milliseconds for thousands of peers: for a start and an audit."""

    def read_own(self, device: str) -> Own:
        """Its key and port; the peers are not looked at."""

    def activity(self, device: str) -> dict[bytes, Activity]:
        """Per public key what traffic has changed, without the allowed IPs: for polling.

        Like every exchange it fails with errno ETIMEDOUT when the device does not answer within a few seconds; from
        then on other methods fail so at once, until this one has an answer.
        """

    def end_if_silent(self, device: str) -> int:
        """Ask the device once more, and end the process that serves it when that does not answer this time either: its
        link goes with it.  Returns the process's id, 0 when it was not ended.
        """

    def alive(self, device: str) -> bool:
        """Whether the link exists and something serves it.  Does not look at its configuration."""

    def serves(self, name: str, link: str) -> bool:
        """Whether what answers to the device `name` serves the link that is called `link` now: somebody renamed it."""


def peer_changes(steps: Iterable[Step], *, drops: bool) -> list[PeerChange]:
    """The smallest changes that make `steps`, which are of DevicePeer, in an order that suits moved allowed IPs.

    drops: whether the device can remove one allowed IP; where it cannot, a peer that loses some gets all the others
    again.
    """
    removed: list[PeerChange] = []
    narrowed: list[PeerChange] = []
    others: list[PeerChange] = []
    for step in steps:
        have, want = step.have, step.want
        assert isinstance(have, DevicePeer | None) and isinstance(want, DevicePeer | None)
        if want is None:
            if have is not None:
                removed.append(PeerChange(have.public_key, remove=True, update_only=True))
        elif have is None:
            others.append(_creation(want))
        elif have != want:
            change = _difference(have, want, drops)
            (narrowed if change.drop or change.replace_allowed_ips else others).append(change)
    return removed + narrowed + others


def _creation(want: DevicePeer) -> PeerChange:
    return PeerChange(
        want.public_key,
        endpoint=want.endpoint,
        keepalive=want.keepalive,
        replace_allowed_ips=True,
        add=tuple(want.allowed_ips),
    )


def _difference(have: DevicePeer, want: DevicePeer, drops: bool) -> PeerChange:
    lost = have.allowed_ips - want.allowed_ips
    replace = bool(lost) and not drops
    return PeerChange(
        want.public_key,
        update_only=True,
        endpoint=want.endpoint if want.endpoint != have.endpoint else None,
        keepalive=want.keepalive if want.keepalive != have.keepalive else None,
        replace_allowed_ips=replace,
        add=tuple(want.allowed_ips if replace else want.allowed_ips - have.allowed_ips),
        drop=tuple(lost) if drops else (),
    )


def udp_port_is_free(port: int) -> bool:
    """Whether a device could listen on the port, in both families that this machine has."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(("", port))
        except OSError as error:
            if error.errno == EADDRINUSE:  # a family that this machine lacks is no obstacle
                return False
    return True
