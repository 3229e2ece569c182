"""The wire as an orchestrator in another language speaks it: a blocking socket, struct and json.

Owns: a second implementation of wire.md's framing, on purpose independent of overlayd's, so that tests of the contract
cannot share its mistakes.  Must not know: overlayd.
"""

import itertools
import json
import socket
import struct
from pathlib import Path
from types import TracebackType
from typing import Any

LENGTH = struct.Struct("<I")


class Refused(Exception):
    """The daemon answered `err`; the text is its message."""


def frame(body: bytes) -> bytes:
    """`body` behind its length."""
    return LENGTH.pack(len(body)) + body


def request_frame(number: int, op: str, **keys: Any) -> bytes:
    """The frame of one request."""
    return frame(json.dumps({"frame": "request", "id": number, "request": {"op": op, **keys}}).encode())


class Connection:
    """One connection to a daemon; requests one at a time through `request`, or bytes through `send` and messages
    through `receive`.
    """

    def __init__(self, path: Path, timeout: float = 30) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(timeout)
        try:
            self.socket.connect(str(path))
        except BaseException:
            self.socket.close()
            raise
        self.events: list[dict[str, Any]] = []
        self._numbers = itertools.count(1)
        self._buffer = self.socket.makefile("rb")

    def __enter__(self) -> "Connection":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._buffer.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Write bytes as they are."""
        self.socket.sendall(data)

    def receive(self) -> dict[str, Any]:
        """The next message that is not an event; EOFError when the daemon hangs up."""
        while True:
            try:
                header = self._buffer.read(LENGTH.size)
                body = self._buffer.read(LENGTH.unpack(header)[0]) if len(header) == LENGTH.size else b""
            except ConnectionResetError as error:
                raise EOFError("the daemon reset the connection") from error
            if not body:
                raise EOFError("the daemon closed the connection")
            message: dict[str, Any] = json.loads(body)
            if message["frame"] != "event":
                return message
            self.events.append(message)

    def request(self, op: str, **keys: Any) -> dict[str, Any]:
        """Send one request and return its response's keys; Refused when that is `err`."""
        number = next(self._numbers)
        self.send(request_frame(number, op, **keys))
        message = self.receive()
        assert (message["frame"], message["id"]) == ("response", number), message
        response: dict[str, Any] = message["response"]
        if response["result"] == "err":
            raise Refused(response["message"])
        return response
