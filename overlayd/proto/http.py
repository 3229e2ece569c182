"""An HTTP/1.1 client: one connection, one request at a time (RFC 9112), by h11.

Owns: the bytes of a request, and what the bytes of its response are.  Must not know: sockets, or what requests are for.
"""

from typing import NamedTuple

import h11

from overlayd.errors import ProtocolError

# Our own constants, bytes.
LARGEST_LINE = 80 * 1024 * 1024  # a page of 500 values of 64 KiB in base64, and what is around them
LARGEST_HEAD = 64 * 1024


class Head(NamedTuple):
    """The beginning of a response.  status: 200 to 599."""

    status: int


class Body(NamedTuple):
    """A part of the response's body."""

    data: bytes


class End(NamedTuple):
    """The response is complete.  reusable: the connection takes another request."""

    reusable: bool


Event = Head | Body | End


class Client:
    """The client's end of a connection.  host: of the Host header."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=LARGEST_HEAD)

    def post(self, path: str, body: bytes, headers: tuple[tuple[str, str], ...] = ()) -> bytes:
        """The bytes of a POST request of JSON.  Only after `End` of the one before, if that was reusable."""
        return self.request("POST", path, body, (("Content-Type", "application/json"), *headers))

    def request(self, method: str, path: str, body: bytes = b"", headers: tuple[tuple[str, str], ...] = ()) -> bytes:
        """The bytes of any request, under the same condition.  headers: beside the host and the length."""
        if self._connection.our_state is h11.DONE:
            self._connection.start_next_cycle()
        length = (("Content-Length", str(len(body))),) if body else ()
        head = h11.Request(method=method, target=path, headers=[("Host", self._host), *length, *headers])
        send = self._connection.send
        parts = (send(head), send(h11.Data(data=body)), send(h11.EndOfMessage()))
        return b"".join(part for part in parts if part)

    def receive(self, data: bytes) -> list[Event]:
        """What the bytes are; empty bytes: the server closed the connection.  ProtocolError: they are no HTTP, or the
        response was cut short.
        """
        events: list[Event] = []
        try:
            self._connection.receive_data(data)
            while True:
                event = self._connection.next_event()
                if isinstance(event, h11.Response):
                    events.append(Head(event.status_code))
                elif isinstance(event, h11.Data):
                    events.append(Body(bytes(event.data)))
                elif isinstance(event, h11.EndOfMessage):
                    events.append(End(self._connection.their_state is h11.DONE))
                    return events
                elif event is h11.NEED_DATA or event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                    return events
        except (h11.RemoteProtocolError, h11.LocalProtocolError) as error:
            raise ProtocolError(f"the server speaks no HTTP/1.1 that we understand: {error}") from error


class Lines:
    """Lines of a body that comes in parts; each part may hold many, or a piece of one."""

    def __init__(self, largest: int = LARGEST_LINE) -> None:
        self._largest = largest
        self._parts: list[bytes] = []
        self._held = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are complete now, without their ends, empty ones left out.  ProtocolError: one is too long."""
        *complete, rest = data.split(b"\n")
        if complete:
            complete[0] = b"".join((*self._parts, complete[0]))
            self._parts, self._held = [], 0
        if rest:
            self._parts.append(rest)
            self._held += len(rest)
        if self._held > self._largest:
            raise ProtocolError(f"the server sent a line of more than {self._largest} bytes")
        return [line for line in complete if line]
