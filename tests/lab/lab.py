"""The laboratory: what is made in it is removed with it.

Owns: the prefix that names everything, the underlay that joins the nodes, and the removal of all of it after success,
failure, Ctrl-C, SIGTERM and SIGHUP; what a killed laboratory left is swept by the next one.  Must not know: what the
tests do with the nodes.

    outside 198.51.100.1 --- router --- bridge "underlay" 172.31.0.254/24 --- alpha 172.31.0.1, beta 172.31.0.2, ...

or, for a laboratory of IPv6, 2001:db8:51::1, fd31::fe/64, fd31::1 and so on, and no IPv4 at all.  The router is a
namespace of its own; the host's own network is never touched.  No route leads back to an overlay address, so only
masqueraded traffic gets an answer from outside.
"""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from lab import netns, processes
from lab.capture import Capture
from lab.container import Container
from lab.crun import CrunContainer
from lab.natbox import INSIDE, NatBox
from lab.node import Node

Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface

UNDERLAY = IPv4Interface("172.31.0.254/24")
OUTSIDE = IPv4Interface("198.51.100.1/24")  # TEST-NET-2, RFC 5737
OUTSIDE_ROUTER = IPv4Interface("198.51.100.254/24")
UNDERLAY6 = IPv6Interface("fd31::fe/64")
OUTSIDE6 = IPv6Interface("2001:db8:51::1/64")  # RFC 3849
OUTSIDE6_ROUTER = IPv6Interface("2001:db8:51::fe/64")
DIRECTORY = re.compile(r"overlayd-lab-(?P<prefix>ot[0-9a-f]{6})-(?P<pid>\d+)-(?P<started>\d+)")
# A cable carries one packet at a time: what is sent in segments is cut before it is captured, as before a real card.
CABLE = "gso_max_segs 1"
ENDING = (signal.SIGTERM, signal.SIGHUP)  # beside SIGINT, which Python turns into KeyboardInterrupt by itself


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, `number`, arrived while a laboratory was open."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.strsignal(number))


def _on_signal(number: int, _frame: FrameType | None) -> None:
    raise Terminated(number)


def _remove(prefix: str, directory: Path) -> None:
    """End every process and delete every namespace and file of the laboratory `prefix`."""
    names = netns.named(prefix)
    inodes = {netns.inode(name) for name in names}
    inside = {pid for pid in processes.pids() if processes.namespace_of(pid) in inodes}
    processes.end(inside | processes.marked(processes.MARK, prefix))
    for name in names:
        netns.delete(name)
    shutil.rmtree(directory, ignore_errors=True)


def _laboratories() -> Iterator[tuple[str, Path, int, bool]]:
    """Every laboratory of this user: its prefix and directory, the process that made it, whether that still lives."""
    for directory in Path(tempfile.gettempdir()).glob("overlayd-lab-*"):
        match = DIRECTORY.fullmatch(directory.name)
        try:
            is_ours = directory.lstat().st_uid == os.geteuid()  # anybody may make a directory of such a name
        except FileNotFoundError:  # another session has just removed it
            continue
        if match and is_ours:
            pid = int(match["pid"])
            yield match["prefix"], directory, pid, processes.start_time(pid) == int(match["started"])


@contextlib.contextmanager
def _sweeping() -> Iterator[None]:
    """One process sweeps at a time: another would find half of what this one removes."""
    directory = os.open(tempfile.gettempdir(), os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def sweep() -> list[str]:
    """Remove what laboratories of dead processes left behind; return their prefixes."""
    with _sweeping():
        dead = [(prefix, directory) for prefix, directory, _, lives in _laboratories() if not lives]
        for prefix, directory in dead:
            _remove(prefix, directory)
    return [prefix for prefix, _ in dead]


def of_others() -> set[str]:
    """The prefixes of the laboratories that other living processes have open."""
    return {prefix for prefix, _, pid, lives in _laboratories() if lives and pid != os.getpid()}


class Lab:
    """A context manager.  mtu: of the underlay, bytes; 1400 rather than 1500 shows up sizes that are hard-coded
    somewhere.  ipv6: the underlay and the outside have IPv6 only, else IPv4 only.
    """

    def __init__(self, mtu: int = 1500, *, ipv6: bool = False) -> None:
        self.mtu = mtu
        self.ipv6 = ipv6
        self.underlay: IPv4Interface | IPv6Interface = UNDERLAY6 if ipv6 else UNDERLAY
        self.outside_address: IPv4Interface | IPv6Interface = OUTSIDE6 if ipv6 else OUTSIDE
        self.prefix = f"ot{secrets.token_hex(3)}"
        owner = os.getpid()
        self.directory = Path(
            tempfile.gettempdir(), f"overlayd-lab-{self.prefix}-{owner}-{processes.start_time(owner)}"
        )
        self.router = f"{self.prefix}-router"
        self.outside = f"{self.prefix}-outside"
        self.nodes: list[Node] = []
        self._bundles = 0
        self._hosts = 0
        self._stack = contextlib.ExitStack()
        self._handlers: dict[signal.Signals, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> "Lab":
        sweep()
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, _on_signal) for number in ENDING}
        try:
            self.directory.mkdir(mode=0o700)
            self._build_underlay()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, KeyboardInterrupt):
            for node in self.nodes:
                print(f"--- log of {node.name} ---\n{node.log_tail()}", flush=True)
        self.close()

    def close(self) -> None:
        """Remove everything; a second signal meanwhile does not stop the removal."""
        if threading.current_thread() is not threading.main_thread():
            self._close()
            return
        interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)
        try:
            self._close()
        finally:
            for number, handler in {signal.SIGINT: interrupt, **self._handlers}.items():
                signal.signal(number, handler)

    def _close(self) -> None:
        try:
            self._stack.close()
        finally:
            _remove(self.prefix, self.directory)

    def _build_underlay(self) -> None:
        router, forwarding = (
            (OUTSIDE6_ROUTER, "ipv6/conf/all/forwarding") if self.ipv6 else (OUTSIDE_ROUTER, "ipv4/ip_forward")
        )
        for name in (self.router, self.outside):
            netns.add(name)
            self._prepare(name, "default")
        netns.add_bridge(self.router, "underlay", self.underlay, self.mtu)
        netns.ip(
            self.router,
            f"link add outside type veth peer name uplink netns {self.outside}",
            f"address add {router} dev outside",
            "link set outside up",
        )
        netns.write_sysctl(self.router, f"net/{forwarding}", 1)
        netns.ip(
            self.outside,
            f"address add {self.outside_address} dev uplink",
            "link set uplink up",
            f"route add {self.underlay.network} via {router.ip}",
        )

    def _prepare(self, namespace: str, interface: str) -> None:
        """Without IPv6 there is no neighbour discovery in the captures; with it, addresses are good at once."""
        setting, value = ("accept_dad", 0) if self.ipv6 else ("disable_ipv6", 1)
        netns.write_sysctl(namespace, f"net/ipv6/conf/{interface}/{setting}", value)

    def node(self, name: str, behind: NatBox | None = None) -> Node:
        """A new node on the underlay, or behind a NAT; its default route leads outside.  The daemon is not started."""
        address = self._next_address() if behind is None else behind.next_address()
        node = Node(name, self.prefix, self.directory / name, address)
        netns.add(node.netns)
        if behind is None:
            self._plug(node.netns, name, address, bridge=(self.router, "underlay"), gateway=self.underlay.ip)
        else:
            self._plug(node.netns, name, address, bridge=(behind.netns, "inside"), gateway=INSIDE.ip)
        self.nodes.append(node)
        self._stack.callback(node.close)
        return node

    def nat(self, name: str, *, symmetric: bool = False) -> NatBox:
        """A new NAT on the underlay, for nodes behind it."""
        address = self._next_address()
        assert isinstance(address, IPv4Interface), "nobody needs a NAT in a laboratory of IPv6"
        box = NatBox(f"{self.prefix}-{name}", address.ip, symmetric=symmetric)
        self._plug(box.netns, name, address, bridge=(self.router, "underlay"), gateway=self.underlay.ip)
        return box

    def _next_address(self) -> IPv4Interface | IPv6Interface:
        self._hosts += 1
        return type(self.underlay)((self.underlay.network[self._hosts], self.underlay.network.prefixlen))

    def _plug(
        self, namespace: str, name: str, address: Interface, *, bridge: tuple[str, str], gateway: Address
    ) -> None:
        """Join a namespace by its `uplink` to a bridge in another one, with a default route to the gateway."""
        router, master = bridge
        size = f"mtu {self.mtu} {CABLE}"
        netns.ip(
            router,
            f"link add name {name} {size} type veth peer name uplink {size} netns {namespace}",
            f"link set dev {name} master {master} up",
        )
        self._prepare(namespace, "uplink")
        netns.ip(
            namespace, f"address add {address} dev uplink", "link set uplink up", f"route add default via {gateway}"
        )

    def container(self) -> Container:
        """A new process in a network namespace of its own, with nothing in it but a loopback that is down."""
        return self._stack.enter_context(Container(self.prefix))

    def crun_container(self) -> CrunContainer:
        """A new container of a real runtime, with nothing in its network but a loopback."""
        self._bundles += 1
        return self._stack.enter_context(CrunContainer(self.prefix, self.directory / f"crun{self._bundles}"))

    def capture(self, place: Node | Container, interface: str = "uplink") -> Capture:
        """A recorder of what crosses an interface of a node or container; record with `with capture: ...`."""
        return Capture(place.namespace, interface, self.directory)

    def open_outside(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A socket of the host outside."""
        return netns.open_socket(netns.DIRECTORY / self.outside, family, kind)
