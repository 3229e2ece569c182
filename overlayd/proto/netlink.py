"""Netlink messages and their attributes, to bytes and back.

Owns: the header of a message, attributes and their nesting, what an acknowledgement says.  Must not know: sockets, or
what the families put into the messages (`proto.wgnl`, `linux.rtnetlink` and others do).

Source: linux/netlink.h.  Numbers are in host byte order; messages and attributes are padded to four bytes.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from overlayd.errors import ProtocolError

# linux/netlink.h
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR = 0x1, 0x4, 0x10
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND, NLM_F_DUMP = 0x100, 0x200, 0x400, 0x800, 0x300
NLM_F_ACK_TLVS = 0x200
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLMSGERR_ATTR_MSG = 1
NLA_F_NESTED, NLA_TYPE_MASK = 0x8000, 0x3FFF

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # nlattr: length with this header, type
_U16 = struct.Struct("=H")
_U32 = struct.Struct("=I")
_ERRNO = struct.Struct("=i")


class Message(NamedTuple):
    """One netlink message.  port: of the socket that asked for it or, in a notification, for the change; 0 when the
    kernel acted by itself.
    """

    type: int
    flags: int
    sequence: int
    port: int
    body: memoryview


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
    return attribute(kind, _U16.pack(value))


def u32(kind: int, value: int) -> bytes:
    """An attribute that holds an unsigned 32-bit number."""
    return attribute(kind, _U32.pack(value))


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


def string(payload: memoryview) -> str:
    """The text of an attribute, without its final zero."""
    return bytes(payload).rstrip(b"\0").decode(errors="replace")


def number(payload: memoryview | None) -> int:
    """The unsigned 32-bit number of an attribute; 0 when it is None."""
    return 0 if payload is None else int(_U32.unpack(payload[:4])[0])


def refusal(flags: int, body: memoryview, explanation: int) -> tuple[int, str]:
    """The errno (0 for success) and the kernel's words, which start at offset `explanation`, of an acknowledgement."""
    number = -_ERRNO.unpack_from(body)[0]
    if not number or not flags & NLM_F_ACK_TLVS:
        return number, ""
    words = [payload for kind, payload in attributes(body[explanation:]) if kind == NLMSGERR_ATTR_MSG]
    return number, string(words[0]) if words else ""
