"""TURN through a TCP or TLS connection: where one message ends and the next begins.

Owns: the framing of both directions (RFC 8489 6.2.2, RFC 8656 12.5).  Must not know: what a message says (`stun`,
`turn`), or the connection.

Each message tells its own length.  The first two bits tell STUN (00) from data of a channel (01), which is padded to a
multiple of four bytes here, and not in a datagram.
"""

from collections.abc import Iterator

from overlayd.errors import ProtocolError
from overlayd.proto.stun import HEADER_SIZE, MAGIC_COOKIE

_COOKIE = MAGIC_COOKIE.to_bytes(4)
_KINDS = 0x0110  # the bits of a STUN message's type that say what it is: none of them, and it is a request


class Unframer:
    """Cuts what comes in into messages."""

    def __init__(self) -> None:
        self._received = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The messages that are whole by now.  ProtocolError, for good: what follows is no message."""
        received = self._received
        received += data
        at = 0
        try:
            while len(received) - at >= 4:
                size = int.from_bytes(received[at + 2 : at + 4])
                kind = received[at] >> 6
                if kind == 1:
                    end = at + 4 + size + -size % 4
                elif kind == 0 and size % 4 == 0 and _COOKIE.startswith(received[at + 4 : at + 8]):
                    end = at + HEADER_SIZE + size
                else:
                    raise ProtocolError(f"no message of TURN: {received[at : at + 8].hex(' ')}")
                if end > len(received):
                    return
                yield bytes(received[at:end])
                at = end
        finally:
            del received[:at]


def may_be_dropped(message: bytes) -> bool:
    """Whether a message of ours is one that UDP would be free to lose, too: data or an indication.  A request is sent
    once, and has to arrive.
    """
    return bool(message[0] >> 6 or int.from_bytes(message[:2]) & _KINDS)
