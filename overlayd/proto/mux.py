r"""One endpoint, several kinds of traffic: decides, message by message, who gets the front of a read buffer.

Owns: the order of that decision, and the detector that tells our JSON wire from envelopes.  Must not know: sockets,
what is in a payload, how a request is answered.

Generic: any daemon that speaks a wire of its own can serve identity probes and envelopes on the same socket with an
`EndpointMux` and a detector for that wire.  Here, one whose own wire is lines of text:

>>> from functools import partial
>>> from overlayd.proto import envelope, identity
>>> from overlayd.proto.mux import EndpointMux, Legacy, NeedMore, Payload, ProbeAnswered, Verdict
>>> me = identity.DaemonProcess(
...     pid=4242, exe_path="/usr/bin/lined", namespace_id="lined", path="/run/lined.sock",
...     started_at_unix_ms=1_700_000_000_000, boot_id="11111111-2222-3333-4444-555555555555",
...     exe_hash=bytes(32), exe_sha256=bytes(32),
... )
>>> mux = EndpointMux(
...     legacy=lambda buffer: Verdict.LEGACY if buffer[0] >= 0x20 else Verdict.ENVELOPE,
...     answer_probe=partial(identity.answer_probe, identity=identity.encode(me)),
...     served=frozenset({0xF0DE}),
... )
>>> def serve(buffer: bytearray) -> list[bytes]:
...     "Answer every complete message at the front of `buffer`; what is left over waits for more bytes."
...     answers = []
...     while True:
...         match mux.poll(buffer):
...             case NeedMore():
...                 return answers
...             case Legacy():
...                 line, found, _ = buffer.partition(b"\n")
...                 if not found:
...                     return answers
...                 answers.append(line.upper() + b"\n")
...                 del buffer[: len(line) + 1]
...             case ProbeAnswered(reply, consumed):
...                 answers.append(reply)
...                 del buffer[:consumed]
...             case Payload(frame, consumed):
...                 if frame.kind == envelope.KIND_REQUEST:
...                     answers.append(envelope.respond(frame, frame.payload.upper()))
...                 del buffer[:consumed]
>>> request = envelope.Frame(version=1, protocol=0xF0DE, payload=b"ping", request_id=7)
>>> probe = identity.probe_request(nonce=bytes(32))
>>> arrived = bytearray(b"hello\n" + envelope.encode(request) + envelope.encode(probe) + b"good")
>>> line, response, proof = serve(arrived)
>>> line, arrived
(bytearray(b'HELLO\n'), bytearray(b'good'))
>>> envelope.decode_body(response[envelope.HEADER :]).payload
b'PING'
>>> identity.parse_probe_reply(envelope.decode_body(proof[envelope.HEADER :]), probe) == me
True
"""

import enum
from collections.abc import Callable

import msgspec

from overlayd.errors import ProtocolError
from overlayd.proto import envelope
from overlayd.proto.envelope import Buffer, Frame

JSON_HEADER = 4
"""Bytes before a body of the JSON wire: a little-endian u32 length."""
JSON_MAX_BODY = 8 * 1024 * 1024
"""The largest body of the JSON wire, inclusive, in bytes."""

_FIRST_PARTY = frozenset({envelope.PROTOCOL_CONTROL, envelope.PROTOCOL_ADMIN, envelope.PROTOCOL_HANDOFF})


class Verdict(enum.Enum):
    """What a detector says of the front of a buffer."""

    LEGACY = enum.auto()
    """A message of the daemon's own wire starts here, complete or not."""
    ENVELOPE = enum.auto()
    """None does."""
    NEED_MORE = enum.auto()
    """Too few bytes to tell."""


class NeedMore(msgspec.Struct, frozen=True):
    """Too few bytes: read more and poll again."""


class Legacy(msgspec.Struct, frozen=True):
    """The daemon's own wire: hand the buffer to its decoder, which also owns what garbage gets."""


class ProbeAnswered(msgspec.Struct, frozen=True):
    """An identity probe: write `reply` as it is, then drop `consumed` bytes from the front of the buffer."""

    reply: bytes
    consumed: int


class Payload(msgspec.Struct, frozen=True):
    """A frame for the daemon: dispatch it, then drop `consumed` bytes from the front of the buffer.

    `frame.kind` is any: a daemon that sends no requests of its own ignores what is not KIND_REQUEST.
    """

    frame: Frame
    consumed: int


_NEED_MORE = NeedMore()
_LEGACY = Legacy()
# Members as globals: in Python 3.11 an attribute of an enum class costs as much as the rest of a decision.
_IS_LEGACY = Verdict.LEGACY
_IS_ENVELOPE = Verdict.ENVELOPE
_TOO_SHORT = Verdict.NEED_MORE


class EndpointMux:
    """Sorts the messages of one endpoint; immutable, one serves every connection.

    legacy: the detector of the daemon's own wire.  It gets at least one byte, decides before anything else does, and
        never changes its mind as more bytes arrive; it may raise ProtocolError for what no wire can start with.
    answer_probe: a probe frame to the reply's bytes, `identity.answer_probe` with the identity bound; raises
        ProtocolError for a malformed probe.
    served: the payload protocols that the daemon answers; ValueError for a number that is not a daemon's to use.
    """

    __slots__ = ("_answer_probe", "_legacy", "_served")

    def __init__(
        self,
        *,
        legacy: Callable[[Buffer], Verdict],
        answer_probe: Callable[[Frame], bytes],
        served: frozenset[int],
    ) -> None:
        for number in served:
            if not envelope.is_consumer_protocol(number):
                raise ValueError(f"payload protocol {number:#06x} is not in 0x7000-0x7EFF or 0xF000-0xFFFF")
        self._legacy = legacy
        self._answer_probe = answer_probe
        self._served = served

    def poll(self, buffer: Buffer) -> NeedMore | Legacy | ProbeAnswered | Payload:
        """Who gets the front of `buffer`.  Consumes nothing and keeps no reference to it.

        Raises ProtocolError when the connection must be closed with nothing written: a frame that is too large or
        malformed, a malformed probe, a protocol of the broker's own, or one that is not served here.
        """
        if not len(buffer):
            return _NEED_MORE
        verdict = self._legacy(buffer)
        if verdict is _TOO_SHORT:
            return _NEED_MORE
        if verdict is _IS_LEGACY or buffer[0] != envelope.FRAMING_VERSION:
            return _LEGACY
        decoded = envelope.decode(buffer)
        if decoded is None:
            return _NEED_MORE
        frame, consumed = decoded
        if frame.protocol == envelope.PROTOCOL_PROBE:
            return ProbeAnswered(self._answer_probe(frame), consumed)
        if frame.protocol in _FIRST_PARTY:
            raise ProtocolError(f"payload protocol {frame.protocol:#06x} is the broker's own and not served here")
        if frame.protocol not in self._served:
            raise ProtocolError(f"payload protocol {frame.protocol:#06x} is not served here")
        return Payload(frame, consumed)


def json_wire(buffer: Buffer) -> Verdict:
    """The detector of our JSON wire, for a buffer of at least one byte.

    A first byte other than the framing byte, 1, cannot start an envelope.  With 1 there, the fifth byte decides:

    - in an envelope it is the top byte of a length of at most 16 MiB, 0x01000000: 0 or 1;
    - in a JSON frame it is the first byte of the body.  There is one, since a length whose low byte is 1 is not zero,
      and it starts a JSON text (RFC 8259, section 2): white space, 9 at the least, or a visible character.

    Four bytes never decide: `01 00 00 00` starts both an envelope and a JSON frame of one byte.  The fifth always does,
    so the verdict is the same however the stream is split.  A fifth byte that starts neither is for the JSON wire to
    refuse.

    Raises ProtocolError for a JSON frame that advertises more than JSON_MAX_BODY bytes.
    """
    if buffer[0] == envelope.FRAMING_VERSION:
        if len(buffer) < envelope.HEADER:
            return _TOO_SHORT
        if buffer[JSON_HEADER] <= 1:
            return _IS_ENVELOPE
    if len(buffer) >= JSON_HEADER:
        length = int.from_bytes(buffer[:JSON_HEADER], "little")
        if length > JSON_MAX_BODY:
            raise ProtocolError(f"frame too large: {length} bytes, at most {JSON_MAX_BODY} allowed")
    return _IS_LEGACY
