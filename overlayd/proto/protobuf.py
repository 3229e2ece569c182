"""Protobuf's wire format (protobuf.dev/programming-guides/encoding), as far as messages of others need it.

Owns: fields to bytes, and bytes to fields.  Must not know: any message.
"""

from collections.abc import Iterator

from overlayd.errors import ProtocolError

_LOW_64_BITS = (1 << 64) - 1
_ONE_BYTE = tuple(bytes((value,)) for value in range(0x80))
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}


def varint(value: int) -> bytes:
    """`value` as a varint; a negative one is taken as 64-bit two's complement, as protobuf writes enums."""
    if 0 <= value < 0x80:
        return _ONE_BYTE[value]
    value &= _LOW_64_BITS
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def varint_field(number: int, value: int) -> bytes:
    """A varint field with its key, or nothing for the default 0."""
    return varint(number << 3) + varint(value) if value else b""


def bytes_field(number: int, value: bytes) -> bytes:
    """A length-delimited field with its key, or nothing for the empty default."""
    return varint(number << 3 | 2) + varint(len(value)) + value if value else b""


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message, in their order: a varint's value, unsigned, or the bytes of any other.  ProtocolError:
    they are none.
    """
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if not 0 < number < 1 << 29:
            raise ProtocolError(f"protobuf: no field has the number {number}")
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == _BYTES:
            length, at = _varint(data, at)
        elif kind in _FIXED:
            length = _FIXED[kind]
        else:
            raise ProtocolError(f"protobuf: field {number} has the wire type {kind}")
        if length > end - at:
            raise ProtocolError(f"protobuf: field {number} is cut short")
        yield number, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A varint's value, and where it ends."""
    value = shift = 0
    for byte in data[at : at + 10]:
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _LOW_64_BITS, at
        shift += 7
    raise ProtocolError("protobuf: a number is cut short, or longer than 64 bits")
