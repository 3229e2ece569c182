"""Requests that are so large that to decode them would hold others up.

Owns: the thread that decodes them, one after the other, and how much one may hold.  Must not know: connections, or what
a request does.

First the values are counted, without the interpreter.  A request of more than MOST_VALUES, or with a text of more than
LONGEST, is refused then, so that what comes after is done in milliseconds.
"""

import asyncio
from typing import NamedTuple

from overlayd import wire
from overlayd._fast.jsonscan import where_over
from overlayd.daemon.server.payload import read_payload
from overlayd.linux.threads import Pool
from overlayd.proto.envelope import Frame

# Our own constants.
LARGE = 64 * 1024  # bytes of a request's JSON
MOST_VALUES = 100_000  # 65,536 names of bridges, and as much again of whatever a later version adds

LONGEST = 1024 * 1024  # bytes of a text: 65,536 characters, with room for each to be written as two escapes


class Examined(NamedTuple):
    """to: where the answer goes.  request: what was asked, None for what gets no answer.  unknown: keys."""

    to: int | Frame
    request: wire.Request | wire.Err | None
    unknown: list[wire.UnknownKey]


class Examiner:
    """Decodes large requests in a worker thread."""

    def __init__(self) -> None:
        self._thread = Pool(1, "large requests")

    async def examine(self, body: memoryview | Frame) -> Examined:
        """Decode a JSON frame's body, or the payload of an envelope.  ProtocolError, NotARequest: as
        `wire.decode_request`.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, _examine, body)

    def close(self) -> None:
        """Let the thread go; nothing may be examined any more."""
        self._thread.shutdown(wait=False)


def _examine(body: memoryview | Frame) -> Examined:
    return _of_envelope(body) if isinstance(body, Frame) else _of_frame(body)


def _of_frame(body: memoryview) -> Examined:
    unknown: list[wire.UnknownKey] = []
    if (keys := where_over(body, MOST_VALUES, LONGEST)) is not None:
        return Examined(wire.decode_id(body), _too_large(keys[1:]), unknown)
    try:
        return Examined(*wire.decode_request(body, unknown.extend), unknown)
    except wire.BadRequest as error:
        return Examined(error.id, wire.Err(str(error), "bad_request"), unknown)


def _of_envelope(frame: Frame) -> Examined:
    unknown: list[wire.UnknownKey] = []
    if (keys := where_over(frame.payload, MOST_VALUES, LONGEST)) is not None:
        return Examined(frame, _too_large(keys), unknown)
    return Examined(frame, read_payload(frame, unknown.extend), unknown)


def _too_large(keys: list[bytes]) -> wire.Err:
    path = ".".join(["request", *(key[:40].decode("ascii", "backslashreplace") for key in keys)])
    what = f"{path}: too large: a request has at most {MOST_VALUES} values, and a text 1 MiB"
    return wire.Err(what, "too_large")
