"""The page of `overlayctl web`, served on a node.

Owns: starting it, and asking it by HTTP, byte by byte.  Must not know: what is asked for.
"""

import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lab.node import CONTROL, Node
from lab.patience import LIMIT
from lab.processes import environment


class Web:
    """A page that is served on a node's loopback."""

    def __init__(self, node: Node, address: str) -> None:
        self.node = node
        self.address = address
        place, _, self.token = address.partition("/#")
        self.port = int(place.rpartition(":")[2])

    def open(self, target: str, headers: dict[str, str], method: str = "GET") -> socket.socket:
        link = self.node.open_socket()
        link.settimeout(LIMIT)
        link.connect(("127.0.0.1", self.port))
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        link.sendall("\r\n".join([*lines, "", ""]).encode())
        return link

    def ask(
        self, target: str, *, token: str | None = None, host: str = "localhost", method: str = "GET", **more: str
    ) -> tuple[int, dict[str, str], str]:
        """The status, headers and body of an answer."""
        headers = {"Host": f"{host}:{self.port}" if host else "", **{k.replace("_", "-"): v for k, v in more.items()}}
        if token != "":
            headers["Authorization"] = f"Bearer {token or self.token}"
        data = b""
        with self.open(target, headers, method) as link:
            while piece := link.recv(1 << 16):
                data += piece
        head, _, body = data.decode().partition("\r\n\r\n")
        first, *lines = head.split("\r\n")
        return int(first.split()[1]), dict(line.split(": ", 1) for line in lines), body

    def json(self, target: str) -> dict[str, Any]:
        status, _, body = self.ask(target)
        assert status == 200, body
        found: dict[str, Any] = json.loads(body)
        return found


@contextmanager
def serving(node: Node) -> Iterator[Web]:
    command = node.command([*CONTROL, "--socket", str(node.socket), "web", "--port", "0"])
    env = environment(node.prefix) | {"PYTHONUNBUFFERED": "1"}
    program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    try:
        assert program.stdout is not None
        yield Web(node, program.stdout.readline().strip())
    finally:
        program.terminate()
        program.communicate()
