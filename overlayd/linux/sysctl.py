"""Kernel parameters of the network namespace that the calling thread is in.

Owns: /proc/sys/net.  Must not know: which parameters matter to whom.  Source: sysctl(5),
Documentation/networking/ip-sysctl.rst.
"""

from pathlib import Path

from overlayd import fault
from overlayd.errors import MechanismError

_ROOT = Path("/proc/sys/net")


def read(name: str) -> str:
    """The value of `name`, its parts below "net" joined by "/" ("ipv4/conf/wg.0/forwarding"); raises MechanismError."""
    try:
        return (_ROOT / name).read_text().strip()
    except OSError as error:
        raise MechanismError("read sysctl", f"net/{name}", error.errno or 0) from error


def write(name: str, value: str) -> None:
    """Set `name` to `value` unless it has it: a read-only /proc/sys with the right values is fine; raises
    MechanismError.
    """
    if read(name) == value:
        return
    try:
        fault.point("sysctl")
        (_ROOT / name).write_text(value)
    except OSError as error:
        raise MechanismError("set sysctl", f"net/{name}", error.errno or 0, f"it must be {value}") from error
