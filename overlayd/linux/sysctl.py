"""Kernel parameters of the network namespace that the calling thread is in.

Owns: /proc/sys/net, or another place where it is mounted.  Must not know: which parameters matter to whom.  Source:
sysctl(5), Documentation/networking/ip-sysctl.rst.
"""

import os
from collections.abc import Iterator
from errno import EACCES, ENOENT, EPERM, EROFS
from pathlib import Path

from overlayd import fault
from overlayd.errors import MechanismError

DEFAULT_ROOT = "/proc/sys"

_root = Path(DEFAULT_ROOT)  # where all threads find the parameters; set once, by `mounted_at`


def mounted_at(root: str) -> None:
    """Take the parameters from another mount of /proc/sys: in a container that one is read-only.  MechanismError,
    errno ENOENT, when there are none.
    """
    global _root  # noqa: PLW0603 - the kernel has them once, and so have we
    if not Path(root, "net/ipv4").is_dir():
        raise MechanismError("find kernel parameters in", root, ENOENT, "there is no net/ipv4")
    _root = Path(root)


def read(name: str) -> str:
    """The value of `name`, its parts below "net" joined by "/" ("ipv4/conf/wg.0/forwarding"); raises MechanismError."""
    try:
        return (_root / "net" / name).read_text().strip()
    except OSError as error:
        raise MechanismError("read sysctl", f"net/{name}", error.errno or 0) from error


def is_writable(name: str) -> bool:
    """Whether `name` is there and may be set."""
    return os.access(f"{_root}/net/{name}", os.W_OK)


def read_if_there(name: str) -> str:
    """The same, "" when there is none: the kernel lacks the feature, or the link has gone."""
    try:
        return read(name)
    except MechanismError:
        return ""


def write(name: str, value: str) -> None:
    """Set `name` to `value` unless it has it: a read-only /proc/sys with the right values is fine; raises
    MechanismError.
    """
    if read(name) != value:
        put(name, value)


def put(name: str, value: str) -> None:
    """Set `name` to `value` without a look at what it is, at a fifth of the cost; raises MechanismError."""
    try:
        fault.point("sysctl")
        descriptor = os.open(path(name), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, value.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise refused(name, value, error.errno or 0) from error


def path(name: str) -> str:
    """Where `name` is."""
    return f"{_root}/net/{name}"


def refused(name: str, value: str, number: int) -> MechanismError:
    """The error when `name` could not be set to `value`, from its errno."""
    detail = f"it must be {value}"
    if number in (EROFS, EACCES, EPERM):
        detail += f": set it on the host beforehand, or let --proc-sys name a {DEFAULT_ROOT} that can be written"
    return MechanismError("set sysctl", f"net/{name}", number, detail)


def has_ipv6() -> bool:
    """Whether the kernel has IPv6 (it has not with ipv6.disable=1)."""
    return (_root / "net/ipv6").exists()


def links(family: str) -> Iterator[str]:
    """The names of the links that have parameters of a family ("ipv4", "ipv6")."""
    found = (each.name for each in sorted((_root / "net" / family / "conf").iterdir()))
    return (name for name in found if name not in ("all", "default"))
