"""The CNI shim as a runtime executes it, and a socket that answers it.

Owns: the environment of a call and what came of it.  Must not know: what a daemon answers.
"""

import json
import os
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import overlayd

SHIM = Path(overlayd.__file__).with_name("cni") / "overlayd-cni"
CONFIG: dict[str, Any] = {"cniVersion": "1.1.0", "name": "overlay", "type": "overlayd-cni"}
ID = "b2f7c1d09e"


class Ended(NamedTuple):
    """What a call printed, and its exit code."""

    exit: int
    stdout: str

    @property
    def told(self) -> dict[str, Any]:
        """What it printed, as JSON; nothing of nothing."""
        return dict(json.loads(self.stdout)) if self.stdout else {}

    @property
    def error(self) -> tuple[int, str]:
        """Its error's code and words."""
        assert self.exit == 1, self.stdout
        return self.told["code"], self.told["msg"]


def variables(command: str, path: Path, **given: str) -> dict[str, str]:
    """The environment of a call: as a runtime sets it, and `given` (`netns="..."`) instead of that."""
    usual = {"containerid": ID, "ifname": "eth0", "netns": "", "path": "/opt/cni/bin"} | given
    return {f"CNI_{key.upper()}": value for key, value in {**usual, "command": command}.items()} | {
        "OVERLAYD_CNI_SOCKET": str(path)
    }


def start(
    environment: Mapping[str, str] | Mapping[bytes, bytes],
    config: bytes | Mapping[str, Any] = CONFIG,
    *,
    within: Sequence[str] = (),
) -> subprocess.Popen[bytes]:
    """Execute the shim with a configuration.  within: the words of a program that executes it elsewhere."""
    with tempfile.TemporaryFile() as stdin:
        stdin.write(config if isinstance(config, bytes) else json.dumps(config).encode())
        stdin.seek(0)
        return subprocess.Popen([*within, SHIM], env=environment, stdin=stdin, stdout=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> Ended:
    """Wait for the end of a call."""
    stdout, _ = process.communicate()
    return Ended(process.returncode, stdout.decode())


def call(command: str, path: Path, config: bytes | Mapping[str, Any] = CONFIG, **given: str) -> Ended:
    """Execute the shim for a command at a socket, from beginning to end."""
    return finish(start(variables(command, path, **given), config))


class Served(NamedTuple):
    """What a shim sent: the frame's body, and the descriptors that came with it."""

    connection: socket.socket
    body: bytes
    descriptors: list[int]

    def answer(self, body: bytes) -> None:
        """Send a frame, and hang up."""
        for descriptor in self.descriptors:
            os.close(descriptor)
        with self.connection:
            self.connection.sendall(len(body).to_bytes(4, "little") + body)


class Listener:
    """A socket that shims connect to, at a path."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        self._socket.bind(str(path))
        self._socket.listen()

    def __enter__(self) -> "Listener":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def accept(self) -> Served:
        """The next shim's request."""
        connection, _ = self._socket.accept()
        got, descriptors, _, _ = socket.recv_fds(connection, 4, 4, socket.MSG_CMSG_CLOEXEC)
        held = bytearray()
        size = int.from_bytes(got, "little")
        while len(held) < size:
            held += connection.recv(size - len(held))
        return Served(connection, bytes(held), descriptors)
