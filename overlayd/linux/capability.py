"""The capabilities of this process.

Owns: the bits of those that overlayd needs, which are held, and giving up all others.  Must not know: what each is
needed for.  Source: linux/capability.h, linux/prctl.h, capabilities(7).
"""

import ctypes
import os
from pathlib import Path

from overlayd.errors import MechanismError

BITS = {
    "CAP_CHOWN": 0,
    "CAP_NET_BIND_SERVICE": 10,
    "CAP_NET_ADMIN": 12,
    "CAP_NET_RAW": 13,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
}
_NEEDED = sum(1 << bit for bit in BITS.values())

_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4

_libc = ctypes.CDLL(None, use_errno=True)


def missing(*names: str) -> str:
    """The first of these capabilities that this process lacks; empty when it has all.  names: keys of BITS."""
    effective = _held("CapEff")
    return next((name for name in names if not effective >> BITS[name] & 1), "")


def give_up_others() -> None:
    """Keep of what this process may those of BITS that it has, for itself and for what it starts, which gains nothing
    from set-user-ID programs either.

    For the calling thread and those that it starts, so before any other.  The bounding set of a process without
    CAP_SETPCAP stays.  One that is not root's keeps its ambient set, without which what it starts could do nothing.
    Raises MechanismError.
    """
    keep = _held("CapPrm") & _NEEDED
    for bit in range(int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1):
        if not _NEEDED >> bit & 1 and _libc.prctl(_PR_CAPBSET_READ, bit, 0, 0, 0) == 1:
            _libc.prctl(_PR_CAPBSET_DROP, bit, 0, 0, 0)
    if os.geteuid() == 0:
        _require(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
    header = (ctypes.c_uint32 * 2)(_VERSION, 0)
    inheritable = _held("CapInh") & keep
    low, high = ([part >> shift & 0xFFFFFFFF for part in (keep, keep, inheritable)] for shift in (0, 32))
    _require(_libc.capset(header, (ctypes.c_uint32 * 6)(*low, *high)))  # effective, permitted, inheritable
    _require(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def _held(field: str) -> int:
    for line in Path("/proc/thread-self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1], 16)
    return 0


def _require(result: int) -> None:
    if result:
        raise MechanismError("give up", "capabilities", ctypes.get_errno())
