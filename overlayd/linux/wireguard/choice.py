"""Which WireGuard this machine has, and which of its kinds to use.

Owns: the order of preference.  Must not know: how a backend works.
"""

from collections.abc import Iterable
from errno import ENODEV
from typing import Literal

from overlayd.errors import MechanismError
from overlayd.linux.wireguard.backend import Backend
from overlayd.linux.wireguard.kernel import Kernel
from overlayd.linux.wireguard.userspace import Userspace

Preference = Literal["auto", "kernel", "userspace"]


def missing(preference: Preference, program: str = "") -> str:
    """Why `choose` has no backend, for a person; empty when it has one."""
    reasons = []
    for backend in candidates(preference, program):
        reason = backend.missing()
        if not reason:
            return ""
        reasons.append(f"{backend.name}: {reason}")
    return "; ".join(reasons)


def choose(preference: Preference, program: str = "") -> Backend | None:
    """The backend to use: kernel before userspace with "auto", and None when neither can be had.

    program: the wireguard-go to use, empty for the newest in PATH.  Raises MechanismError, naming what is missing, when
    an explicit preference cannot be had.
    """
    for backend in candidates(preference, program):
        if not backend.missing():
            return backend
    if preference == "auto":
        return None
    raise MechanismError("use the WireGuard backend", preference, ENODEV, missing(preference, program))


def candidates(preference: Preference, program: str = "") -> Iterable[Backend]:
    """The backends that suit a preference, the first choice first, whether this machine has them or not."""
    if preference in ("auto", "kernel"):
        yield Kernel()
    if preference in ("auto", "userspace"):
        yield Userspace(program)
