"""STUN messages (RFC 8489): bytes in, messages out, and back; with the attributes of TURN (RFC 8656).

Owns: the header, the attributes and their values, message integrity and the fingerprint.  Must not know: what is asked
of whom and how often (`stun_client`, `turn`, `relay`), sockets, clocks, randomness: a transaction id is an argument.

A message keeps its attributes in order and as the bytes they are on the wire; an `Attribute` reads and writes one of
them:

    message = Message(BINDING, Kind.REQUEST, transaction_id).add(SOFTWARE, "overlayd")
    message.get(SOFTWARE)  # "overlayd"
"""

import enum
import hashlib
import hmac
import struct
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from typing import Generic, NamedTuple, TypeVar

from overlayd.errors import ProtocolError
from overlayd.proto.wireguard import Endpoint

# Protocol constants (RFC 8489 5, 14.7; RFC 8656 17).
MAGIC_COOKIE = 0x2112A442
HEADER_SIZE = 20
TRANSACTION_ID_SIZE = 12
BINDING, ALLOCATE, REFRESH, SEND, DATA_METHOD, CREATE_PERMISSION, CHANNEL_BIND = 1, 3, 4, 6, 7, 8, 9

_HEADER = struct.Struct("!HHI12s")
_ATTRIBUTE = struct.Struct("!HH")
_COOKIE = MAGIC_COOKIE.to_bytes(4)
_FINGERPRINT_XOR = 0x5354554E
_METHODS = 1 << 12
_FAMILY_SIZES = {1: 4, 2: 16}
_TEXT_LIMIT = 763  # bytes of a REALM, NONCE, SOFTWARE or reason; a USERNAME has 508
_COMPREHENSION_OPTIONAL = 0x8000
_SHA256_SIZES = range(16, 33, 4)  # MESSAGE-INTEGRITY-SHA256 may be truncated


class Kind(enum.IntEnum):
    """The class of a message."""

    REQUEST = 0
    INDICATION = 1
    SUCCESS = 2
    ERROR = 3


class Failure(NamedTuple):
    """The value of ERROR-CODE.  code: 300..699; 0 when it is not the other side's."""

    code: int
    reason: str

    def __str__(self) -> str:
        return f"{self.code} {self.reason}".rstrip() if self.code else self.reason


T = TypeVar("T")
_KNOWN: "dict[int, Attribute[object]]" = {}


class Attribute(Generic[T]):
    """A type of attribute that we understand; `read` and `write` also take the transaction id, which some are masked
    with.  `read` raises ProtocolError.
    """

    def __init__(
        self, type: int, name: str, read: Callable[[bytes, bytes], T], write: Callable[[T, bytes], bytes]
    ) -> None:
        self.type, self.name, self.read, self.write = type, name, read, write
        _KNOWN[type] = self  # type: ignore[assignment]

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Message:
    """method: BINDING and so on.  transaction_id: 12 bytes.  attributes: (type, value) in the order of the message."""

    method: int
    kind: Kind
    transaction_id: bytes
    attributes: tuple[tuple[int, bytes], ...] = ()

    def add(self, attribute: Attribute[T], value: T) -> "Message":
        """The same message with one attribute more."""
        added = (attribute.type, attribute.write(value, self.transaction_id))
        return replace(self, attributes=(*self.attributes, added))

    def get(self, attribute: Attribute[T]) -> T | None:
        """The value of the first attribute of that type, which is the one that counts (RFC 8489 14)."""
        return next(self.all(attribute), None)

    def all(self, attribute: Attribute[T]) -> Iterator[T]:
        """The values of all attributes of that type."""
        wanted = attribute.type
        return (attribute.read(value, self.transaction_id) for type, value in self.attributes if type == wanted)

    def unknown(self) -> tuple[int, ...]:
        """The types that one must understand to process the message, and that we do not (RFC 8489 6.3)."""
        return tuple(type for type, _ in self.attributes if type < _COMPREHENSION_OPTIONAL and type not in _KNOWN)


def is_stun(datagram: bytes | memoryview) -> bool:
    """Whether a datagram from a socket that WireGuard uses too is for us: the test to tell them apart, not a check.

    The first two bits are zero, the magic cookie is in place and the length says the datagram's own.  Every message of
    WireGuard is 01..04 00 00 00 (type and reserved bytes): as STUN that would be a length of 0, a datagram of 20 bytes,
    and WireGuard's smallest has 32.  So none is ever taken for STUN, whatever its other bytes are.
    """
    return (
        len(datagram) >= HEADER_SIZE
        and datagram[0] < 0x40
        and datagram[4:8] == _COOKIE
        and (datagram[2] << 8 | datagram[3]) == len(datagram) - HEADER_SIZE
    )


def decode(datagram: bytes) -> Message:
    """The message that a datagram is.

    What follows MESSAGE-INTEGRITY and is not protected by it is left out (RFC 8489 14.5): a message is never more than
    was vouched for.  Raises ProtocolError: not a STUN message, malformed at any place, a wrong FINGERPRINT, a malformed
    value of an attribute that we know.
    """
    if not is_stun(datagram):
        raise ProtocolError(f"not a STUN message: {len(datagram)} bytes beginning {datagram[:8].hex(' ')}")
    type, _, _, transaction_id = _HEADER.unpack_from(datagram)
    kind = Kind(type >> 7 & 2 | type >> 4 & 1)
    method = type >> 2 & 0xF80 | type >> 1 & 0x70 | type & 0xF
    attributes = []
    may_follow: tuple[int, ...] | None = None  # after integrity only these count
    for type, value, at in _walk(datagram):
        if type == FINGERPRINT.type:
            if at + 8 != len(datagram):
                raise ProtocolError("STUN FINGERPRINT is not the last attribute")
            if FINGERPRINT.read(value, transaction_id) != _fingerprint(datagram[:at]):
                raise ProtocolError("STUN FINGERPRINT is wrong")
        elif may_follow is not None and type not in may_follow:
            continue
        elif type == MESSAGE_INTEGRITY.type:
            may_follow = (MESSAGE_INTEGRITY_SHA256.type,)
        elif type == MESSAGE_INTEGRITY_SHA256.type:
            may_follow = ()
        if (known := _KNOWN.get(type)) is not None:
            known.read(value, transaction_id)
        attributes.append((type, value))
    return Message(method, kind, transaction_id, tuple(attributes))


def encode(message: Message, *, key: bytes | None = None, sha256: bool = False, fingerprint: bool = True) -> bytes:
    """The datagram of a message.

    key: adds MESSAGE-INTEGRITY by it, or MESSAGE-INTEGRITY-SHA256 if `sha256`.  fingerprint: adds FINGERPRINT.
    """
    body = b"".join(
        _ATTRIBUTE.pack(type, len(value)) + value + bytes(-len(value) % 4) for type, value in message.attributes
    )
    method, kind = message.method, message.kind
    if not 0 <= method < _METHODS or len(message.transaction_id) != TRANSACTION_ID_SIZE:
        raise ValueError(f"method {method}, transaction id of {len(message.transaction_id)} bytes")
    type = (method & 0xF80) << 2 | (method & 0x70) << 1 | method & 0xF | (kind & 2) << 7 | (kind & 1) << 4
    datagram = _HEADER.pack(type, len(body), MAGIC_COOKIE, message.transaction_id) + body
    if key is not None:
        attribute = MESSAGE_INTEGRITY_SHA256 if sha256 else MESSAGE_INTEGRITY
        size = 32 if sha256 else 20
        datagram = _with_length(datagram, 4 + size)
        mac = hmac.digest(key, datagram, "sha256" if sha256 else "sha1")
        datagram += _ATTRIBUTE.pack(attribute.type, size) + mac
    if fingerprint:
        datagram = _with_length(datagram, 8)
        datagram += _ATTRIBUTE.pack(FINGERPRINT.type, 4) + _fingerprint(datagram).to_bytes(4)
    return datagram


def is_authentic(datagram: bytes, key: bytes) -> bool:
    """Whether every message integrity of a datagram, which must be one that `decode` took, is by `key`, and there is
    at least one (RFC 8489 14.5, 14.6).  Compared in constant time.
    """
    found = False
    seen_sha256 = False
    for type, value, at in _walk(datagram):
        if type == MESSAGE_INTEGRITY.type and not found:
            digest = "sha1"
        elif type == MESSAGE_INTEGRITY_SHA256.type and not seen_sha256:
            digest, seen_sha256 = "sha256", True
        else:
            continue
        end = at + 4 + len(value)
        mac = hmac.digest(key, _with_length(datagram[:at], end - at), digest)
        if not hmac.compare_digest(mac[: len(value)], value):
            return False
        found = True
    return found


def short_term_key(password: str) -> bytes:
    """The key of a short-term credential (RFC 8489 9.1.1)."""
    return _opaque(password)


def long_term_key(username: str, realm: str, password: str, *, sha256: bool = False) -> bytes:
    """The key of a long-term credential (RFC 8489 9.2.2, 18.5): by MD5, which is what every server speaks."""
    text = b":".join((username.encode(), _opaque(realm), _opaque(password)))
    return hashlib.sha256(text).digest() if sha256 else hashlib.md5(text, usedforsecurity=False).digest()


def _opaque(text: str) -> bytes:
    """A password by the OpaqueString profile (RFC 8265 4.2): spaces are spaces, and characters are composed."""
    spaces = "".join(" " if unicodedata.category(character) == "Zs" else character for character in text)
    return unicodedata.normalize("NFC", spaces).encode()


def _walk(datagram: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Type, value and place of every attribute.  Raises ProtocolError if they do not fill the message exactly."""
    at, end = HEADER_SIZE, len(datagram)
    if end % 4:
        raise ProtocolError(f"STUN message of {end} bytes, which is no multiple of 4")
    while at < end:  # lengths are multiples of 4, so there is room for an attribute's head
        type, size = _ATTRIBUTE.unpack_from(datagram, at)
        value = datagram[at + 4 : at + 4 + size]
        if len(value) != size:
            raise ProtocolError(f"STUN attribute {type:#06x} of {size} bytes reaches past the end of the message")
        yield type, value, at
        at += 4 + size + -size % 4


def _with_length(head: bytes, more: int) -> bytes:
    """A message up to an attribute, with the length that counts that attribute of `more` bytes as its last."""
    return head[:2] + (len(head) - HEADER_SIZE + more).to_bytes(2) + head[4:]


def _fingerprint(head: bytes) -> int:
    return zlib.crc32(head) ^ _FINGERPRINT_XOR


# --- the values of attributes ---------------------------------------------------------------------------------------


def _sized(name: str, sizes: range) -> Callable[[bytes, bytes], bytes]:
    def read(value: bytes, _: bytes) -> bytes:
        if len(value) not in sizes:
            raise ProtocolError(f"STUN {name} of {len(value)} bytes")
        return value

    return read


def _same(value: bytes, _: bytes) -> bytes:
    return value


def _opaque_value(type: int, name: str, sizes: range = range(1 << 16)) -> Attribute[bytes]:
    return Attribute(type, name, _sized(name, sizes), _same)


def _text(type: int, name: str, limit: int = _TEXT_LIMIT) -> Attribute[str]:
    def read(value: bytes, _: bytes) -> str:
        return _utf8(name, value, limit)

    return Attribute(type, name, read, lambda text, _: text.encode())


def _number(type: int, name: str, size: int, reserved: int = 0) -> Attribute[int]:
    """A number of `size` bytes, then `reserved` ones that are written as zeros and ignored."""

    def read(value: bytes, _: bytes) -> int:
        if len(value) != size + reserved:
            raise ProtocolError(f"STUN {name} of {len(value)} bytes")
        return int.from_bytes(value[:size])

    return Attribute(type, name, read, lambda number, _: number.to_bytes(size) + bytes(reserved))


def _address(type: int, name: str, *, masked: bool) -> Attribute[Endpoint]:
    """An address and a port (RFC 8489 14.1), or masked with the cookie and the transaction id (14.2)."""

    def read(value: bytes, transaction_id: bytes) -> Endpoint:
        size = _FAMILY_SIZES.get(value[1]) if len(value) > 4 else None
        if size is None or len(value) != 4 + size:
            raise ProtocolError(f"STUN {name} is no address: {value.hex(' ')}")
        mask = (_COOKIE + transaction_id)[:size] if masked else bytes(size)
        packed = bytes(a ^ b for a, b in zip(value[4:], mask, strict=True))
        port = int.from_bytes(value[2:4]) ^ (MAGIC_COOKIE >> 16 if masked else 0)
        return IPv4Address(packed) if size == 4 else IPv6Address(packed), port

    def write(endpoint: Endpoint, transaction_id: bytes) -> bytes:
        address, port = endpoint
        mask = (_COOKIE + transaction_id) if masked else bytes(16)
        packed = bytes(a ^ b for a, b in zip(address.packed, mask, strict=False))
        family = 1 if address.version == 4 else 2
        return struct.pack("!BBH", 0, family, port ^ (MAGIC_COOKIE >> 16 if masked else 0)) + packed

    return Attribute(type, name, read, write)


def _utf8(name: str, value: bytes, limit: int) -> str:
    if len(value) > limit:
        raise ProtocolError(f"STUN {name} of {len(value)} bytes, at most {limit}")
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise ProtocolError(f"STUN {name} is not UTF-8: {error.reason}") from None


def _read_failure(value: bytes, _: bytes) -> Failure:
    if len(value) < 4 or not 3 <= value[2] & 7 <= 6 or value[3] > 99:
        raise ProtocolError(f"STUN ERROR-CODE is none: {value[:4].hex(' ')}")
    return Failure((value[2] & 7) * 100 + value[3], _utf8("ERROR-CODE", value[4:], _TEXT_LIMIT))


def _write_failure(failure: Failure, _: bytes) -> bytes:
    return bytes((0, 0, failure.code // 100, failure.code % 100)) + failure.reason.encode()


def _read_family_failure(value: bytes, transaction_id: bytes) -> tuple[int, Failure]:
    return value[0] if value else 0, _read_failure(value, transaction_id)


def _write_family_failure(of: tuple[int, Failure], transaction_id: bytes) -> bytes:
    family, failure = of
    return bytes((family,)) + _write_failure(failure, transaction_id)[1:]


def _read_types(value: bytes, _: bytes) -> tuple[int, ...]:
    if len(value) % 2:
        raise ProtocolError(f"STUN UNKNOWN-ATTRIBUTES of {len(value)} bytes")
    return struct.unpack(f"!{len(value) // 2}H", value)


def _write_types(types: tuple[int, ...], _: bytes) -> bytes:
    return struct.pack(f"!{len(types)}H", *types)


# RFC 8489 18.3
MAPPED_ADDRESS = _address(0x0001, "MAPPED-ADDRESS", masked=False)
USERNAME = _text(0x0006, "USERNAME", 508)
MESSAGE_INTEGRITY = _opaque_value(0x0008, "MESSAGE-INTEGRITY", range(20, 21))
ERROR_CODE = Attribute(0x0009, "ERROR-CODE", _read_failure, _write_failure)
UNKNOWN_ATTRIBUTES = Attribute(0x000A, "UNKNOWN-ATTRIBUTES", _read_types, _write_types)
REALM = _text(0x0014, "REALM")
NONCE = _opaque_value(0x0015, "NONCE", range(_TEXT_LIMIT + 1))
MESSAGE_INTEGRITY_SHA256 = _opaque_value(0x001C, "MESSAGE-INTEGRITY-SHA256", _SHA256_SIZES)
XOR_MAPPED_ADDRESS = _address(0x0020, "XOR-MAPPED-ADDRESS", masked=True)
SOFTWARE = _text(0x8022, "SOFTWARE")
ALTERNATE_SERVER = _address(0x8023, "ALTERNATE-SERVER", masked=False)
FINGERPRINT = _number(0x8028, "FINGERPRINT", 4)
# RFC 8656 18
CHANNEL_NUMBER = _number(0x000C, "CHANNEL-NUMBER", 2, reserved=2)
LIFETIME = _number(0x000D, "LIFETIME", 4)  # seconds
XOR_PEER_ADDRESS = _address(0x0012, "XOR-PEER-ADDRESS", masked=True)
DATA = _opaque_value(0x0013, "DATA")
XOR_RELAYED_ADDRESS = _address(0x0016, "XOR-RELAYED-ADDRESS", masked=True)
REQUESTED_ADDRESS_FAMILY = _number(0x0017, "REQUESTED-ADDRESS-FAMILY", 1, reserved=3)  # 1: IPv4, 2: IPv6
ADDITIONAL_ADDRESS_FAMILY = _number(0x8000, "ADDITIONAL-ADDRESS-FAMILY", 1, reserved=3)  # 2: IPv6 as well
ADDRESS_ERROR_CODE = Attribute(0x8001, "ADDRESS-ERROR-CODE", _read_family_failure, _write_family_failure)
EVEN_PORT = _number(0x0018, "EVEN-PORT", 1)  # 0x80: the next port is to be reserved
REQUESTED_TRANSPORT = _number(0x0019, "REQUESTED-TRANSPORT", 1, reserved=3)  # an IP protocol number
