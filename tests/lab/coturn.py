"""coturn, the STUN and TURN server that everybody uses, in a namespace of the laboratory.

Owns: its process and its configuration.  Must not know: who asks it.
"""

import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

from lab import netns
from lab.processes import environment

PROGRAM = "turnserver"
PORT = 3478
USERNAME, CREDENTIAL = "node", "a secret of the laboratory"
_BINDING = bytes.fromhex("00010000 2112a442") + b"is it there?"  # RFC 8489, section 5


class Coturn:
    """A context manager.  addresses: of the namespace, at least one; it listens on all, and relays from the first."""

    def __init__(self, namespace: str, addresses: list[str], directory: Path, prefix: str) -> None:
        self.servers = [f"{address}:{PORT}" for address in addresses]
        self.turn = {"addr": self.servers[0], "username": USERNAME, "credential": CREDENTIAL}
        self._namespace = namespace
        self._addresses = addresses
        self._directory = directory
        self._prefix = prefix

    def __enter__(self) -> "Coturn":
        log = self._directory / "coturn.log"
        options = [
            *("-n", "--no-tls", "--no-dtls", "--no-cli", "--no-tcp", "--fingerprint", "--lt-cred-mech"),
            *(f"--listening-ip={address}" for address in self._addresses),
            *(f"--listening-port={PORT}", f"--relay-ip={self._addresses[0]}", "--relay-threads=1"),
            *(f"--user={USERNAME}:{CREDENTIAL}", "--realm=lab", f"--log-file={log}", "--simple-log"),
            *(f"--userdb={self._directory / 'turndb'}", f"--pidfile={self._directory / 'turnserver.pid'}"),
        ]
        self._process = subprocess.Popen(
            ["ip", "netns", "exec", self._namespace, PROGRAM, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment(self._prefix),
        )
        try:
            for address in self._addresses:
                self._wait_for(address, log)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _wait_for(self, address: str, log: Path) -> None:
        deadline = time.monotonic() + 30
        with netns.open_socket(netns.DIRECTORY / self._namespace, kind=socket.SOCK_DGRAM) as asking:
            asking.settimeout(0.1)
            while True:
                try:
                    asking.sendto(_BINDING, (address, PORT))
                    if asking.recv(1500)[:2] == b"\x01\x01":
                        return
                except OSError:
                    if self._process.poll() is not None or time.monotonic() > deadline:
                        text = log.read_text(errors="replace") if log.exists() else "no log"
                        raise TimeoutError(f"{PROGRAM} does not answer: {text}") from None

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
