"""Where a monitoring system asks, by HTTP: /metrics, /healthz, /readyz.

Owns: the socket, and as much of HTTP/1.1 (RFC 9112) as a GET takes.  Must not know: what is measured.
"""

import asyncio
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import cast

from overlayd.daemon.tasks import Spawn
from overlayd.errors import StateError
from overlayd.proto.exposition import CONTENT_TYPE

log = logging.getLogger(__name__)

# Our own constants.
LONGEST = 8192  # bytes of a request's head
MOST = 16  # connections at once
PATIENCE = 10.0  # seconds for a request to come and its answer to be read
IDLE = "the oldest that has asked nothing is closed, or that does not read its answer"

PLAIN = "text/plain; charset=utf-8"
REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}

Answer = tuple[int, str, str]  # the status, the type of the body, the body


class Endpoint:
    """metrics: makes the body of /metrics.  readiness: why this node is not ready, empty when it is."""

    def __init__(self, metrics: Callable[[], Awaitable[str]], readiness: Callable[[], str], spawn: Spawn) -> None:
        self._metrics = metrics
        self._readiness = readiness
        self._spawn = spawn
        self.connections: dict[_Connection, None] = {}  # the oldest first

    @asynccontextmanager
    async def serving(self, place: str) -> AsyncIterator[None]:
        """Serve until the block ends.  place: see `bind`.  StateError: it cannot be had."""
        listener = bind(place)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Connection(self), sock=listener)
        log.info("metrics at %s", place)
        try:
            yield
        finally:
            server.close()
            for connection in list(self.connections):
                connection.abort()
            _forget(place)

    def admit(self, newcomer: "_Connection") -> bool:
        """Make room for a connection: the first of those that have asked nothing, or else do not read what
        they were told, has to go.
        """
        if len(self.connections) >= MOST:
            idle = next((each for each in self.connections if not each.asked), None)
            idle = idle or next((each for each in self.connections if each.told), None)
            log.warning("metrics: %d connections at once: %s", MOST, "a new one is refused" if idle is None else IDLE)
            if idle is None:
                return False
            del self.connections[idle]
            idle.abort()
        self.connections[newcomer] = None
        return True

    def answer(self, connection: "_Connection", head: bytes) -> None:
        """Answer a request by its head."""
        self._spawn(self._answered(connection, head))

    async def _answered(self, connection: "_Connection", head: bytes) -> None:
        try:
            answer = await self._respond(head)
        except OSError as error:  # of /proc: no descriptor, no memory
            log.warning("metrics: nothing can be measured now: %s", error)
            answer = 503, PLAIN, f"nothing can be measured now: {error}\n"
        connection.send(*answer)

    async def _respond(self, head: bytes) -> Answer:
        words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return 400, PLAIN, "not a request of HTTP/1.1\n"
        method, target = words[0], words[1].partition("?")[0]
        if method not in ("GET", "HEAD"):
            return 405, PLAIN, "GET only\n"
        match target:
            case "/metrics":
                return 200, CONTENT_TYPE, await self._metrics()
            case "/healthz":
                return 200, PLAIN, "ok\n"
            case "/readyz":
                reason = self._readiness()
                return (503, PLAIN, f"not ready: {reason}\n") if reason else (200, PLAIN, "ready\n")
        return 404, PLAIN, "there is /metrics, /healthz and /readyz\n"


class _Connection(asyncio.Protocol):
    """One request and its answer."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._head = b""
        self.asked = self.told = False
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._patience = asyncio.get_running_loop().call_later(PATIENCE, self.abort)
        if not self._endpoint.admit(self):
            self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._endpoint.connections.pop(self, None)
        self._patience.cancel()

    def data_received(self, data: bytes) -> None:
        if self.asked:
            return
        self._head += data
        if len(self._head) > LONGEST:
            self.asked = True
            self.send(400, PLAIN, "too long\n")
        elif b"\r\n\r\n" in self._head:
            self.asked = True
            self._endpoint.answer(self, self._head)

    def send(self, status: int, kind: str, text: str) -> None:
        """Send the answer, and hang up once it is out."""
        self.told = True
        body = text.encode()
        head = (
            f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n"
        )
        self._transport.write(head.encode() + (b"" if self._head.startswith(b"HEAD ") else body))
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()


def bind(place: str) -> socket.socket:
    """A listening socket: `ADDR:PORT`, `[ADDR]:PORT`, a port alone on the loopback, or the path of a Unix socket, which
    root and its group may use.  StateError: it cannot be had.
    """
    try:
        if place.startswith("/"):
            return _unix(place)
        host, _, port = place.rpartition(":")
        host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
        listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, int(port)))
            listener.listen()
        except BaseException:
            listener.close()
            raise
        return listener
    except OSError as error:
        raise StateError(f"metrics {place}: {error.strerror or error}") from error


def _forget(place: str) -> None:
    """Remove the file of a Unix socket."""
    if place.startswith("/"):
        with suppress(FileNotFoundError):
            Path(place).unlink()


def _unix(path: str) -> socket.socket:
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise StateError(f"metrics {path}: what is there is not a socket, and stays")
        Path(path).unlink()
    listener = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o117)
    try:
        listener.bind(path)
        listener.listen()
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(mask)
    return listener
