"""A container, as far as a network daemon can tell: a process in a network namespace of its own.

Owns: that process.  Must not know: the daemon that attaches it.
"""

import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from lab import netns
from lab.patience import LIMIT
from lab.processes import environment, run


class Container:
    """A context manager and a handle; the process runs from construction until `kill`."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.process = subprocess.Popen(
            ["unshare", "--net", "--", "sh", "-c", "echo ready; exec sleep infinity"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env=environment(prefix),
            start_new_session=True,
        )
        self.pid = self.process.pid
        self.namespace = Path(f"/proc/{self.pid}/ns/net")
        assert self.process.stdout is not None
        if self.process.stdout.readline() != b"ready\n":
            raise RuntimeError(f"the container's process ended with {self.process.wait()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def handle(self) -> dict[str, object]:
        """The handle of wire.md that names this container."""
        return {"platform": "linux_pid", "pid": self.pid}

    def interface(self, ifname: str = "eth0", id: str = "") -> dict[str, object]:
        """The handle that names one of its interfaces, by its namespace.  id: if not made of the process's number."""
        id = id or f"c{self.pid}"
        return {"platform": "linux_netns", "id": id, "path": str(self.namespace), "ifname": ifname}

    def command(self, argv: Sequence[str | Path]) -> list[str]:
        """The command line that runs `argv` in the container's network."""
        return ["nsenter", f"--net={self.namespace}", "--", *map(str, argv)]

    def run(self, argv: Sequence[str | Path], *, timeout: float = LIMIT) -> str:
        """Run a program in the container's network and return what it printed."""
        return run(self.command(argv), timeout=timeout, prefix=self.prefix)

    def open_socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A socket of the container, for use from the test's own process."""
        return netns.open_socket(self.namespace, family, kind)

    def kill(self) -> None:
        """SIGKILL, as a crash would; the namespace goes with its last user."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
