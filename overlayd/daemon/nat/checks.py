"""Connectivity checks with the peers that are being looked for.

Owns: who is checked, which answers are awaited, and the answers to the peers' own checks.  Must not know: what a check
decides (`model.traversal`), how it is written (`proto.check`), or the sockets it leaves by.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from overlayd import keys
from overlayd.model.candidates import PEER_REFLEXIVE, RELAY, Endpoint
from overlayd.model.traversal import Way
from overlayd.proto import check
from overlayd.proto.stun import TRANSACTION_ID_SIZE, USERNAME, Kind

Heard = Callable[[Way], None]


class _Checked:
    """A peer that is being looked for.  answered, met: called with a way that it answered on, or checked us by."""

    def __init__(self, credentials: check.Credentials, answered: Heard, met: Heard) -> None:
        self.credentials = credentials
        self.answered = answered
        self.met = met


class Checks:
    """private_key: this node's.  send: sends a datagram by a way."""

    def __init__(self, private_key: bytes, send: Callable[[bytes, Way], None]) -> None:
        self._private_key = private_key
        self._send = send
        self._checked: dict[bytes, _Checked] = {}
        self._names: dict[str, tuple[_Checked, str]] = {}  # with the kind of candidate that the check comes from
        self._awaited: dict[bytes, tuple[_Checked, Way]] = {}  # by transaction id

    @contextmanager
    def of(self, peer: bytes, answered: Heard, met: Heard) -> Iterator[None]:
        """Inside, a peer (its public key) can be checked, and its own checks are answered."""
        try:
            secret = keys.shared(self._private_key, peer)
        except ValueError:  # no node has such a key; WireGuard will say the same
            yield
            return
        checked = _Checked(check.credentials(secret, keys.public(self._private_key), peer), answered, met)
        self._checked[peer] = checked
        names = checked.credentials.ours
        self._names |= {names.direct: (checked, PEER_REFLEXIVE), names.relayed: (checked, RELAY)}
        try:
            yield
        finally:
            del self._checked[peer], self._names[names.direct], self._names[names.relayed]
            for id in [id for id, (whose, _) in self._awaited.items() if whose is checked]:
                del self._awaited[id]

    def check(self, peer: bytes, way: Way) -> None:
        """Send a check."""
        checked = self._checked.get(peer)
        if checked is not None:
            id = os.urandom(TRANSACTION_ID_SIZE)
            self._awaited[id] = (checked, way)
            self._send(check.request(id, checked.credentials, relayed=way.through_relay), way)

    def hear(self, datagram: bytes, sender: Endpoint, *, through_relay: bool = False) -> None:
        """Take a datagram that may be a check or an answer."""
        message = check.read(datagram)
        if message is None:
            return
        if message.kind is Kind.REQUEST:
            who, kind = self._names.get(message.get(USERNAME) or "", (None, ""))
            if who is not None and check.is_of(datagram, who.credentials):
                way = Way(kind, sender, through_relay)
                self._send(check.answer(message.transaction_id, sender, who.credentials), way)
                who.met(way)
            return
        awaited = self._awaited.get(message.transaction_id)
        if awaited is None:
            return
        whose, way = awaited
        # An answer from elsewhere is one that the peer sent another way than it got the check (RFC 8445, 7.2.5.2.1).
        if (way.endpoint, way.through_relay) == (sender, through_relay) and check.is_of(datagram, whose.credentials):
            del self._awaited[message.transaction_id]
            whose.answered(way)
