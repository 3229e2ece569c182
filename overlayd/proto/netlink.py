"""Netlink messages and their attributes, to bytes and back (`_fast.netlink`).

Owns: their flags, the values in attributes, what an acknowledgement says.  Must not know: sockets, or what the families
put into the messages (`proto.wgnl`, `linux.rtnetlink` and others do).

Source: linux/netlink.h.  Numbers are in host byte order; messages and attributes are padded to four bytes.
"""

import struct

from overlayd._fast.netlink import Message, attribute, attributes, message, messages, nested, text, u16, u32

__all__ = [
    "Message",
    "attribute",
    "attributes",
    "message",
    "messages",
    "nested",
    "number",
    "refusal",
    "string",
    "text",
    "u16",
    "u32",
]

# linux/netlink.h
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR = 0x1, 0x4, 0x10
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND, NLM_F_DUMP = 0x100, 0x200, 0x400, 0x800, 0x300
NLM_F_ACK_TLVS = 0x200
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLMSGERR_ATTR_MSG = 1
NLA_F_NESTED, NLA_TYPE_MASK = 0x8000, 0x3FFF

_U32 = struct.Struct("=I")
_ERRNO = struct.Struct("=i")


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
