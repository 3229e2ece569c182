"""Serving the page to a browser on this machine, and to nobody else.

Owns: as much of HTTP/1.1 (RFC 9112) as that takes, and who is answered.  Must not know: what the answers hold.

Three things keep others out.  The socket is on the loopback.  A name that leads there by another one's DNS (rebinding)
is told by the Host header.  And what the daemon says is given only for a token that the page has from the fragment of
its address, which a browser sends to nobody: other users of this machine do not have it, nor other pages.
"""

import asyncio
import base64
import hashlib
import re
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from importlib.resources import files
from typing import NamedTuple
from urllib.parse import parse_qs

from overlayd.errors import OverlaydError

# Our own constants.
LONGEST = 8192  # bytes of a request's head
PATIENCE = 10.0  # seconds for a request to come, and as many for its answer to be read
MOST = 64  # connections at once, before the oldest that has asked nothing has to go

HOST = "127.0.0.1"
LOCAL = {"127.0.0.1", "localhost", "[::1]"}  # with any port: it may be forwarded by ssh -L

Query = dict[str, str]
Answer = Callable[[Query], Awaitable[bytes]]
Feed = Callable[[], AsyncGenerator[bytes, None]]

_REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found"}
_REASONS |= {405: "Method Not Allowed", 421: "Misdirected Request", 503: "Service Unavailable"}


class _Request(NamedTuple):
    """headers: names in lower case."""

    method: str
    path: str
    query: Query
    headers: dict[str, str]


class _Refused(Exception):
    """The status to answer with; the message is for a person."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


class Site:
    """The page, and beside it answers and feeds (lines that come as they come), by their paths."""

    def __init__(self, answers: dict[str, Answer], feeds: dict[str, Feed]) -> None:
        self.token = secrets.token_urlsafe(24)
        self._answers = answers
        self._feeds = feeds
        self._page = (files("overlayd.web") / "page.html").read_bytes()
        self._policy = _policy(self._page.decode())
        self._open: dict[asyncio.StreamWriter, None] = {}  # the oldest first
        self._asked: set[asyncio.StreamWriter] = set()  # those of them whose request has come

    async def serve(self, port: int, ready: Callable[[str], None]) -> None:
        """Serve until cancelled.  port: 0 for any; ready: told the address to open.  OSError: it cannot be had."""
        server = await asyncio.start_server(self._connected, HOST, port, limit=LONGEST)
        async with server:
            ready(f"http://{HOST}:{server.sockets[0].getsockname()[1]}/#{self.token}")
            await server.serve_forever()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._make_room()
        self._open[writer] = None
        try:
            await self._converse(reader, writer)
            writer.close()
            async with asyncio.timeout(PATIENCE):
                await writer.wait_closed()
        except (ConnectionError, TimeoutError, asyncio.IncompleteReadError):
            pass  # who has gone, or does not read, needs no answer
        finally:
            writer.transport.abort()
            self._open.pop(writer, None)
            self._asked.discard(writer)

    def _make_room(self) -> None:
        """Any program of this machine can connect: who asks nothing must not keep the browser out."""
        if len(self._open) >= MOST:
            oldest = next((each for each in self._open if each not in self._asked), next(iter(self._open)))
            del self._open[oldest]
            oldest.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                head = await reader.readuntil(b"\r\n\r\n")
            self._asked.add(writer)
            request = _parse(head)
            self._admit(request)
            if feed := self._feeds.get(request.path):
                await self._pour(feed, reader, writer)
                return
            kind, body = await self._respond(request)
            self._write(writer, 200, kind, body)
        except asyncio.LimitOverrunError:
            self._write(writer, 400, "text/plain", b"too long\n")
        except _Refused as refused:
            self._write(writer, refused.status, "text/plain", f"{refused}\n".encode())
        except OverlaydError as error:
            self._write(writer, 503, "text/plain", f"{error}\n".encode())

    def _admit(self, request: _Request) -> None:
        """Raises unless this request is for us, of our page, and of somebody who may."""
        if re.sub(r":\d+$", "", request.headers.get("host", "")) not in LOCAL:
            raise _Refused(421, f"this is served to {HOST} and localhost alone")
        if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise _Refused(403, "another page asks")
        if request.method != "GET":
            raise _Refused(405, "GET only")
        if request.path != "/":
            given = request.headers.get("authorization", "").encode()
            if not secrets.compare_digest(given, f"Bearer {self.token}".encode()):
                raise _Refused(401, "open the address that overlayctl web printed, with all that follows the #")

    async def _respond(self, request: _Request) -> tuple[str, bytes]:
        if request.path == "/":
            return "text/html; charset=utf-8", self._page
        answer = self._answers.get(request.path)
        if answer is None:
            raise _Refused(404, "nothing is here")
        return "application/json", await answer(request.query)

    async def _pour(self, feed: Feed, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Send a feed's lines until it ends, or nobody reads.  OverlaydError when it does not even begin."""
        lines = feed()
        first = await anext(lines)
        writer.write(self._head(200, "application/x-ndjson") + first + b"\n")
        gone = asyncio.create_task(reader.read(1))  # a browser says nothing more, and hangs up
        sending = asyncio.create_task(_send(lines, writer))
        await asyncio.wait((sending, gone), return_when=asyncio.FIRST_COMPLETED)
        for task in (sending, gone):
            task.cancel()
        await asyncio.wait((sending, gone))
        await lines.aclose()

    def _write(self, writer: asyncio.StreamWriter, status: int, kind: str, body: bytes) -> None:
        writer.write(self._head(status, kind, len(body)) + body)

    def _head(self, status: int, kind: str, length: int | None = None) -> bytes:
        lines = [
            f"HTTP/1.1 {status} {_REASONS[status]}",
            f"Content-Type: {kind}",
            *([f"Content-Length: {length}"] if length is not None else []),
            "Connection: close",
            "Cache-Control: no-store",
            f"Content-Security-Policy: {self._policy}",
            "Cross-Origin-Opener-Policy: same-origin",
            "Cross-Origin-Resource-Policy: same-origin",
            "Referrer-Policy: no-referrer",
            "X-Content-Type-Options: nosniff",
        ]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def _send(lines: AsyncGenerator[bytes, None], writer: asyncio.StreamWriter) -> None:
    with suppress(OverlaydError, ConnectionError):  # the page sees the end, and asks again
        async for line in lines:
            writer.write(line + b"\n")
            await writer.drain()


def _policy(page: str) -> str:
    """Exactly the script and the style that the page has in it, and requests to where it is from."""
    sources = []
    for kind in ("script", "style"):
        (text,) = re.findall(f"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        sources.append(f"{kind}-src 'sha256-{digest}'")
    others = "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return f"default-src 'none'; {'; '.join(sources)}; {others}"


def _parse(head: bytes) -> _Request:
    first, *rest = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise _Refused(400, "not a request of HTTP/1.1")
    path, _, query = words[1].partition("?")
    headers: dict[str, str] = {}
    for line in filter(None, rest):
        name, colon, value = line.partition(":")
        if not colon or name.lower() in headers:  # of two Host headers neither is to be believed
            raise _Refused(400, f"the header {name!r} is none, or stands twice")
        headers[name.lower()] = value.strip()
    return _Request(words[0], path, {name: values[-1] for name, values in parse_qs(query).items()}, headers)
