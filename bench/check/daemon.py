"""A version under measurement: its daemon on a node of a laboratory.

Owns: that it runs the tree's code, and on which processor.  Must not know: what is asked of it.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab import Lab, patience
from lab.cluster import Member
from lab.frames import request_frame

from check import machine
from check.client import Client
from check.tree import Tree

OPTIONS = ("--wireguard", "userspace", "--log-level", "warning")


class Daemon:
    """A started daemon without an overlay.  options: further ones of the command line."""

    def __init__(self, lab: Lab, tree: Tree, name: str, *options: str) -> None:
        self.tree = tree
        self.options = (*OPTIONS, *options)
        self.member = Member(lab, len(lab.nodes) + 1, name)
        # Its wireguard-go begins there too, until it is moved.
        self.member.node.program = ["taskset", "-c", str(machine.SERVER), *tree.daemon]
        self.start()

    def start(self) -> float:
        """Start it, or the next one on the same directories; seconds until it listened."""
        start = time.perf_counter()
        self.member.start(*self.options)
        took = time.perf_counter() - start
        self._move_wireguard()
        code = self.tree.directory / "overlayd" / "_fast"
        if str(code) not in Path(f"/proc/{self.pid}/maps").read_text():
            raise RuntimeError(f"the daemon of {self.tree.name} does not run the code of {self.tree.directory}")
        return took

    def set_up(self) -> None:
        """Number the node and make its overlay's device."""
        self.member.set_up({"enabled": False})
        self._move_wireguard()

    def _move_wireguard(self) -> None:
        """It works beside the daemon, as where nobody pins anything."""
        for pid in self.member.node.wireguard_pids():
            machine.pin(machine.LOAD, pid)

    @property
    def pid(self) -> int:
        assert self.member.node.daemon is not None
        return self.member.node.daemon.pid

    @property
    def socket(self) -> Path:
        return self.member.node.socket

    def client(self) -> Client:
        """A new connection, which the caller closes."""
        return Client(self.socket)


def request(op: str, **keys: object) -> bytes:
    """The frame of a request."""
    return request_frame(1, op, **keys)


@contextmanager
def laboratory() -> Iterator[Lab]:
    """A laboratory, with this process where the load is."""
    machine.pin(machine.LOAD)
    patience.GLANCE = 0.001  # starts are measured
    with Lab() as lab:
        yield lab
