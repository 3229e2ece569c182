"""Netlink sockets: requests and their acknowledgements, dumps, and datagrams as they come.

Owns: the matching of acknowledgements to requests, and whose word is taken: the kernel's only.  Must not know: how a
message is written (`proto.netlink`), what the bodies say (`rtnetlink`), what a request is for, which namespace it acts
in (a socket stays in the one it was opened in).
"""

import errno
import socket
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from overlayd import fault
from overlayd.errors import MechanismError
from overlayd.proto.netlink import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    Message,
    message,
    messages,
    refusal,
)

# linux/netlink.h
SOL_NETLINK = 270
NETLINK_NETFILTER, NETLINK_GENERIC = 12, 16
NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 10, 11, 12

# linux/rtnetlink.h: the kind of a message, its two lowest bits, that only reads.
_GET = 2

# Our own.  A socket's receive buffer holds some 270 refusals, or 40 descriptions of links; an overflow would lose the
# rest.
_BATCH, _LOOK_UPS = 64, 16
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


class Netlink:
    """A netlink socket of the namespace that the calling thread is in when it is opened; one thread at a time."""

    def __init__(self, protocol: int = socket.NETLINK_ROUTE) -> None:
        """MechanismError: there is no descriptor or memory for it, or no such protocol."""
        self._sequence = 0
        try:
            self._socket = connected(protocol)
            for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
                self._socket.setsockopt(SOL_NETLINK, option, 1)
        except OSError as error:
            raise MechanismError("open", "a netlink socket", error.errno or 0) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; idempotent."""
        self._socket.close()

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def transact(self, requests: Sequence[Request]) -> list[memoryview]:
        """Send all requests, in one system call where they are few; return the bodies of the replies (of RTM_GET*), in
        order.

        The kernel carries out every request, also those after one that it refused.  Raises MechanismError for the first
        that was refused with an errno that it does not tolerate; its detail is the kernel's own explanation where it
        gives one.
        """
        replies: list[memoryview] = []
        failure: MechanismError | None = None
        size = _LOOK_UPS if any(each.type & 3 == _GET for each in requests) else _BATCH
        for start in range(0, len(requests), size):
            batch = requests[start : start + size]
            if self._socket.proto == socket.NETLINK_ROUTE and batch[0].type & 3 != _GET:
                fault.point(f"netlink:{batch[0].operation}")
            first = self._sequence + 1
            self._sequence += len(batch)
            # The kernel tells of each that it refuses, whether asked to or not, and takes them in order: when the last
            # is acknowledged, the others are done.
            flags = [NLM_F_REQUEST] * (len(batch) - 1) + [NLM_F_REQUEST | NLM_F_ACK]
            data = b"".join(
                message(each.type, each.flags | more, sequence, each.body)
                for sequence, (each, more) in enumerate(zip(batch, flags, strict=True), first)
            )
            self._send(data, batch[0].operation, batch[0].object)
            answered = False
            while not answered:
                for kind, told, sequence, _port, body in self._receive(batch[0].operation, batch[0].object):
                    if sequence < first:  # to what an exception has cut short
                        continue
                    if kind != NLMSG_ERROR:
                        replies.append(body)
                        continue
                    answered = sequence == self._sequence
                    request = batch[sequence - first]
                    number, detail = refusal(told, body, 20)
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
        self._send(message(kind, NLM_F_REQUEST | NLM_F_DUMP, sequence, body), operation, object)
        while True:
            for each in self._receive(operation, object):
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

    def _send(self, data: bytes, operation: str, object: str) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            raise MechanismError(operation, object, error.errno or 0) from error

    def _receive(self, operation: str, object: str) -> list[Message]:
        try:
            return receive(self._socket)
        except OSError as error:
            raise MechanismError(operation, object, error.errno or 0) from error


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


def receive(opened: socket.socket, flags: int = 0) -> list[Message]:
    """The messages of the next datagram from the kernel; raises what recvfrom(2) does.

    What somebody else sent in the moment between the socket's getting a port and its being connected is passed over.
    """
    while True:
        data, (port, _groups) = opened.recvfrom(_READ, flags)
        if port == 0:
            return messages(data)
