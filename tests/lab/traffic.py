"""Traffic between containers: echoes and bulk data.

Owns: sending, receiving and judging it.  Must not know: who built the path.
"""

import hashlib
import re
import secrets
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Protocol

from lab import netns
from lab.packets import ECHO_REPLY, echo_request
from lab.patience import FACTOR, LIMIT, until
from lab.processes import environment

MARKER = b"overlayd-plaintext-marker"  # in every block that `transfer` sends; must never be seen outside the tunnel
BLOCK = (MARKER + bytes(range(256)) * 256)[: 64 * 1024]


# What a raw socket is not given, a bit for each type of messages: all but replies (linux/icmp.h; RFC 3542, section 3.2)
SOL_RAW, FILTER = 255, 1
OTHERS = {
    version: ((1 << bits) - 1 - (1 << ECHO_REPLY[version])).to_bytes(bits // 8, "little")
    for version, bits in ((4, 32), (6, 256))
}
# Family and protocol of a raw socket, and the level of its filter
RAW = {
    4: (socket.AF_INET, socket.IPPROTO_ICMP, SOL_RAW),
    6: (socket.AF_INET6, socket.IPPROTO_ICMPV6, socket.IPPROTO_ICMPV6),
}


class Place(Protocol):
    """Where traffic starts or ends: a node or a container.  namespace: the file by which its network is entered."""

    namespace: Path

    def command(self, argv: Sequence[str]) -> list[str]: ...
    def open_socket(self, family: int = ..., kind: int = ...) -> socket.socket: ...


class Ping:
    """Echoes to a destination, `interval` seconds apart, until `stop`, which tells what was lost, or until the network
    of the source is gone.  received: the numbers of those that were answered; the first one is 1.  sent: the last one.

    A thread sends them, for the program ping spins before an echo when the next one is due within 10 ms: a test would
    take a processor from what it tests.
    """

    def __init__(self, source: Place, destination: str, interval: float = 0.01) -> None:
        self.received: set[int] = set()
        self.sent = 0
        self._destination = ip_address(destination)
        self._interval = interval
        self._namespace = source.namespace
        self._identifier = secrets.randbits(16)
        self._mark = secrets.token_bytes(48)
        self._error: OSError | None = None
        self._stopping = False
        version = self._destination.version
        family, protocol, level = RAW[version]
        self._socket = netns.open_socket(source.namespace, family, socket.SOCK_RAW, protocol)
        self._socket.setsockopt(level, FILTER, OTHERS[version])
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        due = time.monotonic()
        with self._socket:
            while not self._stopping and self._namespace.exists():
                self._send(self.sent + 1)
                self.sent += 1
                due = max(due + self._interval, time.monotonic())
                while (left := due - time.monotonic()) > 0 and self._receive(left):
                    pass
            while self._receive(0):
                pass

    def _send(self, number: int) -> None:
        """An echo that cannot be sent is lost, as one is that nobody answers."""
        payload = self._mark + struct.pack("!Q", number)
        request = echo_request(self._destination.version, self._identifier, payload)
        try:
            self._socket.sendto(request, (str(self._destination), 0))
        except OSError as error:
            self._error = error

    def _receive(self, seconds: float) -> bool:
        """Wait for a message so long; whether there was one."""
        self._socket.settimeout(seconds)
        try:
            message = self._socket.recv(1500)
        except (TimeoutError, BlockingIOError):
            return False
        if message[-56:-8] == self._mark:
            self.received.add(int.from_bytes(message[-8:], "big"))
        return True

    def wait_for(self, echoes: int, timeout: float = LIMIT) -> None:
        """Wait until this many more echoes came back; TimeoutError when they do not."""
        goal = len(self.received) + echoes
        until(
            lambda: len(self.received) >= goal,
            lambda: f"{len(self.received)} of {goal} echoes of {self._destination}; last error: {self._error}",
            seconds=timeout,
        )

    def stop(self) -> list[int]:
        """End it; return the numbers that were sent before the last answered one and never answered."""
        self._stopping = True
        self._thread.join(LIMIT)
        return sorted(set(range(1, max(self.received, default=0))) - self.received)


@dataclass(frozen=True, slots=True)
class Echoes:
    """received: the numbers of those that were answered; the first one is 1.  printed: what ping says of them."""

    received: set[int]
    printed: str

    def round_trip(self) -> float:
        """The mean round-trip time in milliseconds, from ping's own summary."""
        summary = re.search(r"rtt min/avg/max/mdev = [\d.]+/([\d.]+)/", self.printed)
        assert summary, self.printed
        return float(summary[1])


def ping(source: Place, destination: str, count: int = 5, options: Sequence[str] = (), seconds: float = 15) -> Echoes:
    """Send `count` echoes by the program ping; AssertionError unless every one was answered, after so many seconds."""
    # With a deadline; else ping waits for the last echo no longer than twice what another one took.
    argv = [
        "ping",
        "-n",
        "-O",
        "-i",
        "0.02",
        "-c",
        str(count),
        "-w",
        f"{seconds * FACTOR:g}",
        *options,
        str(destination),
    ]
    done = subprocess.run(
        source.command(argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=2 * LIMIT,
        env=environment(),
        check=False,
    )
    received = {int(number) for number in re.findall(r"bytes from .*icmp_seq=(\d+)", done.stdout)}
    assert received >= set(range(1, count + 1)), done.stdout
    return Echoes(received, done.stdout)


@dataclass(frozen=True, slots=True)
class Transfer:
    """size: bytes that arrived.  seconds: from connecting to the last byte.  client: who the receiver saw."""

    size: int
    seconds: float
    client: str

    @property
    def megabits(self) -> float:
        """Mbit/s."""
        return self.size * 8 / self.seconds / 1e6


def transfer(source: Place, destination: Place, address: str, megabytes: int = 100) -> Transfer:
    """Send so many million bytes over TCP and check that exactly these arrive; every block carries MARKER."""
    size = megabytes * 1_000_000
    sent, received = hashlib.blake2b(), hashlib.blake2b()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with destination.open_socket(family) as listener, source.open_socket(family) as sender:
        for end in (listener, sender):
            end.settimeout(LIMIT)
        listener.bind((address, 0))
        listener.listen(1)
        started = time.monotonic()
        sender.connect(listener.getsockname())
        receiver, client = listener.accept()

        def send() -> None:
            left = size
            with sender:
                while left:
                    block = BLOCK[: min(left, len(BLOCK))]
                    sender.sendall(block)
                    sent.update(block)
                    left -= len(block)

        thread = threading.Thread(target=send)
        thread.start()
        arrived = 0
        with receiver:
            receiver.settimeout(LIMIT)
            while data := receiver.recv(1 << 20):
                received.update(data)
                arrived += len(data)
        seconds = time.monotonic() - started
        thread.join()
    assert (arrived, received.digest()) == (size, sent.digest()), f"{arrived} of {size} bytes arrived, or other bytes"
    return Transfer(arrived, seconds, client[0])
