"""The capabilities of this process.

Owns: the bits of those that overlayd needs, and which are held.  Must not know: what each is needed for.
Source: linux/capability.h, capabilities(7).
"""

from pathlib import Path

BITS = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_SYS_PTRACE": 19, "CAP_SYS_ADMIN": 21}


def missing(*names: str) -> str:
    """The first of these capabilities that this process lacks; empty when it has all.  names: keys of BITS."""
    effective = 0
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            effective = int(line.split()[1], 16)
    return next((name for name in names if not effective >> BITS[name] & 1), "")
