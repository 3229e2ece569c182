"""Connectivity checks between two nodes (RFC 8445, section 7): STUN with a key that only those two have.

Owns: how a check, and its answer, are written and told from forgeries.  Must not know: what is checked when
(`model.traversal`), sockets, randomness: the transaction id is an argument.

Where ICE exchanges passwords first, the nodes of an overlay know each other's public keys: their X25519 secret makes
the password, and what the request is addressed with, so that nobody learns from a check who checks whom, and a check
that is sent back to its sender is none.
"""

import hmac
from typing import NamedTuple

import msgspec

from overlayd.errors import ProtocolError
from overlayd.proto import stun
from overlayd.proto.stun import BINDING, Kind, Message
from overlayd.proto.wireguard import Endpoint

_NAME_BYTES = 16  # of a digest, so that names do not collide


class Names(NamedTuple):
    """What requests to a node are addressed with: those that come straight, and those through the sender's relay."""

    direct: str
    relayed: str


class Credentials(msgspec.Struct, frozen=True):
    """key: of both nodes' messages.  ours, theirs: the names that requests to us, and to the peer, go by."""

    key: bytes
    ours: Names
    theirs: Names


def credentials(secret: bytes, our_key: bytes, their_key: bytes) -> Credentials:
    """secret: what the two nodes share, 32 bytes.  our_key, their_key: public."""

    def name(purpose: bytes, public_key: bytes) -> str:
        return hmac.digest(secret, purpose + public_key, "sha256")[:_NAME_BYTES].hex()

    def names(public_key: bytes) -> Names:
        return Names(name(b"overlayd check of ", public_key), name(b"overlayd relayed check of ", public_key))

    return Credentials(hmac.digest(secret, b"overlayd check", "sha256"), names(our_key), names(their_key))


def request(transaction_id: bytes, peer: Credentials, *, relayed: bool) -> bytes:
    """A check of a peer.  transaction_id: 12 bytes that nobody can guess.  relayed: it is sent through our relay."""
    name = peer.theirs.relayed if relayed else peer.theirs.direct
    return stun.encode(Message(BINDING, Kind.REQUEST, transaction_id).add(stun.USERNAME, name), key=peer.key)


def answer(transaction_id: bytes, sender: Endpoint, peer: Credentials) -> bytes:
    """The answer to a check that came from `sender`."""
    message = Message(BINDING, Kind.SUCCESS, transaction_id).add(stun.XOR_MAPPED_ADDRESS, sender)
    return stun.encode(message, key=peer.key)


def read(datagram: bytes) -> Message | None:
    """A check or an answer to one; None when it is neither.  Whose it is has to be asked of `is_of`."""
    try:
        message = stun.decode(datagram)
    except ProtocolError:
        return None
    if message.method != BINDING or message.kind not in (Kind.REQUEST, Kind.SUCCESS) or message.unknown():
        return None
    return message


def is_of(datagram: bytes, peer: Credentials) -> bool:
    """Whether a datagram that `read` took comes from a peer, or from us."""
    return stun.is_authentic(datagram, peer.key)
