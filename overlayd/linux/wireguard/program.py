"""The wireguard-go programs of this machine.

Owns: where they are looked for, which versions they are of, and which one is used.  Must not know: the processes that
run them (`process`), or what a version can do (`model.wireguard_go`).
"""

import re
import subprocess
from pathlib import Path

from overlayd.linux import programs
from overlayd.model import wireguard_go

NAME = "wireguard-go"

_VERSION = re.compile(rb"wireguard-go v([0-9.]+)")

# Our own constant, seconds: it takes 3 ms.
_DEADLINE = 2.0

# By the identity of the file.  What was not told is asked again.
_known: dict[tuple[int, int, int, int], str] = {}


def choose(configured: str = "") -> str:
    """The path of the program to use: what was configured, else the newest of that name in PATH, of two alike the first
    one; empty when there is none.
    """
    if configured:
        return configured if programs.is_executable(configured) else ""
    found = list(programs.find_all(NAME))
    if len(found) < 2:
        return "".join(found)
    return max(found, key=lambda path: wireguard_go.order(version(path)))


def missing(configured: str = "") -> str:
    """Why `choose` has none, for a person; empty when it has one."""
    if choose(configured):
        return ""
    return f"{configured} is no executable file" if configured else f"{NAME} is not in PATH"


def version(path: str) -> str:
    """The version that a program says it is of, such as "0.0.20250522"; empty when it does not say.

    path: may be /proc/PID/exe, also when that file has been replaced since.
    """
    try:
        status = Path(path).stat()
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if identity not in _known:
            done = subprocess.run(
                [path, "--version"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd="/",
                timeout=_DEADLINE,
                check=False,
            )
            if (told := _VERSION.match(done.stdout)) is None:
                return ""
            _known[identity] = told[1].decode()
        return _known[identity]
    except (OSError, subprocess.TimeoutExpired):
        return ""


def is_file(path: str, of: str) -> bool:
    """Whether a path and that of a process's executable (/proc/PID/exe) are one file."""
    try:
        return Path(path).samefile(of)
    except OSError:
        return False
