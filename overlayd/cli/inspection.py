"""What `overlayctl inspect` prints.

Owns: its layout for people and for programs.  Must not know: how the kernel and the journal are read (`inspect`).
"""

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import msgspec
from pyroute2.netlink.exceptions import NetlinkError

from overlayd.cli.columns import printable, table
from overlayd.errors import MechanismError
from overlayd.inspect import inspection
from overlayd.inspect.picture import SECTIONS, Inspection

# Our own: so many rows of a section that was not asked for by name.
FEW = 12

_HEADERS: dict[str, tuple[tuple[str, ...], Callable[[Any], tuple[str, ...]]]] = {
    "links": (
        ("LINK", "WHAT", "TYPE", "STATE", "MTU", "PORT OF"),
        lambda each: (each.name, _what(each.role), each.type, _up(each.up), str(each.mtu), each.master),
    ),
    "addresses": (("LINK", "ADDRESS"), lambda each: (each.link, str(each.address))),
    "routes": (
        ("DESTINATION", "LINK", "VIA", "TYPE", "PROTOCOL"),
        lambda each: (str(each.destination), each.link, each.via, each.type, str(each.protocol)),
    ),
    "fdb": (("BRIDGE", "PORT", "MAC", "STATE"), lambda each: (each.bridge, each.port, each.mac, each.state)),
    "neighbours": (
        ("LINK", "ADDRESS", "MAC", "STATE"),
        lambda each: (each.link, each.address, each.mac, each.state),
    ),
    "sockets": (
        ("PROTOCOL", "LOCAL", "REMOTE", "STATE"),
        lambda each: (each.protocol, each.local, each.remote, each.state),
    ),
    "conntrack": (
        ("PROTOCOL", "SOURCE", "TARGET", "ANSWERED BY", "ANSWERED TO"),
        lambda each: (each.protocol, each.source, each.target, each.answered_by, each.answered_to),
    ),
}


def inspect(directory: str, socket: str, sections: Collection[str]) -> Inspection:
    """Inspect the sections, or all when none is named.  Raises MechanismError when the kernel shows nothing at all."""
    try:
        return inspection.inspect(Path(directory), socket, sections or SECTIONS)
    except (NetlinkError, OSError) as error:
        raise MechanismError("read", "the links of this host", detail=str(error)) from error


def as_json(found: Inspection) -> str:
    """The inspection as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(found, enc_hook=str), indent=2).decode()


def as_text(found: Inspection, sections: Collection[str]) -> str:
    """A table a section, then what is missing or too much.  sections: those that were named, which are shown whole."""
    parts = []
    for section in sections or SECTIONS:
        if reason := found.picture.unseen.get(section):
            parts.append(f"{section}: cannot be read: {printable(reason)}")
            continue
        header, cells = _HEADERS[section]
        rows = [cells(each) for each in getattr(found.picture, section)]
        hidden = 0 if sections else max(0, len(rows) - FEW)
        lines = [table(header, rows[: len(rows) - hidden]) if rows else "none"]
        if hidden:
            lines.append(f"... and {hidden} more: overlayctl inspect {section}")
        parts.append("\n".join([f"{section}:", *(re.sub("(?m)^", "  ", line) for line in lines)]))
    return "\n\n".join(parts if found.uncompared else [*parts, _verdict(found)])


def uncompared(found: Inspection) -> str:
    """Why it is not known what is missing or too much."""
    return f"not compared with the journal: {printable(found.uncompared)}"


def _verdict(found: Inspection) -> str:
    if not found.differences:
        return f"nothing is missing and nothing too much, by {found.journal}"
    lines = [f"  {printable(f'{each.object} {each.problem}')}" for each in found.differences]
    return "\n".join([f"other than {found.journal} has it:", *lines])


def _what(role: tuple[str, str]) -> str:
    kind, name = role
    if kind == "veth":
        return "container"
    return f"{kind} of {name}" if name else "global device"


def _up(up: bool) -> str:
    return "up" if up else "down"
