"""Attach one container to a bridge, and detach it again: ours beside pyroute2 and `ip -batch`, doing the same, and
beside CNI's `bridge` and netavark where these are installed, in one run.

Needs root; works in a network namespace of its own.  The peer is born inside the namespace under its final name in all
three, as moving it there would cost another 16 ms; the container gets an address, a default route and `lo` up.

    python bench/bench_attach.py --fast

Ours also waits until the bridge port forwards, which the others do not.
"""

import ctypes
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from engines import ENGINES, CniBridge, Netavark
from pyroute2 import IPRoute
from smoke import make_runner

from overlayd.linux import bridge, link, netns, veth, veth_removal
from overlayd.model.names import pid_of
from overlayd.model.objects import Bridge, Veth

_CLONE_NEWNET = 0x40000000
BRIDGE = Bridge("web", "zl-bench-b", ip_interface("10.9.0.1/24"), 1340)


@contextmanager
def container() -> Iterator[Veth]:
    """A host of its own with a bridge, and the veth that a container in it is to have."""
    ctypes.CDLL(None).unshare(_CLONE_NEWNET)
    bridge.create(BRIDGE)
    process = subprocess.Popen(["unshare", "-n", "sleep", "3600"])
    try:
        while netns.identify(process.pid).inode == netns.own_inode():
            time.sleep(0.001)
        yield Veth(
            name=f"veth-{process.pid}-s",
            netns=netns.identify(process.pid),
            interface="eth0",
            service="web",
            bridge=BRIDGE.name,
            address=ip_interface("10.9.0.5/24"),
            gateway=ip_address("10.9.0.1"),
            routes=frozenset({ip_network("0.0.0.0/0")}),
            mac=bytes.fromhex("020000000005"),
            mtu=1340,
        )
    finally:
        process.kill()
        process.wait()


class Ours:
    def attach(self, wanted: Veth) -> None:
        veth.create(wanted)

    def detach(self, wanted: Veth) -> None:
        veth_removal.delete([wanted.name])


class Pyroute2:
    def __init__(self) -> None:
        self.host = IPRoute()
        self.bridge = link.link_index(BRIDGE.name)

    def attach(self, wanted: Veth) -> None:
        one_queue = {"num_tx_queues": 1, "num_rx_queues": 1}
        peer = {
            "ifname": "eth0",
            "net_ns_pid": pid_of(wanted.name),
            "mtu": 1340,
            "address": wanted.mac.hex(":"),
            **one_queue,
        }
        self.host.link(
            "add", ifname=wanted.name, kind="veth", peer=peer, master=self.bridge, state="up", mtu=1340, **one_queue
        )
        descriptor = netns.open_namespace(wanted.netns)
        with netns.entered(descriptor):
            inside = IPRoute()
        os.close(descriptor)
        with inside:
            index = inside.link_lookup(ifname="eth0")[0]
            inside.link("set", index=1, state="up")
            inside.link("set", index=index, state="up")
            inside.addr("add", index=index, address=str(wanted.address.ip), prefixlen=24)
            inside.route("add", dst="default", gateway=str(wanted.gateway))

    def detach(self, wanted: Veth) -> None:
        self.host.link("del", ifname=wanted.name)


class IpBatch:
    def attach(self, wanted: Veth) -> None:
        self.batch(
            [],
            f"link add {wanted.name} mtu 1340 numtxqueues 1 numrxqueues 1 type veth"
            f" peer name eth0 netns {pid_of(wanted.name)} mtu 1340 address {wanted.mac.hex(':')}"
            " numtxqueues 1 numrxqueues 1\n"
            f"link set {wanted.name} master {BRIDGE.name} up\n",
        )
        self.batch(
            ["nsenter", f"--net=/proc/{pid_of(wanted.name)}/ns/net"],
            "link set lo up\nlink set eth0 up\n"
            f"address add {wanted.address} dev eth0\nroute add default via {wanted.gateway}\n",
        )

    def detach(self, wanted: Veth) -> None:
        self.batch([], f"link delete {wanted.name}\n")

    def batch(self, prefix: list[str], commands: str) -> None:
        subprocess.run([*prefix, "ip", "-batch", "-"], input=commands, text=True, check=True)


class Engine:
    """What a container engine starts.  Its bridge is its own, which the first attach makes."""

    def __init__(self, engine: type[CniBridge | Netavark], directory: Path) -> None:
        self.engine = engine(directory)

    def attach(self, wanted: Veth) -> None:
        self.engine.attach(pid_of(wanted.name))

    def detach(self, wanted: Veth) -> None:
        self.engine.detach(pid_of(wanted.name))


class Tool(Protocol):
    def attach(self, wanted: Veth) -> None: ...
    def detach(self, wanted: Veth) -> None: ...


def measured(make: Callable[[Path], Tool], detach: bool) -> Callable[[int], float]:
    """A pyperf time function: seconds that `loops` attaches take, or the detaches that follow each."""

    def run(loops: int) -> float:
        total = 0.0
        with container() as wanted, TemporaryDirectory() as directory:
            subject = make(Path(directory))
            subject.attach(wanted)
            subject.detach(wanted)
            for _ in range(loops):
                started = time.perf_counter()
                subject.attach(wanted)
                attached = time.perf_counter()
                subject.detach(wanted)
                total += time.perf_counter() - attached if detach else attached - started
        return total

    return run


def main() -> None:
    if os.geteuid():
        raise SystemExit("bench_attach needs root: it makes network namespaces")
    runner = make_runner()
    tools: dict[str, Callable[[Path], Tool]] = {
        "overlayd": lambda directory: Ours(),
        "pyroute2": lambda directory: Pyroute2(),
        "ip -batch": lambda directory: IpBatch(),
    }
    for engine in ENGINES:
        if why := engine.missing():
            print(f"without {engine.name}: {why}")
        else:
            tools[engine.name] = partial(Engine, engine)
    for name, make in tools.items():
        runner.bench_time_func(f"attach, {name}", measured(make, detach=False))
        runner.bench_time_func(f"detach, {name}", measured(make, detach=True))


if __name__ == "__main__":
    main()
