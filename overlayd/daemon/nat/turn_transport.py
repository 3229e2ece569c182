"""How a dialogue with a TURN server travels: in datagrams, or through a connection, with TLS or without.

Owns: the sockets, and which certificates are accepted.  Must not know: what the messages say (`turn_connection`), or
which servers there are (`allocation`).

Networks that let no UDP out are passed through a connection.  Tunnels in it are slower where packets are lost, since
what comes behind waits for what is sent again.
"""

import asyncio
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol, cast

from overlayd.daemon.nat.loopback import AT_ONCE, DATAGRAM, enlarge_buffers
from overlayd.daemon.tls import client_context
from overlayd.errors import ProtocolError
from overlayd.model.candidates import Endpoint
from overlayd.proto import turn_stream

# Our own constants.
PATIENCE = 8.0  # seconds for a connection, and for TLS on it
BUFFER = 1 << 18  # bytes of a connection that the kernel holds for sending: more would only be late
UNSENT = 1 << 16  # bytes that wait for the kernel; then data is dropped, as a socket for datagrams would

Received = Callable[[Sequence[bytes]], None]
Lost = Callable[[str], None]


class Transport(Protocol):
    """stream: nothing is lost on the way, but all of it may be."""

    stream: bool

    def start(self, received: Received, lost: Lost) -> None:
        """received: called with messages of the server.  lost: called with the reason when it cannot be reached; of a
        stream that is once, and for good.
        """

    def send(self, message: bytes) -> None: ...

    def close(self) -> None:
        """Idempotent.  What was sent before still leaves."""


class Datagrams:
    """A socket that is connected to `server`.  OSError: there is no way to it."""

    stream = False

    def __init__(self, server: Endpoint) -> None:
        family = socket.AF_INET if server[0].version == 4 else socket.AF_INET6
        self._socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            enlarge_buffers(self._socket)
            self._socket.connect((str(server[0]), server[1]))
        except OSError:
            self._socket.close()
            raise

    def start(self, received: Received, lost: Lost) -> None:
        asyncio.get_running_loop().add_reader(self._socket, self._read, received, lost)

    def send(self, message: bytes) -> None:
        with suppress(OSError):  # a full buffer or no route: as lost on the way
            self._socket.send(message)

    def close(self) -> None:
        if self._socket.fileno() != -1:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()

    def _read(self, received: Received, lost: Lost) -> None:
        messages = []
        for _ in range(AT_ONCE):
            try:
                messages.append(self._socket.recv(DATAGRAM))
            except BlockingIOError:
                break
            except OSError as error:  # nobody listens there now
                lost(os.strerror(error.errno or 0))
        received(messages)


class Connection(asyncio.Protocol):
    """A connection to a server; `connect` makes one."""

    stream = True

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._unframer = turn_stream.Unframer()
        self._received: Received | None = None
        self._lost: Lost | None = None

    def start(self, received: Received, lost: Lost) -> None:
        self._received, self._lost = received, lost
        if self._transport is None or self._transport.is_closing():
            asyncio.get_running_loop().call_soon(self._end, "the server has closed the connection")

    def send(self, message: bytes) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if transport.get_write_buffer_size() < UNSENT or not turn_stream.may_be_dropped(message):
            transport.write(message)

    def close(self) -> None:
        self._received = self._lost = None
        if self._transport is not None:
            self._transport.close()

    # --- what the loop tells ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            messages = list(self._unframer.feed(data))
        except ProtocolError as error:
            self._end(str(error))
            if self._transport is not None:
                self._transport.abort()
            return
        if self._received is not None:
            self._received(messages)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(f"the connection is lost: {words(error)}" if error is not None else "the server has hung up")

    def _end(self, reason: str) -> None:
        lost, self._lost = self._lost, None
        if lost is not None:
            lost(reason)


async def connect(server: Endpoint, *, tls: bool, host: str, ca_file: str) -> Connection:
    """Connect to a server.

    tls: with a certificate for `host`, a name or an address, that is signed by somebody in `ca_file` (PEM), or if that
    is empty by somebody whom this host trusts.  OSError says why there is no connection, `words` puts it in words.
    """
    loop = asyncio.get_running_loop()
    # In a thread, and again each time: it reads files, which may have been replaced.
    context = await asyncio.to_thread(_context, ca_file) if tls else None
    opened = socket.socket(
        socket.AF_INET if server[0].version == 4 else socket.AF_INET6,
        socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
    )
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        async with asyncio.timeout(PATIENCE):
            await loop.sock_connect(opened, (str(server[0]), server[1]))
            _, connection = await loop.create_connection(
                Connection, sock=opened, ssl=context, server_hostname=host if tls else None
            )
    except BaseException:
        opened.close()
        raise
    return connection


def words(error: Exception) -> str:
    """What is wrong with a connection, and for a certificate what to do."""
    match error:
        case ssl.SSLCertVerificationError():
            return (
                f"the server's certificate is not accepted: {error.verify_message.rstrip('.')}; name the file with "
                "its issuer in ca_file, or the host that it is for in addr"
            )
        case ssl.SSLError():
            return f"TLS fails: {(error.reason or str(error)).lower().replace('_', ' ')}"
        case TimeoutError() if error.errno is None:
            return "no answer"
        case OSError() if error.errno:
            named = f"{error.filename}: " if error.filename else ""
            return f"{named}{os.strerror(error.errno)}"
        case _:
            return str(error) or type(error).__name__


def _context(ca_file: str) -> ssl.SSLContext:
    """OSError: the file cannot be read, or has no certificate."""
    try:
        return client_context(ca_file)
    except ssl.SSLError:
        raise OSError(f"ca_file {ca_file} has no certificate in PEM") from None
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"ca_file {ca_file}") from None
