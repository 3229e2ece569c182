"""What somebody else does to our objects behind the daemon's back.

Owns: the tables: of damages to kernel objects, and of what happens to the journal.  Must not know: who puts them
right, or when.
"""

import json
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from crash.cell import Cell

# Kinds of links by the last letter of our names for them, and by the first ones.
DEVICE, DEDICATED, BRIDGE, VETH = "-g", "-d", "-b", "veth-"


def _links(cell: Cell, *marks: str) -> list[str]:
    names = [link["ifname"] for link in json.loads(cell.run(["ip", "-j", "link", "show"]))]
    return [
        name for name in names if name.startswith(("zl-", VETH)) and (name.startswith(marks) or name.endswith(marks))
    ]


def _each(command: str, *marks: str) -> Callable[[Cell], None]:
    """An ip(8) command for every link of ours of these kinds."""

    def damage(cell: Cell) -> None:
        cell.run(["ip", "-batch", "-"], "\n".join(command.format(name) for name in _links(cell, *marks)))

    return damage


def _kill_wireguard(cell: Cell) -> None:
    for directory in Path("/proc").glob("[0-9]*"):  # the cell's own processes: no other can be seen from here
        with suppress(FileNotFoundError, ProcessLookupError):  # some end by themselves meanwhile
            if (directory / "cmdline").read_bytes().split(b"\0")[0].endswith(b"wireguard-go"):
                os.kill(int(directory.name), signal.SIGKILL)


def _stop_forwarding(cell: Cell) -> None:
    for name in _links(cell, DEVICE, DEDICATED, BRIDGE):
        Path(f"/proc/sys/net/ipv4/conf/{name}/forwarding").write_text("0\n")


DAMAGES: dict[str, Callable[[Cell], None]] = {
    "rules": lambda cell: cell.run(["nft", "flush", "ruleset"]),
    "bridges": _each("link delete {}", BRIDGE),
    "veths": _each("link delete {}", VETH),
    "device": _kill_wireguard,
    "addresses": _each("address flush dev {}", DEVICE, DEDICATED, BRIDGE),
    "routes": lambda cell: cell.run(["ip", "route", "flush", "proto", "111"]),
    "bridges down": _each("link set {} down", BRIDGE),
    "mtu": _each("link set {} mtu 1300", BRIDGE, VETH, DEVICE, DEDICATED),
    "ports": _each("link set {} nomaster", VETH),
    "forwarding": _stop_forwarding,
}


def _replace_by_a_copy(journal: Path) -> None:
    shutil.copy2(journal, journal.with_name("copy"))
    journal.with_name("copy").rename(journal)


DISPLACEMENTS: dict[str, Callable[[Path], object]] = {
    "removed": lambda journal: journal.unlink(),
    "removed with all beside it": lambda journal: shutil.rmtree(journal.parent),
    "moved": lambda journal: journal.rename("/run/journal"),
    "replaced": _replace_by_a_copy,
    "cut": lambda journal: os.truncate(journal, journal.stat().st_size // 2),
}
