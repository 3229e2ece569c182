"""A question of one node to another about that one's side of a packet's way, and the answer: a datagram of JSON each.

Owns: the form of both, and their limits.  Must not know: who may ask, what is answered, or sockets.

Both go within a tunnel, from the overlay address of one node to that of the other.  Keys that are not known are passed
over, so that either may say more one day.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Annotated, Literal, NamedTuple

import msgspec

from overlayd import keys
from overlayd.errors import ProtocolError

PORT = 9586  # UDP, our own: of all nodes
PRIVILEGED = 1024  # who may send from a port below is root, or was let by root (ip(7), ip_unprivileged_port_start)
LARGEST = 1200  # bytes, our own: every tunnel carries that, with its headers (RFC 8200, section 5: 1280)

_LONGEST_TEXT = 360  # bytes, our own, of a text in an answer

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class Question(NamedTuple):
    """How is your side of the way between `near`, an address of the node that asks, and `far`, one of yours?

    id: chosen at random, 53 bits.  scope: the service whose devices of its own the way leads through, empty for the
    global ones.  asker, asked: the public keys of these devices, as the node that asks has them.  network: around
    `near`, as it is announced.  to: the overlay address of the node that is meant, where another one is to pass the
    question on.
    """

    id: int
    scope: str
    asker: bytes
    asked: bytes
    near: Address
    network: Network
    far: Address
    to: Address | None = None


class Said(msgspec.Struct, frozen=True, omit_defaults=True):
    """A hop of the node that is asked."""

    where: str
    what: str
    state: Literal["ok", "broken", "unknown"] = "ok"
    remedy: str = ""


_Id = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]


class Answer(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="answer"):
    """The hops of that side, the first broken one last.  id: of the question."""

    id: _Id
    hops: tuple[Said, ...]


class _Question(msgspec.Struct, kw_only=True, omit_defaults=True, tag_field="kind", tag="question"):
    """A question as it is written."""

    id: _Id
    scope: str = ""
    asker: str
    asked: str
    near: str
    network: str
    far: str
    to: str = ""


def encode(question: Question) -> bytes:
    """A question as a datagram."""
    return _ENCODER.encode(
        _Question(
            id=question.id,
            scope=question.scope,
            asker=keys.text(question.asker),
            asked=keys.text(question.asked),
            near=str(question.near),
            network=str(question.network),
            far=str(question.far),
            to=str(question.to) if question.to is not None else "",
        )
    )


def encode_answer(answer: Answer) -> bytes:
    """An answer as a datagram of LARGEST bytes at most: long texts are cut, and the first hops left out, as need be."""
    hops, longest = answer.hops, _LONGEST_TEXT
    while True:
        data = _ENCODER.encode(Answer(id=answer.id, hops=tuple(_cut(each, longest) for each in hops)))
        if len(data) <= LARGEST:
            return data
        if len(hops) > 1:
            hops = hops[1:]
        else:
            longest //= 2


def decode(datagram: bytes) -> Question | Answer:
    """Raises ProtocolError for what is neither."""
    if len(datagram) > LARGEST:
        raise ProtocolError(f"a datagram of {len(datagram)} bytes, where {LARGEST} is the most")
    try:
        message = _DECODER.decode(datagram)
        if isinstance(message, Answer):
            return message
        if "%" in message.near + message.network + message.far + message.to:
            raise ValueError("an address with a zone")  # which may be any text, and means nothing on another host
        return Question(
            message.id,
            message.scope,
            keys.parse(message.asker),
            keys.parse(message.asked),
            ip_address(message.near),
            ip_network(message.network),
            ip_address(message.far),
            ip_address(message.to) if message.to else None,
        )
    except (msgspec.MsgspecError, ValueError) as error:
        raise ProtocolError(f"neither a question nor an answer: {error}") from error


def _cut(hop: Said, longest: int) -> Said:
    where, what, remedy = (
        text.encode()[:longest].decode(errors="ignore") for text in (hop.where, hop.what, hop.remedy)
    )
    return Said(where, what, hop.state, remedy)


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(_Question | Answer)
