"""The client's side of STUN: one request, its retransmissions, and what came of it.

Owns: when a request is sent again and when it is given up (`Transaction`), and asking a server where we are seen from
(`Binding`).  Must not know: sockets, clocks (`now` is an argument: seconds of any steady clock), randomness (the
transaction id is an argument: 12 bytes nobody can guess, for it is what tells an answer from a forgery).
"""

import math

from overlayd.errors import ProtocolError
from overlayd.proto import stun
from overlayd.proto.stun import BINDING, Failure, Kind, Message
from overlayd.proto.wireguard import Endpoint

# Protocol constants (RFC 8489 6.2.1).
RTO = 0.5  # seconds before the first retransmission; each later pause is twice the one before
RC = 7  # requests sent in all
RM = 16  # times RTO to wait for an answer to the last one
TI = 39.5  # seconds to wait for an answer where the transport loses nothing (6.2.2)

TIMED_OUT = Failure(0, "no answer")


class Transaction:
    """One request on its way.  It is sent at 0, 0.5, 1.5, 3.5, 7.5, 15.5 and 31.5 s and given up at 39.5 s, or after
    `patience` seconds if these are fewer.  stream: it goes through one, and so is sent once.
    """

    def __init__(
        self, transaction_id: bytes, datagram: bytes, now: float, patience: float = math.inf, *, stream: bool = False
    ) -> None:
        self.transaction_id = transaction_id
        self.datagram = datagram
        self._stream = stream
        self._sent = 0
        self._next = now
        self._end = now + patience

    def next_timeout(self) -> float:
        """When `datagrams_to_send` has something to say again."""
        return min(self._next, self._end)

    def timed_out(self, now: float) -> bool:
        """Whether no answer is to be expected any more."""
        return now >= self._end or (self._sent == RC and now >= self._next)

    def datagrams_to_send(self, now: float) -> list[bytes]:
        """The request, if it is due: once, however late it is asked."""
        if now < self._next or self._sent == RC or now >= self._end:
            return []
        if self._stream:
            self._sent, self._next = RC, now + TI
            return [self.datagram]
        pause = RTO * (RM if self._sent == RC - 1 else 1 << self._sent)
        self._sent += 1
        self._next = now + pause
        return [self.datagram]


class Binding:
    """Asks a STUN server for our address as it sees it (RFC 8489 2).

    outcome: None while under way; the mapped address; or the failure, with code 0 when it is not the server's.
    An ALTERNATE-SERVER is not followed: the servers are those that the operator named.
    """

    def __init__(self, transaction_id: bytes, now: float) -> None:
        self.outcome: Endpoint | Failure | None = None
        request = Message(BINDING, Kind.REQUEST, transaction_id)
        self._transaction = Transaction(transaction_id, stun.encode(request), now)

    def next_timeout(self) -> float | None:
        """When to call `datagrams_to_send` next; None when it is over."""
        return self._transaction.next_timeout() if self.outcome is None else None

    def datagrams_to_send(self, now: float) -> list[bytes]:
        """What is due to be sent to the server."""
        if self.outcome is None and self._transaction.timed_out(now):
            self.outcome = TIMED_OUT
        return self._transaction.datagrams_to_send(now) if self.outcome is None else []

    def datagram_received(self, datagram: bytes) -> bool:
        """Whether a datagram is the answer; anything else changes nothing, not even a malformed one.

        The caller passes only what came from the server's address.
        """
        if self.outcome is not None or datagram[8:20] != self._transaction.transaction_id:
            return False
        try:
            answer = stun.decode(datagram)
        except ProtocolError:
            return False  # a forgery must not end what the true answer would complete
        if answer.method != BINDING or answer.kind not in (Kind.SUCCESS, Kind.ERROR):
            return False
        self.outcome = _outcome(answer)
        return True


def _outcome(answer: Message) -> Endpoint | Failure:
    if answer.kind is Kind.ERROR:
        return answer.get(stun.ERROR_CODE) or Failure(0, "an error without an ERROR-CODE")
    if unknown := answer.unknown():
        return Failure(0, f"an answer with attributes that we do not know: {', '.join(map(hex, unknown))}")
    # MAPPED-ADDRESS is what servers of RFC 3489 give
    mapped = answer.get(stun.XOR_MAPPED_ADDRESS) or answer.get(stun.MAPPED_ADDRESS)
    return mapped or Failure(0, "an answer without an address")
