"""The v1 `Frame` envelope of the running-process family: bytes to frames and back.

Owns: the framing (one version byte, a length, one protobuf message), the nine fields, and the numbers of the protocols
that the family reserves.  Must not know: who a payload is for (`proto.mux`), what is in it, sockets, clocks.

There are two version axes and both are 1: the framing byte, checked here, and the field `version`, which a probe's
validation checks (`proto.identity`) and which is otherwise the receiver's to judge.

Decoding is strict the way Rust's prost is, since the broker is written with it: `_fast.envelope` has the rules.
"""

import msgspec

from overlayd._fast.envelope import decode_frame
from overlayd.errors import ProtocolError
from overlayd.proto.protobuf import bytes_field, varint_field

Buffer = bytes | bytearray | memoryview

# Protocol constants.
FRAMING_VERSION = 1
ENVELOPE_VERSION = 1
HEADER = 5
"""Bytes before a body: the framing byte and a little-endian u32 length."""
MAX_BODY = 16 * 1024 * 1024
"""The largest body, inclusive, in bytes."""

KIND_REQUEST, KIND_RESPONSE, KIND_EVENT, KIND_CANCEL = range(4)
ENCODING_NONE, ENCODING_ZSTD, ENCODING_SNAPPY, ENCODING_LZ4 = range(4)

PROTOCOL_CONTROL = 0x0000
PROTOCOL_ADMIN = 0xAD01
PROTOCOL_PROBE = 0xB232
PROTOCOL_HANDOFF = 0xD0FF


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One envelope, immutable; the defaults are protobuf's.

    version: ENVELOPE_VERSION.  kind: KIND_*, encoding: ENCODING_*; from the wire, any signed 32-bit number.
    protocol: who the payload is for.  payload: opaque bytes.  request_id: correlates a response with its request.
    deadline_unix_ms: absolute, 0 for none.  traceparent, tracestate: W3C trace context, untrusted text.
    """

    version: int = 0
    kind: int = 0
    protocol: int = 0
    payload: bytes = b""
    request_id: int = 0
    encoding: int = 0
    deadline_unix_ms: int = 0
    traceparent: str = ""
    tracestate: str = ""


def encode(frame: Frame) -> bytes:
    """The frame as it goes on the wire, header included: fields in ascending order, defaults left out.

    Raises ProtocolError if the body would be over MAX_BODY.
    """
    body = b"".join(
        (
            varint_field(1, frame.version),
            varint_field(2, frame.kind),
            varint_field(3, frame.protocol),
            bytes_field(4, frame.payload),
            varint_field(5, frame.request_id),
            varint_field(6, frame.encoding),
            varint_field(7, frame.deadline_unix_ms),
            bytes_field(8, frame.traceparent.encode()),
            bytes_field(9, frame.tracestate.encode()),
        )
    )
    if len(body) > MAX_BODY:
        raise _too_large(len(body))
    return b"\x01" + len(body).to_bytes(4, "little") + body


def decode(buffer: Buffer) -> tuple[Frame, int] | None:
    """The frame at the front of `buffer` and the bytes it takes there, or None while more bytes are needed.

    The length is judged as soon as the header is there, so nobody has to keep a body that will be refused.
    Raises ProtocolError: another framing byte, a length over MAX_BODY, or whatever `decode_body` raises.
    """
    if len(buffer) < HEADER:
        return None
    if buffer[0] != FRAMING_VERSION:
        raise ProtocolError(f"framing version {buffer[0]}, expected {FRAMING_VERSION}")
    length = int.from_bytes(buffer[1:HEADER], "little")
    if length > MAX_BODY:
        raise _too_large(length)
    end = HEADER + length
    if len(buffer) < end:
        return None
    return Frame(*decode_frame(buffer, HEADER, end)), end


def decode_body(buffer: Buffer) -> Frame:
    """The frame in a body of exactly `buffer`.  Raises ProtocolError for what prost refuses."""
    return Frame(*decode_frame(buffer, 0, len(buffer)))


def respond(request: Frame, payload: bytes) -> bytes:
    """The response to `request`, on the wire: its protocol, id and trace context echoed, no encoding, no deadline.

    Raises ProtocolError if the body would be over MAX_BODY.
    """
    return encode(
        Frame(
            version=ENVELOPE_VERSION,
            kind=KIND_RESPONSE,
            protocol=request.protocol,
            payload=payload,
            request_id=request.request_id,
            traceparent=request.traceparent,
            tracestate=request.tracestate,
        )
    )


def is_consumer_protocol(number: int) -> bool:
    """Whether the family leaves this protocol number to daemons: registered ones, or private use."""
    return 0x7000 <= number <= 0x7EFF or 0xF000 <= number <= 0xFFFF


def _too_large(length: int) -> ProtocolError:
    return ProtocolError(f"frame too large: {length} bytes, at most {MAX_BODY} allowed")
