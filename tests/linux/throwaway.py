"""Network namespaces for the tests of this folder: made, wired and removed with ip(8)."""

import ctypes
import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000


class Namespace:
    """A named network namespace with `lo` up; `with` removes it, and what lives in it, at the end."""

    def __init__(self) -> None:
        self.name = f"ot{secrets.token_hex(3)}"

    def __enter__(self) -> "Namespace":
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self.ip("link set lo up")
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["ip", "netns", "del", self.name], check=True)

    def ip(self, *commands: str) -> None:
        """Run ip(8) commands inside, in order."""
        text = "".join(f"{command}\n" for command in commands)
        subprocess.run(["ip", "-n", self.name, "-batch", "-"], input=text, text=True, check=True)

    def nft(self, script: str) -> str:
        """Run an nft script with the program, not with what is under test."""
        command = ["ip", "netns", "exec", self.name, "nft", "-f", "-"]
        return subprocess.run(command, input=script, text=True, check=True, stdout=subprocess.PIPE).stdout

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread is inside; sockets keep the namespace that they were made in."""
        with Path("/proc/thread-self/ns/net").open() as home, Path(f"/run/netns/{self.name}").open() as target:
            _setns(target.fileno())
            try:
                yield
            finally:
                _setns(home.fileno())

    def sysctl(self, *settings: str) -> None:
        """Set variables below /proc/sys/net inside: "ipv4/ip_forward=1"."""
        with self.entered():
            for setting in settings:
                path, _, value = setting.partition("=")
                Path("/proc/sys/net", path).write_text(f"{value}\n")


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
