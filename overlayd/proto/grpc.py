"""A gRPC client: a connection of HTTP/2 (RFC 9113) that carries one call, by h2.

Owns: the bytes of a call, and what the bytes of its answer are (grpc/doc/PROTOCOL-HTTP2.md).  Must not know: sockets,
or what is in a message.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from h2 import events as http2
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings

from overlayd.errors import ProtocolError

ALPN = "h2"  # what TLS calls HTTP/2

# Our own constants, bytes.
LARGEST_MESSAGE = 80 * 1024 * 1024
LARGEST_HEAD = 64 * 1024
WINDOW = 16 * 1024 * 1024  # that the server may send before it hears of us

_FIRST, _SETTINGS = 4, b"\4"  # an HTTP/2 server begins with a frame of this type, whose place is the fourth byte
_FRAME, _LARGEST_FRAME = 9, 1 << 14  # bytes of a frame's head; that it may hold, since we do not say otherwise
_PREFIX = 5  # bytes before a message: whether it is compressed, and its length
_UNKNOWN, _UNAVAILABLE = 2, 14  # grpc/status.h
_ESCAPED = re.compile(b"%([0-9A-Fa-f]{2})")

Headers = tuple[tuple[str, str], ...]


class Message(NamedTuple):
    """A message of the answer."""

    data: bytes


class End(NamedTuple):
    """The call has ended.  status: of grpc/status.h; reason: in words."""

    status: int
    reason: str


class NotSpoken(ProtocolError):
    """What answers is no server of gRPC."""


Event = Message | End


class Call:
    """The client's end of a connection.  authority: host and port; scheme: `http` or `https`."""

    def __init__(self, authority: str, scheme: str) -> None:
        self._whom = ((":authority", authority), (":scheme", scheme))
        self._connection = H2Connection(H2Configuration(client_side=True))
        self._stream = 0
        self._held = bytearray()
        self._first = b""  # of what the server said
        self._part = b""  # of a frame
        self._answered = False  # by gRPC
        self._ended = False

    def begin(self, path: str, message: bytes, metadata: Headers = ()) -> bytes:
        """The bytes of a call with its first message; our side stays open, since etcd ends a watch with it.  metadata:
        in small letters.
        """
        connection = self._connection
        settings = {
            SettingCodes.ENABLE_PUSH: 0,
            SettingCodes.INITIAL_WINDOW_SIZE: WINDOW,
            SettingCodes.MAX_HEADER_LIST_SIZE: LARGEST_HEAD,
        }
        connection.local_settings = Settings(client=True, initial_values=settings)
        connection.initiate_connection()
        connection.increment_flow_control_window(WINDOW)
        self._stream = connection.get_next_available_stream_id()
        kind = (("content-type", "application/grpc"), ("te", "trailers"))
        connection.send_headers(self._stream, [(":method", "POST"), (":path", path), *self._whom, *kind, *metadata])
        return self.say(message)

    def say(self, message: bytes) -> bytes:
        """The bytes of a further message."""
        try:
            self._connection.send_data(self._stream, b"\0" + len(message).to_bytes(4, "big") + message)
        except H2Error as error:
            raise ProtocolError(f"the server takes nothing more: {error}") from error
        return self.to_send()

    def to_send(self) -> bytes:
        """What the server has to be told since: that we got its bytes, its settings, its PING."""
        return bytes(self._connection.data_to_send())

    def receive(self, data: bytes) -> list[Event]:
        """What the bytes are; empty bytes: the server closed the connection.  Nothing follows an `End`.  NotSpoken:
        they are no gRPC.  ProtocolError: they were until now.
        """
        told: list[Event] = []
        if self._ended:
            return told
        self._first = (self._first + data[:_FIRST])[:_FIRST]
        if self._first[3:] not in (b"", _SETTINGS):
            raise NotSpoken("it speaks no HTTP/2")
        try:
            for frame in self._frames(data):
                for event in self._connection.receive_data(frame):
                    self._take(event, told)
                    if self._ended:
                        return told
        except H2Error as error:
            raise ProtocolError(f"the server speaks no HTTP/2 that we understand: {error}") from error
        if not data:
            if len(self._first) < _FIRST:
                raise NotSpoken("it hangs up when it is spoken to in HTTP/2")
            self._end(told, _UNAVAILABLE, "the server closed the connection")
        return told

    def _frames(self, data: bytes) -> Iterator[bytes]:
        """The frames that are complete, one after the other: h2 takes none behind a GOAWAY, where servers in Go send a
        PING, and would tell nothing of those before it then.
        """
        part, at = self._part + data, 0
        while len(part) - at >= _FRAME:
            length = int.from_bytes(part[at : at + 3], "big")
            if length > _LARGEST_FRAME:
                raise ProtocolError(f"the server sent a frame of {length} bytes, at most {_LARGEST_FRAME} allowed")
            end = at + _FRAME + length
            if end > len(part):
                break
            yield part[at:end]
            at = end
        self._part = part[at:]

    def _take(self, event: http2.Event, told: list[Event]) -> None:
        match event:
            case http2.DataReceived():
                self._connection.acknowledge_received_data(event.flow_controlled_length, self._stream)
                self._held += event.data
                told += self._messages()
            case http2.ResponseReceived():
                self._begin(dict(event.headers), told)
            case http2.TrailersReceived():
                self._end(told, *_status(dict(event.headers)))
            case http2.StreamEnded():
                self._end(told, _UNKNOWN, "the server ended the call, and does not say why")
            case http2.StreamReset():
                if event.error_code == ErrorCodes.HTTP_1_1_REQUIRED and not self._answered:
                    raise NotSpoken("it wants HTTP/1.1")
                self._end(told, _UNAVAILABLE, f"the server broke off the call ({_name(event.error_code)})")
            case http2.ConnectionTerminated():
                self._end(told, _UNAVAILABLE, f"the server closes the connection ({_name(event.error_code)})")
            case _:
                pass  # of flow control and the like: h2 does what is to be done

    def _begin(self, headers: dict[bytes, bytes], told: list[Event]) -> None:
        status, kind = headers.get(b":status", b""), headers.get(b"content-type", b"")
        if status != b"200" or not kind.startswith(b"application/grpc"):
            raise NotSpoken(f"its answer is no gRPC (HTTP status {_text(status)}, {_text(kind) or 'of no type'})")
        self._answered = True
        if b"grpc-status" in headers:
            self._end(told, *_status(headers))

    def _end(self, told: list[Event], status: int, reason: str) -> None:
        self._ended = True
        told.append(End(status, reason))

    def _messages(self) -> list[Message]:
        """Those that are complete."""
        messages, held, at = list[Message](), self._held, 0
        while len(held) - at >= _PREFIX:
            length = int.from_bytes(held[at + 1 : at + _PREFIX], "big")
            if held[at]:
                raise ProtocolError("the server sent a compressed message, which we did not ask for")
            if length > LARGEST_MESSAGE:
                raise ProtocolError(f"the server sent a message of more than {LARGEST_MESSAGE} bytes")
            end = at + _PREFIX + length
            if len(held) < end:
                break
            messages.append(Message(bytes(held[at + _PREFIX : end])))
            at = end
        del held[:at]
        return messages


def _status(headers: dict[bytes, bytes]) -> tuple[int, str]:
    """The outcome that an answer's last headers tell."""
    status = headers.get(b"grpc-status", b"")
    reason = _ESCAPED.sub(lambda found: bytes((int(found[1], 16),)), headers.get(b"grpc-message", b""))
    return int(status) if status.isdigit() and len(status) < 4 else _UNKNOWN, _text(reason)


def _name(code: ErrorCodes | int | None) -> str:
    """As RFC 9113 has it."""
    return code.name if isinstance(code, ErrorCodes) else f"error {code}"


def _text(value: bytes) -> str:
    return value[:500].decode(errors="replace")
