"""Network namespaces of a laboratory.

Owns: making, entering and removing a named namespace, and a bridge in one.  Must not know: what a node or a container
is.
"""

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path

from lab.processes import run

DIRECTORY = Path("/run/netns")
BRIDGE_MAC = "02:00:00:00:00:fe"  # of every bridge, which are in namespaces of their own; 02: locally administered
CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000  # include/uapi/linux/sched.h
MS_BIND, MS_REC, MS_SLAVE = 0x1000, 0x4000, 0x80000  # include/uapi/linux/mount.h
MNT_DETACH = 2  # umount2(2)
SIOCSIFFLAGS, IFF_UP = 0x8914, 1  # netdevice(7)

_libc = ctypes.CDLL(None, use_errno=True)


def add(name: str) -> None:
    """Make the namespace, with its loopback up."""
    run(["ip", "netns", "add", name])
    with open_socket(DIRECTORY / name, kind=socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))


def ip(namespace: str, *commands: str) -> None:
    """Run commands of ip(8) in the namespace, by one process."""
    run(["ip", "-n", namespace, "-batch", "-"], stdin="\n".join(commands))


def write_sysctl(namespace: str, path: str, value: int) -> None:
    """Set /proc/sys/PATH, below net/, of the namespace."""
    with _entered(DIRECTORY / namespace):
        Path("/proc/sys", path).write_text(str(value))


def add_bridge(namespace: str, name: str, address: IPv4Interface | IPv6Interface, mtu: int = 1500) -> None:
    """Make a bridge, up.  Its hardware address is given to it: else it would take the lowest one of its ports, and each
    port that comes with a lower one would make the neighbours lose it until they ask again.
    """
    ip(
        namespace,
        f"link add name {name} address {BRIDGE_MAC} mtu {mtu} type bridge mcast_snooping 0",
        f"address add {address} dev {name}",
        f"link set dev {name} up",
    )


def delete(name: str) -> None:
    """Remove the namespace, and with it every link in it once no process lives there; a missing one is fine."""
    path = DIRECTORY / name
    _libc.umount2(bytes(path), MNT_DETACH)
    path.unlink(missing_ok=True)


def named(prefix: str) -> list[str]:
    """The names of the namespaces that start with `prefix`."""
    return sorted(entry.name for entry in DIRECTORY.glob(f"{prefix}*")) if DIRECTORY.is_dir() else []


def inode(name: str) -> int:
    """What identifies the namespace to the kernel, as in /proc/PID/ns/net."""
    return (DIRECTORY / name).stat().st_ino


def _check(failed: int) -> None:
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _enter(descriptor: int) -> None:
    _check(_libc.setns(descriptor, CLONE_NEWNET))


def _mount(source: str, target: str, kind: str | None, flags: int = 0) -> None:
    _check(_libc.mount(source.encode(), target.encode(), kind and kind.encode(), flags, None))


def enter(name: str, binds: Iterable[tuple[str, str]]) -> None:
    """Be in the namespace as a program is that `ip netns exec` has started, in a mount namespace with a matching /sys.
    binds: what is mounted over what in that.
    """
    with (DIRECTORY / name).open("rb") as target:
        _enter(target.fileno())
    _check(_libc.unshare(CLONE_NEWNS))
    _mount("none", "/", None, MS_REC | MS_SLAVE)
    _check(_libc.umount2(b"/sys", MNT_DETACH))
    _mount(name, "/sys", "sysfs")
    for place, over in binds:
        _mount(place, over, None, MS_BIND)


def open_socket(
    namespace: Path, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0
) -> socket.socket:
    """A socket of the namespace behind `namespace` (/run/netns/NAME, /proc/PID/ns/net), for use from anywhere.

    A socket stays in the namespace it was made in (network_namespaces(7)).
    """
    with _entered(namespace):
        return socket.socket(family, kind, protocol)


@contextmanager
def _entered(namespace: Path) -> Iterator[None]:
    """This thread is in the namespace within the block."""
    with Path("/proc/thread-self/ns/net").open("rb") as home, namespace.open("rb") as target:
        _enter(target.fileno())
        try:
            yield
        finally:
            _enter(home.fileno())
