"""A throw-away host: the test's thread moves into a new network namespace; containers are real processes in theirs."""

import ctypes
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from overlayd.linux import netns
from overlayd.model.objects import Netns

_CLONE_NEWNET = 0x40000000


def sh(command: str) -> str:
    """Run a shell command in the thread's namespace; its output."""
    return subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout


class Container:
    """A process in a network namespace of its own."""

    def __init__(self, own_namespace: bool = True) -> None:
        self.process = subprocess.Popen(["unshare", "-n", "sleep", "300"] if own_namespace else ["sleep", "300"])
        self.pid = self.process.pid
        link = Path(f"/proc/{self.pid}/ns/net")
        while own_namespace and link.stat().st_ino == netns.own_inode():
            time.sleep(0.001)
        while Path(f"/proc/{self.pid}/comm").read_text() != "sleep\n":
            time.sleep(0.001)
        self.netns: Netns = netns.identify(self.pid)

    def run(self, command: str) -> str:
        return sh(f"nsenter -n -t {self.pid} {command}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def host() -> Iterator[Callable[[], str]]:
    """A host of its own; called, it returns all that the network shows, for comparison before and after."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(_CLONE_NEWNET) == 0, "tests of the kernel need root"
    sh("ip link set lo up")

    def snapshot() -> str:
        return "\n".join(
            sh(command)
            for command in (
                "ip -o link | sed 's/ state [A-Z]*//; s/NO-CARRIER,//; s/,LOWER_UP//; s/ qdisc [a-z]*//'",
                "ip -o -4 address",
                "ip -o -6 address | grep -v fe80 || true",
                "ip route | sed 's/ linkdown//'",
                "ip -6 route | grep -v fe80 | sed 's/ linkdown//'",
                "ip neighbour show nud permanent",
            )
        )

    try:
        yield snapshot
    finally:
        assert libc.setns(home, _CLONE_NEWNET) == 0
        os.close(home)


@pytest.fixture
def container(host: Callable[[], str]) -> Iterator[Callable[[], Container]]:
    """Starts containers, and ends them with the test."""
    started: list[Container] = []

    def start(own_namespace: bool = True) -> Container:
        started.append(Container(own_namespace))
        return started[-1]

    yield start
    for each in started:
        each.kill()


@pytest.fixture
def shell() -> Callable[[str], str]:
    """Runs a shell command in the thread's namespace."""
    return sh


@pytest.fixture
def tun(host, shell):
    """Makes a point-to-point link without link-layer addresses, which is what a WireGuard device is to the kernel."""

    def make(name):
        shell(f"ip tuntap add dev {name} mode tun")
        return name

    return make
