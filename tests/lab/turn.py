"""TURN servers and clients for tests and benchmarks: coturn, our own relay as a process, and our client on a socket.

Owns: how they are started in a node's namespace, and ended.  Must not know: what is tested with them.

    python -m lab.turn ADDRESS PORT MAX_SESSIONS CREDENTIAL [REFUSED ...]

is the relay's process; it says "ready" and relays until it is told to end.
"""

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import NamedTuple

import uvloop

from lab.node import Node
from lab.patience import LIMIT, until
from lab.processes import environment, run
from overlayd.daemon.nat.relay import Relay
from overlayd.proto.turn import Allocated, Event, Received, TurnClient
from overlayd.proto.wireguard import Address, Endpoint
from overlayd.wire import RelayServer

PORT, TLS_PORT = 3478, 5349
USERNAME, CREDENTIAL, REALM = "node-1", "correct-horse", "example.org"


class Certificate(NamedTuple):
    """A server's certificate and key, in PEM; it vouches for itself."""

    file: Path
    key: Path


def make_certificate(directory: Path, name: str, *addresses: str) -> Certificate:
    """For a server of this name, and at these addresses."""
    made = Certificate(directory / f"{name}.pem", directory / f"{name}.key")
    names = ",".join([f"DNS:{name}", *(f"IP:{address}" for address in addresses)])
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-keyout", str(made.key)]
    run(
        [
            "openssl",
            "req",
            "-x509",
            *key,
            "-out",
            str(made.file),
            "-subj",
            f"/CN={name}",
            "-addext",
            f"subjectAltName={names}",
        ]
    )
    return made


@contextlib.contextmanager
def coturn(
    node: Node, directory: Path, *options: str, connections: Certificate | None = None
) -> Iterator[subprocess.Popen[str]]:
    """coturn on the node's address, one thread, with nothing outside `directory`: UDP only, or also connections to the
    same port, and with TLS and this certificate to TLS_PORT.
    """
    address = str(node.address)
    argv = ["turnserver", "-n", "-L", address, "-E", address, "-p", str(PORT), "-m", "1", "-a", "-r", REALM]
    argv += ["-u", f"{USERNAME}:{CREDENTIAL}", "--no-dtls", "--no-tcp-relay", "--no-cli"]
    if connections is None:
        argv += ["--no-tcp", "--no-tls"]
    else:
        argv += ["--tls-listening-port", str(TLS_PORT), "--cert", str(connections.file), "--pkey", str(connections.key)]
    argv += ["--pidfile", str(directory / "turnserver.pid"), "--userdb", str(directory / "turndb")]
    argv += ["-l", str(directory / "turnserver.log"), "--simple-log", *options]
    with _process(node, argv, directory / "turnserver.out") as process:
        _wait(lambda: bool(_udp_listeners(process.pid, PORT)), "coturn", directory / "turnserver.log")
        yield process


@contextlib.contextmanager
def our_relay(
    node: Node, directory: Path, *, max_sessions: int = 100, refused: Sequence[str] = ()
) -> Iterator[subprocess.Popen[str]]:
    """Our relay on the node's address."""
    argv = [sys.executable, "-m", "lab.turn", str(node.address), str(PORT), str(max_sessions), CREDENTIAL, *refused]
    log = directory / "relay.log"
    with _process(node, argv, log) as process:
        _wait(lambda: "ready" in log.read_text(), "the relay", log)
        yield process


@contextlib.contextmanager
def _process(node: Node, argv: Sequence[str], log: Path) -> Iterator[subprocess.Popen[str]]:
    with log.open("w") as out:
        process = subprocess.Popen(
            node.command(argv), stdout=out, stderr=subprocess.STDOUT, text=True, env=environment(node.prefix)
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(LIMIT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _udp_listeners(pid: int, port: int) -> list[str]:
    """The lines of the UDP sockets on a port in the namespace of a process."""
    suffix = f":{port:04X}"
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        tables = [Path(f"/proc/{pid}/net/{name}").read_text().splitlines() for name in ("udp", "udp6")]
        return [line for table in tables for line in table[1:] if line.split()[1].endswith(suffix)]
    return []


def _wait(ready: Callable[[], bool], name: str, log: Path) -> None:
    until(ready, lambda: f"{name} is not ready\n{log.read_text() if log.exists() else ''}")


class TurnSocket:
    """Our TURN client on a socket of a namespace; blocks while it waits.  A context manager."""

    def __init__(self, opened: socket.socket, server: tuple[str, int], credential: str = CREDENTIAL) -> None:
        self.socket = opened
        self.server = server
        family = 4 if opened.family == socket.AF_INET else 6
        new_id = partial(os.urandom, 12)
        self.client = TurnClient(USERNAME, credential, new_id, time.monotonic(), family=family)
        self.events: list[Event] = []

    def __enter__(self) -> "TurnSocket":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def flush(self) -> None:
        """Send what is due."""
        for datagram in self.client.datagrams_to_send(time.monotonic()):
            self.socket.sendto(datagram, self.server)

    def run(self, condition: Callable[[], bool], seconds: float = LIMIT) -> None:
        """Serve the client until something is so; TimeoutError if it never is."""
        deadline = time.monotonic() + seconds
        while True:
            self.flush()
            self.events += self.client.events()
            if condition():
                return
            now = time.monotonic()
            if now > deadline:
                raise TimeoutError(f"not within {seconds} s; events: {self.events}")
            due = self.client.next_timeout()
            pause = min(deadline - now, 0.5 if due is None else max(due - now, 0))
            if select.select([self.socket], [], [], pause)[0]:
                self.client.datagram_received(self.socket.recv(65536), time.monotonic())

    def allocate(self) -> Endpoint:
        """The relayed address."""
        self.run(lambda: bool(self.events))
        event = self.events[-1]
        if not isinstance(event, Allocated):
            raise AssertionError(event)
        return event.relayed

    def send(self, peer: tuple[Address, int], data: bytes) -> None:
        self.client.send(peer, data, time.monotonic())
        self.flush()

    def received(self, number: int) -> list[Received]:
        """The first `number` datagrams of peers."""
        self.run(lambda: len(self._received()) >= number)
        return self._received()

    def _received(self) -> list[Received]:
        return [event for event in self.events if isinstance(event, Received)]

    def release(self) -> None:
        """Give the allocation back, and wait for the server's word."""
        self.client.release(time.monotonic())
        self.run(lambda: self.client.next_timeout() is None)


async def _relay(arguments: Sequence[str]) -> None:
    address, port, max_sessions, credential, *refused = arguments
    config = RelayServer(int(port), address, int(max_sessions), credential)
    relay = Relay(config, [ip_network(text) for text in refused])
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    relay.start()
    print("ready", flush=True)
    await ended.wait()
    relay.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_relay(sys.argv[1:]))
