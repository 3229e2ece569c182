"""Which peers' paths have stopped to carry answers, by what a device counts.

Owns: what counts as asked and as answered, and for how long an answer may take.  Must not know: where readings come
from, or what is done about a lost path (`traversal`).

WireGuard answers data within KEEPALIVE_TIMEOUT, if with nothing else then with a keepalive, and takes a peer for lost
that has not answered for REKEY_TIMEOUT more (the WireGuard paper, section 6.5).  The counters tell the same from the
outside: a keepalive, which nobody answers, and a handshake initiation have sizes of their own.
"""

from collections.abc import Mapping
from typing import Protocol

import msgspec

# The WireGuard paper, section 6.1: KEEPALIVE_TIMEOUT + REKEY_TIMEOUT, seconds.
UNANSWERED = 15.0

# Bytes of UDP payload (the WireGuard paper, section 5.4).
KEEPALIVE, INITIATION = 32, 148

# Our own constant, seconds.
PRECISION = 1.0  # how much earlier than it was read something may have been sent


class Counted(Protocol):
    """What a device counts of a peer, bytes."""

    @property
    def rx_bytes(self) -> int: ...
    @property
    def tx_bytes(self) -> int: ...


class _Peer(msgspec.Struct):
    """heard: when it answered last.  asked: since when an answer is due.  initiated: whether WireGuard sent
    an initiation and nothing else in the time of a reading: for want of an answer, if it comes after a silence.
    answers: readings with an answer, counted.
    """

    rx_bytes: int
    tx_bytes: int
    heard: float
    asked: float | None = None
    initiated: bool = False
    answers: int = 0
    lost: bool = False


class PathLoss:
    """The paths to a device's peers.  Times are seconds of any steady clock."""

    def __init__(self) -> None:
        self._peers: dict[bytes, _Peer] = {}
        self._read = 0.0

    def observe(self, peers: Mapping[bytes, Counted], now: float) -> list[bytes]:
        """Take what a device shows of all its peers; return those whose path is lost since now.  Peers that are no
        longer there are forgotten.
        """
        before, self._peers = self._peers, {}
        previous, self._read = max(self._read, now - PRECISION), now
        lost = []
        for key, seen in peers.items():
            known = before.get(key)
            if known is None or seen.tx_bytes < known.tx_bytes or seen.rx_bytes < known.rx_bytes:  # added again
                self._peers[key] = _Peer(seen.rx_bytes, seen.tx_bytes, now)
                continue
            self._peers[key] = known
            if (seen.rx_bytes, seen.tx_bytes) != (known.rx_bytes, known.tx_bytes):
                _count(known, seen, previous, now)
            if known.asked is not None and not known.lost and _is_lost(known, now):
                known.lost = True
                lost.append(key)
        return lost

    def answers(self, key: bytes) -> int:
        """A number that grows when a peer answers."""
        known = self._peers.get(key)
        return known.answers if known is not None else 0

    def is_lost(self, key: bytes) -> bool:
        known = self._peers.get(key)
        return known is not None and known.lost


def _count(known: _Peer, seen: Counted, previous: float, now: float) -> None:
    received, sent = seen.rx_bytes - known.rx_bytes, seen.tx_bytes - known.tx_bytes
    known.rx_bytes, known.tx_bytes = seen.rx_bytes, seen.tx_bytes
    # A peer whom our answers do not reach initiates on and on: that is no answer to us.
    if received and received % INITIATION:
        known.heard, known.asked, known.initiated, known.lost = now, None, False, False
        known.answers += 1
    elif sent and sent != KEEPALIVE:
        if known.asked is None:
            known.asked = previous
        if sent in (INITIATION, INITIATION + KEEPALIVE):
            known.initiated = True


def _is_lost(known: _Peer, now: float) -> bool:
    """Whether an answer is overdue.  An initiation after a silence is WireGuard's own word for it, also where the last
    data and the last answer came in the time of one reading, which does not tell their order.
    """
    if known.asked is not None and now >= known.asked + UNANSWERED:
        return True
    return known.initiated and now >= known.heard + UNANSWERED - PRECISION
