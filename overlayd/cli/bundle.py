"""A tar file for a bug report: what the daemon and the kernel show.

Owns: what is in it, and that no secret is.  Must not know: how the daemon is reached.

Every private key and credential that the journal has is looked for in everything, and left out.
"""

import io
import platform
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from overlayd import __version__
from overlayd.cli import inspection
from overlayd.cli.tables import pretty_json
from overlayd.client import OverlayClient
from overlayd.errors import OverlaydError, StateError
from overlayd.inspect import journal
from overlayd.inspect.picture import SECTIONS

LONGEST = 20.0  # seconds that a program may take
LOG_LINES = 5000
LEFT_OUT = "(left out)"

What = Literal["services", "containers", "pools", "addresses", "networks", "peers"]

# What the host shows of its network, as people look at it.
_PROGRAMS = {
    "host/links": ["ip", "-d", "-s", "link"],
    "host/addresses": ["ip", "address"],
    "host/routes": ["ip", "route", "show", "table", "all"],
    "host/routes6": ["ip", "-6", "route", "show", "table", "all"],
    "host/rules": ["ip", "rule"],
    "host/bridges": ["bridge", "fdb", "show"],
    "host/nftables": ["nft", "list", "ruleset"],
    "host/iptables": ["iptables-save"],
    "host/sockets": ["ss", "-lnptu"],
    "host/log": ["journalctl", "-u", "overlayd", "-n", str(LOG_LINES), "--no-pager"],
}
_FILES = ("/etc/overlayd/overlayd.toml", "/etc/os-release", "/proc/sys/net/ipv4/ip_forward")
# A line in which a program or file names a secret that is not ours to know.
_SECRET = re.compile(
    r"(?im)^(.*(?:private|preshared)[-_ ]?key\s*[=:]\s*).+$|^(.*(?:password|credential|token)\s*=\s*).+$"
)

Clients = Callable[[], AbstractAsyncContextManager[OverlayClient]]


def default_name() -> str:
    return f"overlayd-{socket.gethostname()}-{time.strftime('%Y%m%d-%H%M%S')}.tar.gz"


async def daemon_says(connected: Clients) -> dict[str, str]:
    """What the daemon answers, by the file it becomes; of a daemon that cannot be asked, why."""
    said: dict[str, str] = {}
    try:
        async with connected() as client:
            questions: dict[str, Callable[[], Awaitable[object]]] = {
                "status": client.status,
                "nat": client.nat_status,
                "dns": client.list_dns,
                "edge": client.list_edge_peers,
                "doctor": client.doctor,
                "whoami": client.whoami,
            }
            for name, ask in questions.items():
                said[f"daemon/{name}.json"] = await _answer(ask)
            for what in get_args(What):
                said[f"daemon/{what}.json"] = await _answer(partial(client.list, what))
    except (OverlaydError, TimeoutError) as error:
        said["daemon/unreachable"] = str(error)
    return said


async def _answer(ask: Callable[[], Awaitable[object]]) -> str:
    try:
        return pretty_json(await ask())
    except (OverlaydError, TimeoutError) as error:
        return f"no answer: {error}"


def write(path: Path, said: dict[str, str], directory: Path, daemon_socket: str) -> None:
    """Write the tar file, for its owner alone.  said: what the daemon says.  directory: the daemon's data directory.
    OSError: it cannot be written.
    """
    secrets, unknown = _secrets(directory)
    files = {
        "README": _readme(unknown),
        **said,
        "inspect": _inspection(directory, daemon_socket),
        **dict(_host()),
    }
    with tarfile.open(path, "w:gz") as tar:
        path.chmod(0o600)
        for name, text in files.items():
            data = without_secrets(text, secrets).encode(errors="backslashreplace")
            entry = tarfile.TarInfo(f"overlayd/{name}")
            entry.size, entry.mtime, entry.mode = len(data), int(time.time()), 0o600
            tar.addfile(entry, io.BytesIO(data))


def without_secrets(text: str, secrets: set[str]) -> str:
    """The text with every secret left out, and what a line calls one."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, LEFT_OUT)
    return _SECRET.sub(lambda match: match[1] + LEFT_OUT, text)


def _secrets(directory: Path) -> tuple[set[str], str]:
    """The secrets that must not be in the bundle; and why they are not known, if they are not."""
    try:
        return journal.secrets(journal.read(directory)), ""
    except StateError as error:
        return set(), str(error)


def _readme(unknown: str) -> str:
    lines = [
        f"overlayctl {__version__}, Python {sys.version}",
        f"{platform.platform()}, {time.strftime('%Y-%m-%d %H:%M:%S %z')}",
        f"not looked for secrets of the journal: {unknown}" if unknown else "looked for the journal's secrets",
    ]
    return "\n".join(lines) + "\n"


def _inspection(directory: Path, daemon_socket: str) -> str:
    try:
        found = inspection.inspect(str(directory), daemon_socket, SECTIONS)
    except OverlaydError as error:
        return str(error)
    text = inspection.as_text(found, SECTIONS)
    return f"{text}\n\n{inspection.uncompared(found)}" if found.uncompared else text


def _host() -> Iterator[tuple[str, str]]:
    for name, argv in _PROGRAMS.items():
        if shutil.which(argv[0]) is None:
            yield name, f"there is no {argv[0]} on this host"
            continue
        try:
            done = subprocess.run(argv, capture_output=True, timeout=LONGEST, check=False)
            yield name, (done.stdout + done.stderr).decode(errors="backslashreplace")
        except subprocess.TimeoutExpired:
            yield name, f"{argv[0]} did not end within {LONGEST:g} s"
    for path in map(Path, _FILES):
        try:
            yield f"files{path}", path.read_text(errors="backslashreplace")
        except OSError as error:
            yield f"files{path}", f"cannot be read: {error.strerror}"
