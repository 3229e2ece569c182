"""What a forwarder has to know of DNS messages.

Owns: reading questions, the queries that go to an upstream server, which messages answer them, and the frames of a TCP
stream.  Must not know: sockets and clocks, or what clients get (`_fast.nametable`, `_fast.dnscache`).

RFC 1035 (messages), 6891 (EDNS), 7766 (TCP), 8914 (extended errors).  Nothing behind the question is read except where
the OPT record of a query is, so compression pointers are never followed.  EDNS is hop by hop: an upstream gets an OPT
record of our own, without options.
"""

import struct
from typing import NamedTuple

from overlayd._fast.dnsquery import MAX_DATAGRAM
from overlayd.errors import ProtocolError

# Protocol constants.
HEADER = struct.Struct(">HBBHHHH")  # id, flags and opcode, flags and response code, four counts of records
MAX_MESSAGE = 65_535  # bytes in a TCP frame
FORMERR, SERVFAIL, NOTIMP, REFUSED = 1, 2, 4, 5
REFUSALS = frozenset((FORMERR, SERVFAIL, NOTIMP, REFUSED))  # the server could not or would not; another one may
RECURSIVE = (0x01, 0)  # flags of a query whose answer shall be looked for elsewhere
NO_REACHABLE_AUTHORITY, OTHER = 22, 0  # RFC 8914 section 4

_QR, _OPCODE, _RD = 0x80, 0x78, 0x01
_AD, _CD, _RCODE = 0x20, 0x10, 0x0F
_OPT = 41
_OPT_RECORD = struct.Struct(">BHHBBHH")  # root, type, payload, extended code, version, flags, length of the options
_DO = 0x8000
_LONGEST_LABEL = 63
_LONGEST_NAME = 255
_POINTER = 0xC0


class Query(NamedTuple):
    """What a client asks.  question: its bytes.  flags: the bits RD, AD and CD of the header's third and fourth byte.
    edns: it sent an OPT record; dnssec: with the bit DO.
    """

    question: bytes
    flags: tuple[int, int]
    edns: bool = False
    dnssec: bool = False

    @property
    def name(self) -> bytes:
        """The name on the wire, in lower case: lengths of labels are below the letters."""
        return self.question[:-4].lower()


def read_query(message: bytes) -> Query:
    """Read a query; ProtocolError when it has no whole question, or is otherwise not of the form."""
    end = _question_end(message)
    at, edns, dnssec = end, False, False
    _, high, low, _, answers, authorities, additional = HEADER.unpack_from(message)
    if answers or authorities:
        raise ProtocolError("a DNS query with answers")
    for _ in range(additional):
        fixed = _name_end(message, at, follow=True)
        if fixed + 10 > len(message):
            raise ProtocolError("a DNS record is cut short")
        type, _, flags, length = struct.unpack_from(">HH2xHH", message, fixed)
        if type == _OPT:
            edns, dnssec = True, bool(flags & _DO)
        at = fixed + 10 + length
        if at > len(message):
            raise ProtocolError("a DNS record is cut short")
    return Query(message[HEADER.size : end], (high & _RD, low & (_AD | _CD)), edns, dnssec)


def for_upstream(query: Query, id: int, *, edns: bool) -> bytes:
    """The query as it goes to an upstream server, under an id of our own.  edns: with an OPT record; some old servers
    take none.
    """
    head = HEADER.pack(id, *query.flags, 1, 0, 0, int(edns)) + query.question
    return head + _OPT_RECORD.pack(0, _OPT, MAX_DATAGRAM, 0, 0, _DO * query.dnssec, 0) if edns else head


def answers(response: bytes, query: Query, id: int) -> bool:
    """Whether a message is the response to the query that went out under this id: the same id, a response, the same
    question but for letter case.  A server that could not even read the query may leave the question away.
    """
    if len(response) < HEADER.size or response[0] << 8 | response[1] != id or response[2] & (_QR | _OPCODE) != _QR:
        return False
    if response[4:6] == b"\0\0":
        return response[3] & _RCODE in (FORMERR, NOTIMP)
    try:
        end = _question_end(response)
    except ProtocolError:
        return False
    return _folded(response[HEADER.size : end]) == _folded(query.question)


def takes_no_edns(response: bytes) -> bool:
    """Whether a response to a query with an OPT record says that the server does not know it (RFC 6891, section 7)."""
    return response[3] & _RCODE in (FORMERR, NOTIMP)


def frame(message: bytes) -> bytes:
    """A message as it stands in a TCP stream."""
    return len(message).to_bytes(2, "big") + message


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
