"""A connection to a server of HTTP: TCP, TLS or a Unix socket.

Owns: the socket from connect to close, deadlines, and how soon a dead one is noticed.  Must not know: what is asked
(`etcd`), or what HTTP looks like (`proto.http`, `proto.grpc`).
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator
from typing import NamedTuple
from urllib.parse import urlsplit

from overlayd.daemon.cluster import refusal
from overlayd.daemon.cluster.refusal import Files
from overlayd.daemon.tls import client_context
from overlayd.errors import ProtocolError
from overlayd.proto import grpc
from overlayd.proto.http import LARGEST_LINE, Body, Client, End, Head, Lines
from overlayd.proto.store_answers import Unavailable

# From the specification (cluster.md): TCP keepalive after 15 s, every 5 s, three times; nothing acknowledged for 20 s.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
_USER_TIMEOUT_MS = 20_000

CHUNK = 256 * 1024  # bytes read at once, our own

Headers = tuple[tuple[str, str], ...]


class Server(NamedTuple):
    """Where a server listens.  path: of a Unix socket, then there is no host; url: as it was written."""

    url: str
    host: str
    port: int
    tls: bool
    path: str = ""


class Answer(NamedTuple):
    """status: of HTTP."""

    status: int
    body: bytes


class BadStatus(Exception):
    """A stream was refused."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        super().__init__(f"HTTP status {answer.status}")


def read_url(text: str, default_port: int) -> Server:
    """`http://HOST[:PORT]`, `https://HOST[:PORT]` or `unix:PATH`.  ValueError says what is wrong with it."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        path = path.removeprefix("//") if path.startswith("///") else path
        if not path.startswith("/"):
            raise ValueError(f"{text}: a Unix socket is written unix:/PATH")
        return Server(text, "", 0, False, path)
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{text}: write http://HOST:PORT, https://HOST:PORT or unix:/PATH")
    if parts.path not in ("", "/") or parts.query or parts.fragment or parts.username:
        raise ValueError(f"{text}: nothing may stand behind HOST:PORT, and no user before it (--etcd-user)")
    try:
        return Server(text, parts.hostname, parts.port or default_port, parts.scheme == "https")
    except ValueError:
        raise ValueError(f"{text}: no port is so called: 1 to 65535") from None


class Connection:
    """An open connection; `Connection.open` makes one."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server: Server, files: Files
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._server = server
        self._files = files
        host = f"[{server.host}]" if ":" in server.host else server.host
        self._host = "localhost" if server.path else f"{host}:{server.port}"
        self._client = Client(self._host)
        self._answered = False  # ever
        self._call: grpc.Call
        self.reusable = True

    @classmethod
    async def open(cls, server: Server, files: Files, protocol: str = "http/1.1") -> "Connection":
        """protocol: that will be spoken, for TLS to agree on.  Unavailable: nobody listens there, or TLS refuses who
        does.
        """
        try:
            if server.path:
                return cls(*await asyncio.open_unix_connection(server.path), server, files)
            context = await asyncio.to_thread(_tls, files, protocol) if server.tls else None
            sock = await _connect(server)
            try:
                name = server.host if server.tls else None
                reader, writer = await asyncio.open_connection(sock=sock, ssl=context, server_hostname=name)
            except BaseException:
                sock.close()
                raise
        except OSError as error:
            raise Unavailable(f"{server.url}: {refusal.of_connection(error, files, tls=server.tls)}") from error
        return cls(reader, writer, server, files)

    async def post(self, path: str, body: bytes, headers: Headers = ()) -> Answer:
        """A request and its answer.  Unavailable: the connection broke; whether the request was done is not known."""
        self.reusable = False
        status, parts, size = 0, list[bytes](), 0
        async for event in self._exchange(path, body, headers):
            if isinstance(event, Head):
                status = event.status
            elif isinstance(event, Body):
                parts.append(event.data)
                size += len(event.data)
                if size > LARGEST_LINE:
                    raise ProtocolError(f"an answer of more than {LARGEST_LINE} bytes")
            else:
                self.reusable = event.reusable
        return Answer(status, b"".join(parts))

    async def lines(self, path: str, body: bytes, headers: Headers = ()) -> AsyncGenerator[bytes]:
        """A request whose answer is a stream: its lines, until the server ends it.  BadStatus: it is none."""
        self.reusable = False
        lines, status, refused = Lines(), 0, list[bytes]()
        async for event in self._exchange(path, body, headers):
            if isinstance(event, Head):
                status = event.status
            elif isinstance(event, Body) and status == 200:
                for line in lines.feed(event.data):
                    yield line
            elif isinstance(event, Body):
                refused.append(event.data)
        if status != 200:
            raise BadStatus(Answer(status, b"".join(refused)))

    def call(self, path: str, message: bytes, metadata: Headers = ()) -> None:
        """Begin a call of gRPC.  NotSpoken: the server speaks none."""
        self.reusable = False
        tls = self._writer.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() != grpc.ALPN:
            raise grpc.NotSpoken("its TLS offers no HTTP/2")
        if self.is_closed:  # uvloop's own error would be no OSError, here and below
            raise grpc.NotSpoken("it hangs up at once")
        self._call = grpc.Call(self._host, "https" if self._server.tls else "http")
        self._writer.write(self._call.begin(path, message, metadata))

    def say(self, message: bytes) -> None:
        """A further message of the call."""
        if not self.is_closed:
            self._writer.write(self._call.say(message))

    async def events(self) -> AsyncGenerator[grpc.Event]:
        """The answer to the call, as far as it has not been told: it ends with an `End`.  NotSpoken: as above."""
        try:
            while True:
                data = await self._reader.read(CHUNK)
                for event in self._call.receive(data):
                    yield event
                    if isinstance(event, grpc.End):
                        return
                if (owed := self._call.to_send()) and not self.is_closed:
                    self._writer.write(owed)
        except OSError as error:
            raise Unavailable(refusal.of_connection(error, self._files, tls=self._server.tls)) from error

    async def _exchange(self, path: str, body: bytes, headers: Headers) -> AsyncGenerator[Head | Body | End]:
        if self.is_closed:
            raise Unavailable("the server closed the connection")
        try:
            self._writer.write(self._client.post(path, body, headers))
            await self._writer.drain()
            while True:
                data = await self._reader.read(CHUNK)
                if not data and not self._answered:
                    hint = "" if self._server.tls or self._server.path else ", so it may be https://"
                    raise Unavailable(f"the server hangs up without an answer{hint}")
                self._answered = True
                for event in self._client.receive(data):
                    yield event
                    if isinstance(event, End):
                        return
                if not data:
                    raise Unavailable("the server closed the connection")
        except OSError as error:
            raise Unavailable(refusal.of_connection(error, self._files, tls=self._server.tls)) from error

    @property
    def is_closed(self) -> bool:
        """Whether the server has hung up, or we have."""
        return self._writer.transport.is_closing() or self._reader.at_eof()

    def close(self) -> None:
        """At once; whatever was asked is not waited for."""
        self.reusable = False
        self._writer.transport.abort()


async def _connect(server: Server) -> socket.socket:
    """A connected socket, to the first of the host's addresses that takes it."""
    loop = asyncio.get_running_loop()
    failure: OSError = OSError("the name has no address")
    # Not by uvloop, whose library ends the process when it cannot start its threads.
    found = await asyncio.to_thread(socket.getaddrinfo, server.host, server.port, type=socket.SOCK_STREAM)
    for family, kind, protocol, _, address in found:
        sock = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for option, value in _KEEPALIVE:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)
            await loop.sock_connect(sock, address)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure


def _tls(files: Files, protocol: str) -> ssl.SSLContext:
    """Read again for each connection, so that a renewed certificate counts from the next one on."""
    try:
        context = client_context(files.authority)
        if files.certificate:
            context.load_cert_chain(files.certificate, files.key or None)
        context.set_alpn_protocols([protocol])
    except OSError as error:
        raise Unavailable(refusal.of_files(files, error)) from error
    return context
