"""Packets from link to link: what the kernel has to be told for that.

Owns: which parameters, and their values.  Must not know: packet filters, or whose links they are.

Every function acts in the network namespace that the calling thread is in.
"""

import socket
from collections.abc import Iterable
from pathlib import Path

from overlayd.errors import MechanismError
from overlayd.linux import sysctl
from overlayd.linux.link import link_index


def enable(names: Iterable[str]) -> None:
    """Let this host forward IPv4 and IPv6, and accept on the links `names` what comes back by another way than it went.

    A router ignores router advertisements, so links that listened to them (accept_ra 1) are told to go on (2) before
    IPv6 forwarding is switched on.  Loose reverse path filtering (2) on our links overrides a strict host-wide setting.
    Links that are not there are passed over.  What already has its value is not written, so a read-only /proc/sys is no
    obstacle once it is prepared; else MechanismError names the parameter.
    """
    for parameter, value in _wanted(names):
        if parameter == "ipv6/conf/all/forwarding" and sysctl.read(parameter) != value:
            _keep_listening()
        sysctl.write(parameter, value)


def faults(names: Iterable[str]) -> list[str]:
    """What `enable` would have to set, for a person; empty when all is as it should be."""
    found = ((parameter, sysctl.read(parameter), value) for parameter, value in _wanted(names))
    return [f"net/{parameter} is {now}, it must be {value}" for parameter, now, value in found if now != value]


def fault(name: str) -> str:
    """The first thing that `enable` would have to set for the link of this name, for a person; empty when all is as it
    should be.
    """
    wanted = [(f"ipv4/conf/{name}/forwarding", "1"), (f"ipv4/conf/{name}/rp_filter", "2")]
    if Path("/proc/sys/net/ipv6").exists():
        wanted.append(("ipv6/conf/all/forwarding", "1"))
    for parameter, value in wanted:
        try:
            now = sysctl.read(parameter)
        except MechanismError as error:
            return str(error)  # the link has just gone
        if now != value:
            return f"net/{parameter} is {now}, it must be {value}"
    return ""


def _wanted(names: Iterable[str]) -> list[tuple[str, str]]:
    wanted = [("ipv4/ip_forward", "1")]
    if Path("/proc/sys/net/ipv6").exists():
        wanted.append(("ipv6/conf/all/forwarding", "1"))
    for name in names:
        try:
            carried = socket.if_indextoname(link_index(name))  # /proc/sys does not know alternative names
        except (MechanismError, OSError):
            continue
        wanted += [(f"ipv4/conf/{carried}/forwarding", "1"), (f"ipv4/conf/{carried}/rp_filter", "2")]
    return wanted


def _keep_listening() -> None:
    for accept_ra in sorted(Path("/proc/sys/net/ipv6/conf").glob("*/accept_ra")):
        name = accept_ra.parent.name
        if name not in ("all", "default") and sysctl.read(f"ipv6/conf/{name}/accept_ra") == "1":
            sysctl.write(f"ipv6/conf/{name}/accept_ra", "2")
