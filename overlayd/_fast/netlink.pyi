from typing import NamedTuple

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

def messages(data: bytes) -> list[Message]:
    """The messages of one datagram.  ProtocolError when one is cut short."""

def attribute(kind: int, payload: bytes | memoryview) -> bytes:
    """One attribute, padded.  payload: at most 65,531 bytes, for the length has 16 bits."""

def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute that holds attributes."""

def u16(kind: int, value: int) -> bytes:
    """An attribute that holds an unsigned 16-bit number."""

def u32(kind: int, value: int) -> bytes:
    """An attribute that holds an unsigned 32-bit number."""

def text(kind: int, value: str) -> bytes:
    """An attribute that holds a zero-terminated string."""

def attributes(data: memoryview) -> list[tuple[int, memoryview]]:
    """The attributes in `data`, in order, as (type without flags, payload).  ProtocolError when one is cut short."""
