"""What a version of wireguard-go can do, and what of it a person should know.

Owns: the order of versions, and the findings about what serves the devices.  Must not know: where programs are found
or how they are asked (`linux.wireguard.program`).

A version is a text as the program prints it, "0.0.20250522"; empty when it is not known.
"""

import re
from collections.abc import Iterable

from overlayd.model.findings import Finding

# The first version that takes and sends segments of up to 64 KiB, from TUN and UDP sockets: one system call for some
# forty packets.  They came some months after that release, and the program calls itself so until the next one, of 2025:
# Debian 13's is of December 2023.
SEGMENTS_SINCE = "0.0.20230223"


def order(version: str) -> tuple[int, ...]:
    """A key to sort versions by, an unknown one first."""
    return tuple(map(int, re.findall("[0-9]+", version)))


def lacks_segments(version: str) -> bool:
    """Whether it is known to handle every packet by itself."""
    return bool(version) and order(version) < order(SEGMENTS_SINCE)


def findings(devices: Iterable[tuple[str, str]], installed: str) -> list[Finding]:
    """devices: name of each, and the version that serves it.  installed: the version that would serve a new one."""
    found = []
    for name, version in devices:
        renew = f"overlayctl device renew: {installed} is installed"
        if lacks_segments(version):
            install = f"install wireguard-go {SEGMENTS_SINCE} or later, then: overlayctl device renew"
            found.append(
                Finding(
                    code="device-without-segmentation",
                    severity="hint",
                    object=f"device {name}",
                    problem=f"is served by wireguard-go {version}, which handles each packet by itself",
                    symptom="its tunnels carry less than they could",
                    remedy=install if lacks_segments(installed) or not installed else renew,
                )
            )
        elif version and order(version) < order(installed):
            problem = f"is served by wireguard-go {version}, until it is renewed or the machine restarts"
            found.append(Finding("device-renewable", "hint", f"device {name}", problem, "", renew))
    return found


def unknown() -> Finding:
    """What would serve a device again is not known to be wireguard-go."""
    return Finding(
        code="wireguard-unknown",
        severity="warning",
        object="wireguard-go",
        problem="is gone, or is another program: it does not tell its version (--version)",
        symptom="a device may not come back once the process that serves it has ended, after a reboot at the latest",
        remedy="install it, or name the right one with --wireguard-go",
    )
