"""The slow and obvious way of netlink messages and attributes to bytes and back, for the fast one to agree with."""

import struct
from collections.abc import Iterator

from overlayd.errors import ProtocolError
from overlayd.proto.netlink import NLA_F_NESTED, NLA_TYPE_MASK, Message

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # nlattr: length with this header, type


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """One message, padded; `flags` are all of them."""
    return _HEADER.pack(16 + len(body), kind, flags, sequence, 0) + body + b"\0\0\0"[: -len(body) % 4]


def messages(data: bytes) -> Iterator[Message]:
    """The messages of one datagram.  ProtocolError when one is cut short."""
    view = memoryview(data)
    offset, end = 0, len(data)
    while offset < end:
        if end - offset < _HEADER.size:
            raise ProtocolError("netlink: a message is cut short")
        size, kind, flags, sequence, port = _HEADER.unpack_from(data, offset)
        if not _HEADER.size <= size <= end - offset:
            raise ProtocolError("netlink: a message is longer than what holds it")
        yield Message(kind, flags, sequence, port, view[offset + 16 : offset + size])
        offset += (size + 3) & ~3


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded.  payload: at most 65,531 bytes, for the length has 16 bits."""
    size = 4 + len(payload)
    return _ATTRIBUTE.pack(size, kind) + payload + b"\0\0\0"[: -size % 4]


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def u16(kind: int, value: int) -> bytes:
    """An attribute that holds an unsigned 16-bit number."""
    return attribute(kind, struct.pack("=H", value))


def u32(kind: int, value: int) -> bytes:
    """An attribute that holds an unsigned 32-bit number."""
    return attribute(kind, struct.pack("=I", value))


def text(kind: int, value: str) -> bytes:
    """An attribute that holds a zero-terminated string."""
    return attribute(kind, value.encode() + b"\0")


def attributes(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The attributes in `data`, in order, as (type without flags, payload).  ProtocolError when one is cut short."""
    offset, end = 0, len(data)
    while offset < end:
        if end - offset < 4:
            raise ProtocolError("netlink: an attribute is cut short")
        size, kind = _ATTRIBUTE.unpack_from(data, offset)
        if not 4 <= size <= end - offset:
            raise ProtocolError("netlink: an attribute is longer than what holds it")
        yield kind & NLA_TYPE_MASK, data[offset + 4 : offset + size]
        offset += (size + 3) & ~3
