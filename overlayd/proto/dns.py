"""What a forwarder has to know of DNS messages.

Owns: reading questions, preparing queries for an upstream server and responses for a client, failures, and the frames
of a TCP stream.  Must not know: sockets and clocks, or answers of our own (`_fast.nametable`).

RFC 1035 (messages), 6891 (EDNS), 7766 (TCP), 8914 (extended errors).  Nothing behind the question is read except where
the OPT record of a query is, so compression pointers are never followed.
"""

import struct
from typing import NamedTuple

from overlayd._fast.nametable import MAX_DATAGRAM
from overlayd.errors import ProtocolError

# Protocol constants.
HEADER = struct.Struct(">HBBHHHH")  # id, flags and opcode, flags and response code, four counts of records
PLAIN_DATAGRAM = 512  # bytes that every client takes, RFC 1035 section 2.3.4
MAX_MESSAGE = 65_535  # bytes in a TCP frame
SERVFAIL, NOTIMP, REFUSED = 2, 4, 5
NO_REACHABLE_AUTHORITY, OTHER = 22, 0  # RFC 8914 section 4

_QR, _OPCODE, _AA, _TC, _RD = 0x80, 0x78, 0x04, 0x02, 0x01
_RA, _CD, _RCODE = 0x80, 0x10, 0x0F
_OPT, _EXTENDED_ERROR = 41, 15
_OPT_RECORD = struct.Struct(">BHHBBHH")  # root, type, payload, extended code, version, flags, length of the options
_DO = 0x8000
_LONGEST_LABEL = 63
_LONGEST_NAME = 255
_POINTER = 0xC0


class Query(NamedTuple):
    """A query of a client.  message: whole.  question: its bytes.  payload: bytes of the largest datagram that the
    client takes; opt: where its OPT record is, 0 without.
    """

    message: bytes
    question: bytes
    payload: int = PLAIN_DATAGRAM
    opt: int = 0

    @property
    def id(self) -> int:
        return self.message[0] << 8 | self.message[1]


def read_query(message: bytes) -> Query:
    """Read a query; ProtocolError when it has no whole question, or is otherwise not of the form.  What stands behind
    the message is left away.
    """
    end = _question_end(message)
    at, payload, opt = end, PLAIN_DATAGRAM, 0
    *_, answers, authorities, additional = HEADER.unpack_from(message)
    if answers or authorities:
        raise ProtocolError("a DNS query with answers")
    for _ in range(additional):
        fixed = _name_end(message, at, follow=True)
        if fixed + 10 > len(message):
            raise ProtocolError("a DNS record is cut short")
        type, size, length = struct.unpack_from(">HH4xH", message, fixed)
        if type == _OPT:
            opt, payload = at, max(size, PLAIN_DATAGRAM)
        at = fixed + 10 + length
        if at > len(message):
            raise ProtocolError("a DNS record is cut short")
    return Query(message[:at], message[HEADER.size : end], payload, opt)


def for_upstream(query: Query, id: int) -> bytes:
    """The query as it goes to an upstream server: under an id of our own, and asking for no datagram that we would not
    take.
    """
    message = bytearray(query.message)
    message[0:2] = id.to_bytes(2, "big")
    if query.opt:
        struct.pack_into(">H", message, query.opt + 3, min(query.payload, MAX_DATAGRAM))
    return bytes(message)


def answers(response: bytes, query: Query, id: int) -> bool:
    """Whether a message is the response to the query that went out under this id: the same id, a response, the same
    question but for letter case.
    """
    try:
        end = _question_end(response)
    except ProtocolError:
        return False
    return (
        response[0] << 8 | response[1] == id
        and response[2] & (_QR | _OPCODE) == _QR
        and _folded(response[HEADER.size : end]) == _folded(query.question)
    )


def for_client(response: bytes, query: Query, *, stream: bool) -> bytes:
    """An upstream's response as it goes to the client: under its id, with the question in its letters, and cut to
    nothing but the question when it is longer than what a datagram may carry to it.
    """
    ours = query.message[:2] + response[2 : HEADER.size] + query.question
    if stream or len(response) <= min(query.payload, MAX_DATAGRAM):
        return ours + response[len(ours) :]
    head = bytearray(ours)
    head[2] |= _TC
    head[6:12] = bytes(6)
    return bytes(_with_opt(head, query)) if query.opt else bytes(head)


def failure(query: Query, error: int, text: str) -> bytes:
    """SERVFAIL.  error, text: an extended DNS error, told to clients that speak EDNS."""
    id, flags, more, *_ = HEADER.unpack_from(query.message)
    head = bytearray(HEADER.pack(id, _QR | flags & _RD, _RA | more & _CD | SERVFAIL, 1, 0, 0, 0))
    head += query.question
    if query.opt:
        said = text.encode()
        _with_opt(head, query, struct.pack(">HHH", _EXTENDED_ERROR, 2 + len(said), error) + said)
    return bytes(head)


def is_truncated(response: bytes) -> bool:
    """Whether there is more of the response than fits a datagram; for a message that `answers` accepted."""
    return bool(response[2] & _TC)


def is_refusal(response: bytes) -> bool:
    """Whether the server could not or would not answer, so that another one may be asked."""
    return response[3] & _RCODE in (SERVFAIL, NOTIMP, REFUSED)


def frame(message: bytes) -> bytes:
    """A message as it stands in a TCP stream."""
    return len(message).to_bytes(2, "big") + message


def _with_opt(head: bytearray, query: Query, options: bytes = b"") -> bytearray:
    flags: int = struct.unpack_from(">H", query.message, query.opt + 7)[0] & _DO
    head[11] = 1
    head += _OPT_RECORD.pack(0, _OPT, MAX_DATAGRAM, 0, 0, flags, len(options)) + options
    return head


def _question_end(message: bytes) -> int:
    """Where the one question of a message ends; ProtocolError when it has none, or another number."""
    if len(message) < HEADER.size or message[4:6] != b"\0\1":
        raise ProtocolError("not a DNS message with one question")
    end = _name_end(message, HEADER.size, follow=False) + 4
    if end > len(message):
        raise ProtocolError("a DNS question is cut short")
    return end


def _name_end(message: bytes, at: int, *, follow: bool) -> int:
    """Where a name ends.  follow: it may end with a compression pointer, which counts as its end."""
    start = at
    while at < len(message):
        length = message[at]
        if length == 0:
            return at + 1
        if length >= _POINTER and follow:
            return at + 2
        at += 1 + length
        if length > _LONGEST_LABEL or at - start >= _LONGEST_NAME:
            break
    raise ProtocolError("not a DNS name")


def _folded(question: bytes) -> bytes:
    """A question without regard to letter case: lengths of labels are below the letters."""
    return question[:-4].lower() + question[-4:]
