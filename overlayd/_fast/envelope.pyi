"""Protobuf wire format, read as strictly as Rust's prost reads it; the rules stand in `envelope.pyx`."""

_Buffer = bytes | bytearray | memoryview

def decode_frame(buffer: _Buffer, start: int, end: int) -> tuple[int, int, int, bytes, int, int, int, str, str]:
    """The nine fields, in field order, of the `Frame` message in `buffer[start:end]`; the buffer is not kept.

    Absent fields have protobuf's defaults.  Enums are signed 32-bit numbers, known or not.
    Raises ProtocolError for what prost refuses, IndexError if the range is not within the buffer.
    """

def fields(message: _Buffer, depth: int = 100) -> list[tuple[int, int, int | bytes | None]]:
    """Every field of a message as (number, wire type, value), in the order of the wire.

    value: an int (0 to 2**64 - 1) for wire type 0, bytes for 2, None for the others, which are checked and skipped.
    depth: how many levels of groups may be open; a message inside a message has one less than the one around it.
    Raises ProtocolError for what prost refuses in any message.
    """
