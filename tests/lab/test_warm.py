"""A daemon that is a fork of the warm process is what an executed one is."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lab import CommandFailed, DaemonExited, Lab, Node
from lab.patience import until

# Of /proc/PID/status: what a fork could have from its parent.
INHERITED = ("Umask", "Gid", "Groups", "SigBlk", "SigIgn", "SigCgt", "CapEff", "NoNewPrivs")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def seen(node: Node) -> dict[str, Any]:
    """What is seen of a node's daemon from outside, but for its command line, its memory and its number."""
    assert node.daemon is not None
    process = Path(f"/proc/{node.daemon.pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    descriptors = []
    for each in (process / "fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            descriptors.append(re.sub(r":\[\d+\]", "", str(each.readlink())))
    mounts = [line.split()[3:5] for line in (process / "mountinfo").read_text().splitlines()]
    mounts = [each for each in mounts if not each[0].startswith("net:")]  # of any laboratory
    shown = {
        "status": {key: status[key].strip() for key in INHERITED},
        "session": os.getsid(node.daemon.pid) == node.daemon.pid,
        "descriptors": sorted(descriptors),
        "mounts": mounts,
        "network": (process / "ns/net").stat().st_ino == node.namespace.stat().st_ino,
        "directory": str((process / "cwd").readlink()),
    }
    return {key: _anonymous(value, node.name) for key, value in shown.items()}


def _anonymous(value: Any, name: str) -> Any:
    if isinstance(value, list):
        return [_anonymous(each, name) for each in value]
    return value.replace(f"/{name}/", "/NODE/") if isinstance(value, str) else value


def test_it_is_seen_as_an_executed_one(lab: Lab) -> None:
    executed, forked = lab.node("executed"), lab.node("forked")
    executed.cold = True
    for node in (executed, forked):
        node.start()
    assert Path(f"/proc/{executed.daemon.pid}/cmdline").read_bytes().count(b"from overlayd.cli") == 1  # type: ignore[union-attr]
    assert b"lab.warm" in Path(f"/proc/{forked.daemon.pid}/cmdline").read_bytes()  # type: ignore[union-attr]
    until(lambda: seen(forked) == seen(executed), lambda: (seen(forked), seen(executed)))  # it opens some a while later


def test_how_it_ends_is_told(lab: Lab) -> None:
    node = lab.node("ending")
    node.start()
    assert node.kill() == -9
    node.start()
    assert node.stop() == 0
    with pytest.raises(DaemonExited) as told:
        node.start("--no-such-option")
    assert told.value.code == 2
    assert "no-such-option" in told.value.log


def test_overlayctl_as_well(lab: Lab) -> None:
    node = lab.node("asked")
    with pytest.raises(CommandFailed, match=r"exit code 69\n.*No such file or directory"):
        node.overlayctl("status")
    node.start()
    assert node.overlayctl("version").startswith("overlayctl ")
