"""What a forwarder has to know of DNS messages.

Owns: queries of the node's own, what response codes tell of a server, and the frames of a TCP stream.  Must not know:
sockets and clocks, clients' queries (`_fast.dnsforward`), or what clients get (`_fast.nametable`, `_fast.dnscache`).

RFC 1035 (messages), 6891 (EDNS), 7766 (TCP), 8914 (extended errors).
"""

import struct

from overlayd._fast.dnsquery import MAX_DATAGRAM

# Protocol constants.
HEADER = struct.Struct(">HBBHHHH")  # id, flags and opcode, flags and response code, four counts of records
MAX_MESSAGE = 65_535  # bytes in a TCP frame
FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = 1, 2, 3, 4, 5
REFUSALS = frozenset((FORMERR, SERVFAIL, NOTIMP, REFUSED))  # the server could not or would not; another one may
NO_REACHABLE_AUTHORITY, OTHER = 22, 0  # RFC 8914 section 4

_RD, _RCODE = 0x01, 0x0F
_OPT = 41
_OPT_RECORD = struct.Struct(">BHHBBHH")  # root, type, payload, extended code, version, flags, length of the options


def query(question: bytes, id: int, *, edns: bool = False) -> bytes:
    """A query of this node's own, for what may have to be looked for elsewhere.  question: name, type and class, on the
    wire.
    """
    head = HEADER.pack(id, _RD, 0, 1, 0, 0, int(edns)) + question
    return head + _OPT_RECORD.pack(0, _OPT, MAX_DATAGRAM, 0, 0, 0, 0) if edns else head


def takes_no_edns(response: bytes) -> bool:
    """Whether a response to a query with an OPT record says that the server does not know it (RFC 6891, section 7)."""
    return response[3] & _RCODE in (FORMERR, NOTIMP)


def frame(message: bytes) -> bytes:
    """A message as it is framed in a TCP stream."""
    return len(message).to_bytes(2, "big") + message
