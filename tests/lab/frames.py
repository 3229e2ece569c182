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

from lab.patience import LIMIT

LENGTH = struct.Struct("<I")


# What a client that asks for nothing else may hear, from the tables of the contract.
RESULTS = frozenset(
    {
        "ok",
        "ip",
        "attached",
        "guest_config",
        "bridge_name",
        "status",
        "nat_status",
        "pruned_bridges",
        "service_overlay",
        "edge_config",
        "edge_peers",
        "err",
    }
)
EVENTS = frozenset({"peer_health_changed", "nat_endpoint_changed"})
KINDS = RESULTS | EVENTS
# The answers to requests that are additions.
ANSWERS = {
    "doctor": "diagnosis",
    "list_dns": "dns",
    "query_dns": "dns_answer",
    "list": "listing",
    "hello": "hello",
    "renew_devices": "renewed",
}


class Undecodable(Exception):
    """The daemon sent a kind of message that was not asked for, which an existing client takes for a broken frame."""


class Refused(Exception):
    """The daemon answered `err`; the text is its message."""


def frame(body: bytes) -> bytes:
    """`body` behind its length."""
    return LENGTH.pack(len(body)) + body


def kind_of(message: dict[str, Any]) -> str:
    """The tag of the response or event in a frame."""
    kind: str = message["event"] if message["frame"] == "event" else message["response"]["result"]
    return kind


def request_frame(number: int, op: str, **keys: Any) -> bytes:
    """The frame of one request."""
    return frame(json.dumps({"frame": "request", "id": number, "request": {"op": op, **keys}}).encode())


class Connection:
    """One connection to a daemon; requests one at a time through `request`, or bytes through `send` and messages
    through `receive`.

    As the existing clients do, it fails on a kind of message that the contract does not have, unless the client asks
    for it: `further` has the kinds that this one asks for.
    """

    def __init__(self, path: Path, timeout: float = LIMIT) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(timeout)
        try:
            self.socket.connect(str(path))
        except BaseException:
            self.socket.close()
            raise
        self.events: list[dict[str, Any]] = []
        self.further: set[str] = set()
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
            kind = kind_of(message)
            if kind not in KINDS | self.further:
                raise Undecodable(f"the contract has no {kind!r}: {message}")
            if message["frame"] != "event":
                return message
            self.events.append(message)

    def request(self, op: str, **keys: Any) -> dict[str, Any]:
        """Send one request and return its response's keys; Refused when that is `err`."""
        number = next(self._numbers)
        if op in ANSWERS:
            self.further.add(ANSWERS[op])
        self.send(request_frame(number, op, **keys))
        message = self.receive()
        assert (message["frame"], message["id"]) == ("response", number), message
        response: dict[str, Any] = message["response"]
        if response["result"] == "err":
            raise Refused(response["message"])
        return response
