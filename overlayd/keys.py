"""Curve25519 keys: their text, and the two computations with them (X25519, RFC 7748).

Owns: the form of a key, where a new one comes from, and the library that computes.  Must not know: what a key is for.

PyNaCl (libsodium): docs/dependencies.md says what was measured against it.
"""

from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from functools import lru_cache
from secrets import token_bytes

from nacl.bindings import crypto_scalarmult, crypto_scalarmult_base

from overlayd.errors import quoted

KEY_SIZE = 32  # bytes of a key, private or public

# The u-coordinates of the points of low order (Bernstein, "Curve25519: new Diffie-Hellman speed records", appendix), as
# they may be written: below 2**255, where bit 255 does not count.  The last three are 0, 1 and -1 once more.
_PRIME = 2**255 - 19
_ORDER_8 = (
    0x00B8495F16056286FDB1329CEB8D09DA6AC49FF1FAE35616AEB8413B7C7AEBE0,
    0x57119FD0DD4E22D8868E1C58C45C44045BEF839C55B1D0B1248C50A3BC959C5F,
)
_LOW_ORDER = frozenset(
    (point | high).to_bytes(KEY_SIZE, "little")
    for point in (0, 1, *_ORDER_8, _PRIME - 1, _PRIME, _PRIME + 1)
    for high in (0, 1 << 255)
)

# Our own constant: every add_peer asks for its device's key, which takes 20 us to compute; a node has few devices.
_KEYS_REMEMBERED = 256


def text(key: bytes) -> str:
    """A key as WireGuard's tools write it: base64."""
    return b64encode(key).decode()


def parse(text: str) -> bytes:
    """The key that `text` is the base64 of.  Raises ValueError, which says what is wrong."""
    try:
        key = b64decode(text, validate=True)
    except (Base64Error, ValueError):
        raise ValueError(f"{quoted(text)} is not base64") from None
    if len(key) != KEY_SIZE:
        raise ValueError(f"{quoted(text)} is {len(key)} bytes, a key is {KEY_SIZE}")
    return key


def is_nobodys(public: bytes) -> bool:
    """Whether no node can have this public key: all zeros, and few more, with which `shared` computes nothing and no
    handshake succeeds.
    """
    return public in _LOW_ORDER


def generate() -> bytes:
    """A fresh private key, clamped as `wg genkey` does (RFC 7748, section 5)."""
    key = bytearray(token_bytes(KEY_SIZE))
    key[0] &= 248
    key[31] = key[31] & 127 | 64
    return bytes(key)


@lru_cache(_KEYS_REMEMBERED)
def public(private: bytes) -> bytes:
    """The public key of a private one, both 32 bytes (X25519 with the base point, RFC 7748, section 6.1)."""
    _require_size(private)
    return crypto_scalarmult_base(private)


def shared(private: bytes, public: bytes) -> bytes:
    """What two nodes have in common, 32 bytes (X25519, RFC 7748, section 6.1).  ValueError: `public` is no key that a
    node could have, for with it everybody has the same in common.
    """
    _require_size(private)
    _require_size(public)
    try:
        return crypto_scalarmult(private, public)
    except RuntimeError as error:  # libsodium refuses a secret of nothing but zeros
        raise ValueError("the public key is of low order") from error


def _require_size(key: bytes) -> None:
    """libsodium reads 32 bytes, however many there are."""
    if len(key) != KEY_SIZE:
        raise ValueError(f"a key is {KEY_SIZE} bytes, not {len(key)}")
