"""Netlink: attributes, acknowledgements, dumps, and a socket for them.

Owns: the framing of messages and attributes, the matching of acknowledgements to requests, and whose word is taken: the
kernel's only.  Must not know: what the bodies say (`rtnetlink`), what a request is for, which namespace it acts in (a
socket stays in the one it was opened in).

Source: linux/netlink.h.  Numbers are in host byte order; messages and attributes are padded to four bytes.
"""

import errno
import socket
import struct
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from overlayd import fault
from overlayd.errors import MechanismError

# linux/netlink.h
SOL_NETLINK = 270
NETLINK_NETFILTER, NETLINK_GENERIC = 12, 16
NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 10, 11, 12
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR = 0x1, 0x4, 0x10
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_DUMP = 0x100, 0x200, 0x400, 0x300
NLM_F_ACK_TLVS = 0x200
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLMSGERR_ATTR_MSG = 1
NLA_F_NESTED, NLA_TYPE_MASK = 0x8000, 0x3FFF

# linux/rtnetlink.h: the kind of a message, its two lowest bits, that only reads.
_GET = 2

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # nlattr: length, type
_U32 = struct.Struct("=I")
_ERRNO = struct.Struct("=i")

# Our own.  A socket's receive buffer holds some 270 acknowledgements; an overflow would lose the rest.
_BATCH = 64
# Most that one read takes; the kernel builds dumps in pieces of at most 32 KiB.
_READ = 1 << 16
# A dump that others' changes interrupt is read again this often; each takes milliseconds.
_DUMP_TRIES = 32


class Request(NamedTuple):
    """One message to send.

    operation, object: name it in the error should the kernel refuse it.  type: RTM_*, or another family's.  flags:
    NLM_F_* beyond REQUEST and ACK.  body: the family header and attributes.  tolerated: errnos that mean that there was
    nothing to do.
    """

    operation: str
    object: str
    type: int
    flags: int
    body: bytes
    tolerated: tuple[int, ...] = ()


class Message(NamedTuple):
    """One netlink message.  port: of the socket that asked for it or, in a notification, for the change; 0 when the
    kernel acted by itself.
    """

    type: int
    flags: int
    sequence: int
    port: int
    body: memoryview


def attribute(kind: int, payload: bytes) -> bytes:
    """One netlink attribute, padded."""
    size = 4 + len(payload)
    return _ATTRIBUTE.pack(size, kind) + payload + b"\0\0\0"[: -size % 4]


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def u32(kind: int, value: int) -> bytes:
    """An attribute that holds an unsigned 32-bit number."""
    return attribute(kind, _U32.pack(value))


def text(kind: int, value: str) -> bytes:
    """An attribute that holds a zero-terminated string."""
    return attribute(kind, value.encode() + b"\0")


def attributes(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The attributes in `data`, in order, as (type without flags, payload)."""
    offset, end = 0, len(data)
    while offset + 4 <= end:
        size, kind = _ATTRIBUTE.unpack_from(data, offset)
        if size < 4:
            return
        yield kind & NLA_TYPE_MASK, data[offset + 4 : offset + size]
        offset += (size + 3) & ~3


def string(payload: memoryview) -> str:
    """The text of an attribute, without its final zero."""
    return bytes(payload).rstrip(b"\0").decode(errors="replace")


def number(payload: memoryview | None) -> int:
    """The unsigned 32-bit number of an attribute; 0 when it is None."""
    return 0 if payload is None else int(_U32.unpack(payload[:4])[0])


class Netlink:
    """A netlink socket of the namespace that the calling thread is in when it is opened; one thread at a time."""

    def __init__(self, protocol: int = socket.NETLINK_ROUTE) -> None:
        self._socket = connected(protocol)
        self._sequence = 0
        for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
            self._socket.setsockopt(SOL_NETLINK, option, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; idempotent."""
        self._socket.close()

    def transact(self, requests: Sequence[Request]) -> list[memoryview]:
        """Send all requests, in one system call where they are few; return the bodies of the replies (of RTM_GET*), in
        order.

        The kernel carries out every request, also those after one that it refused.  Raises MechanismError for the first
        that was refused with an errno that it does not tolerate; its detail is the kernel's own explanation where it
        gives one.
        """
        replies: list[memoryview] = []
        failure: MechanismError | None = None
        for start in range(0, len(requests), _BATCH):
            batch = requests[start : start + _BATCH]
            if self._socket.proto == socket.NETLINK_ROUTE and batch[0].type & 3 != _GET:
                fault.point(f"netlink:{batch[0].operation}")
            first = self._sequence + 1
            self._sequence += len(batch)
            self._socket.send(
                b"".join(
                    message(each.type, each.flags | NLM_F_REQUEST | NLM_F_ACK, sequence, each.body)
                    for sequence, each in enumerate(batch, first)
                )
            )
            unanswered = len(batch)
            while unanswered:
                for kind, flags, sequence, _port, body in receive(self._socket):
                    if sequence < first:  # to what an exception has cut short
                        continue
                    if kind != NLMSG_ERROR:
                        replies.append(body)
                        continue
                    unanswered -= 1
                    request = batch[sequence - first]
                    number, detail = refusal(flags, body, 20)
                    if number and number not in request.tolerated and failure is None:
                        failure = MechanismError(request.operation, request.object, number, detail)
        if failure is not None:
            raise failure
        return replies

    def dump(self, operation: str, kind: int, body: bytes, object: str = "all") -> list[memoryview]:
        """The bodies of everything that a dump request `kind` (RTM_GET*) with this `body` lists.

        A dump that a concurrent change interrupted (NLM_F_DUMP_INTR) may have holes, and is read again.  Raises
        MechanismError, named `operation` and `object`, when the kernel refuses, or with errno EINTR when it was
        interrupted every time.
        """
        for _ in range(_DUMP_TRIES):
            found = list(self.walk(operation, kind, body, object))
            if not any(each.flags & NLM_F_DUMP_INTR for each in found):
                return [each.body for each in found[:-1]]
        raise MechanismError(operation, object, errno.EINTR, "it changed each time it was read")

    def walk(self, operation: str, kind: int, body: bytes, object: str = "all") -> Iterator[Message]:
        """The messages of a dump as they come, interrupted or not, for a table that is too large to keep; the last one
        only ends it.  Raises MechanismError when the kernel refuses.
        """
        self._sequence += 1
        sequence = self._sequence
        self._socket.send(message(kind, NLM_F_REQUEST | NLM_F_DUMP, sequence, body))
        while True:
            for each in receive(self._socket):
                if each.sequence != sequence:
                    continue
                end = each.type in (NLMSG_DONE, NLMSG_ERROR)
                if end:
                    number, detail = refusal(each.flags, each.body, 4 if each.type == NLMSG_DONE else 20)
                    if number:
                        raise MechanismError(operation, object, number, detail)
                yield each
                if end:
                    return


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """One message, padded; `flags` are all of them."""
    return _HEADER.pack(16 + len(body), kind, flags, sequence, 0) + body + b"\0\0\0"[: -len(body) % 4]


def connected(protocol: int) -> socket.socket:
    """A netlink socket of the calling thread's namespace that only the kernel can write to; raises OSError.

    Whoever has CAP_NET_ADMIN in a namespace, as a container may have in its own, can send to any socket in it, and
    finds their ports in /proc/net/netlink: it could forge answers, or fill the buffer that the true ones need.  But not
    to a socket that is connected to the kernel, which is port 0 (netlink_getsockbyportid() in af_netlink.c).
    """
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    try:
        opened.connect((0, 0))
    except BaseException:
        opened.close()
        raise
    return opened


def receive(opened: socket.socket, flags: int = 0) -> Iterator[Message]:
    """The messages of the next datagram from the kernel; raises what recvfrom(2) does.

    What somebody else sent in the moment between the socket's getting a port and its being connected is passed over.
    """
    while True:
        data, (port, _groups) = opened.recvfrom(_READ, flags)
        if port == 0:
            return messages(data)


def messages(data: bytes) -> Iterator[Message]:
    """The messages of one datagram."""
    view = memoryview(data)
    offset, end = 0, len(data)
    while offset + 16 <= end:
        size, kind, flags, sequence, port = _HEADER.unpack_from(data, offset)
        if size < 16:
            return
        yield Message(kind, flags, sequence, port, view[offset + 16 : offset + size])
        offset += (size + 3) & ~3


def refusal(flags: int, body: memoryview, explanation: int) -> tuple[int, str]:
    """The errno (0 for success) and the kernel's words, which start at offset `explanation`, of an acknowledgement."""
    number = -_ERRNO.unpack_from(body)[0]
    if not number or not flags & NLM_F_ACK_TLVS:
        return number, ""
    words = [payload for kind, payload in attributes(body[explanation:]) if kind == NLMSGERR_ATTR_MSG]
    return number, string(words[0]) if words else ""
