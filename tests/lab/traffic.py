"""Traffic between containers: echoes and bulk data.

Owns: sending, receiving and judging it.  Must not know: who built the path.
"""

import hashlib
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lab.patience import FACTOR, LIMIT, until
from lab.processes import environment

MARKER = b"overlayd-plaintext-marker"  # in every block that `transfer` sends; must never be seen outside the tunnel
BLOCK = (MARKER + bytes(range(256)) * 256)[: 64 * 1024]


class Place(Protocol):
    """Where traffic starts or ends: a node or a container."""

    def command(self, argv: Sequence[str]) -> list[str]: ...
    def open_socket(self, family: int = ..., kind: int = ...) -> socket.socket: ...


class Ping:
    """A running ping, `interval` seconds apart; `stop` ends it and tells what was lost."""

    def __init__(self, source: Place, destination: str, interval: float = 0.01, options: Sequence[str] = ()) -> None:
        self.process = subprocess.Popen(
            source.command(["ping", "-n", "-O", "-i", str(interval), *options, str(destination)]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(),
            start_new_session=True,
        )
        self.lines: list[str] = []
        self.received: set[int] = set()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if "bytes from" in line and (match := re.search(r"icmp_seq=(\d+)", line)):
                self.received.add(int(match[1]))

    def wait_for(self, echoes: int, timeout: float = LIMIT) -> None:
        """Wait until this many more echoes came back; TimeoutError when they do not, or ping ends."""
        goal = len(self.received) + echoes

        def told() -> str:
            return f"{len(self.received)} of {goal} echoes\n{''.join(self.lines[-5:])}"

        def came() -> bool:
            if self.process.poll() is not None:
                raise TimeoutError(told())
            return len(self.received) >= goal

        until(came, told, seconds=timeout)

    def stop(self) -> list[int]:
        """End it; return the sequence numbers that were sent before the last answered one and never answered."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.process.wait(LIMIT)
        self._reader.join(LIMIT)
        assert self.process.stdout is not None
        self.process.stdout.close()
        # Sequence numbers are 16 bits wide: no more than 65,535 echoes a ping, eleven minutes at 10 ms.
        return sorted(set(range(1, max(self.received, default=0))) - self.received)

    def round_trip(self) -> float:
        """The mean round-trip time in milliseconds, from ping's own summary."""
        summary = re.search(r"rtt min/avg/max/mdev = [\d.]+/([\d.]+)/", "".join(self.lines))
        assert summary, "".join(self.lines)
        return float(summary[1])


def ping(source: Place, destination: str, count: int = 5, options: Sequence[str] = ()) -> Ping:
    """Send `count` echoes; AssertionError unless every one was answered."""
    # With a deadline; else ping waits for the last echo no longer than twice what another one took.
    running = Ping(source, destination, 0.02, ["-c", str(count), "-w", f"{5 * FACTOR:g}", *options])
    try:
        running.process.wait(2 * LIMIT)
    finally:
        running.stop()
    assert running.received >= set(range(1, count + 1)), "".join(running.lines)
    return running


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
