"""The names of our links, as the orchestrator computes them too.

Owns: the naming rule and its hash.  Must not know: which links exist, or what they carry.

A name is `zl-` + parts joined by `-` (+ `-` + suffix) where the kernel has room for it.  Else the leading digits of a
hash stand for the parts; it is taken over parts and suffix and written in hexadecimal without zero padding.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from overlayd.errors import RequestError

LONGEST = 15  # bytes of a link's name: IFNAMSIZ (linux/if.h) less the terminating zero
PREFIX = "zl-"
DEVICE = "g"
BRIDGE = "b"
DEDICATED = "d"

# Our own constant: a node has hundreds of services, and a name costs 10 microseconds to hash.
CACHED = 4096

Leg = Literal["s", "g"]  # of a container: to its service, to the global overlay
LEGS: tuple[Leg, ...] = ("s", "g")

_OF_PROCESS = re.compile(r"veth-(\d+)-[sg]")
_OF_NAMESPACE = re.compile(r"zl-[cg][0-9a-f]{10}")
_NAMESPACE_LEGS = {"s": "c", "g": "g"}

_END = b"\xff"  # closes each hashed string; no byte of UTF-8
_MASK = (1 << 64) - 1

# Byte for byte, whatever they encode; 0xa0 is white space in the kernel's table (lib/ctype.c), as in Latin-1.
_REFUSED = frozenset(b"/:%\0 \t\n\v\f\r\xa0")


def name(parts: Sequence[str], suffix: str) -> str:
    """The name of the link of these parts, at most 15 bytes of UTF-8; suffix may be empty."""
    return _name(tuple(parts), suffix)


def device_name(deployment: str, instance_id: str) -> str:
    """The global WireGuard device."""
    return _name((deployment, instance_id), DEVICE)


def bridge_name(deployment: str, instance_id: str, service: str) -> str:
    """The bridge of a service."""
    return _name((deployment, instance_id, service), BRIDGE)


def dedicated_name(deployment: str, instance_id: str, service: str) -> str:
    """The WireGuard device of a dedicated service."""
    return _name((deployment, instance_id, service), DEDICATED)


def veth_name(pid: int, leg: Leg) -> str:
    """The host end of the veth of a container that is attached by its process."""
    return f"veth-{pid}-{leg}"


def namespace_veth_name(id: str, interface: str, leg: Leg) -> str:
    """The host end of the veth of a container that is attached by its namespace, with that interface."""
    return f"{PREFIX}{_NAMESPACE_LEGS[leg]}{_namespace_digits(id, interface)}"


@lru_cache(CACHED)
def _namespace_digits(id: str, interface: str) -> str:
    digits = f"{siphash13(b''.join(string.encode() + _END for string in (id, interface))):016x}"
    return digits[:10]


def is_host_end(link: str) -> bool:
    """Whether a link is named like the host end of a container's veth."""
    return _OF_PROCESS.fullmatch(link) is not None or _OF_NAMESPACE.fullmatch(link) is not None


def pid_of(link: str) -> int:
    """The process in the name of a host end; 0 when there is none."""
    match = _OF_PROCESS.fullmatch(link)
    return int(match[1]) if match else 0


def require_legal(link: str, after: str) -> None:
    """RequestError when Linux does not take a link's name (dev_valid_name() in net/core/dev.c).  after: whose name it
    is made of, for the message.
    """
    if not _REFUSED.isdisjoint(link.encode()):
        raise RequestError(
            f"{after} makes the link name {link!r}, but Linux takes no '/', ':', white space or byte 0xa0 (as in the "
            "letter \N{LATIN SMALL LETTER A WITH GRAVE}) there, and a '%' as a template for numbers"
        )


def require_printable(text: str, field: str, longest: int) -> None:
    """RequestError when a name is longer than that many bytes of UTF-8, or holds what a terminal would act on or not
    show: control characters, escapes, marks of direction.  field: the request's key.
    """
    if len(text) > longest or len(text.encode(errors="surrogatepass")) > longest:
        raise RequestError(f"request.{field}: a name has at most {longest} bytes, this one begins {text[:32]!a}")
    if not text.isprintable():
        raise RequestError(f"request.{field}: {text!a} holds characters that cannot be shown")


def is_bridge_name(link: str) -> bool:
    """Whether a link is named like a service bridge, `zl-...-b`, ours or not."""
    return link.startswith(PREFIX) and link.endswith(f"-{BRIDGE}") and len(link) > len(PREFIX) + len(f"-{BRIDGE}")


@lru_cache(CACHED)
def _name(parts: tuple[str, ...], suffix: str) -> str:
    tail = f"-{suffix}" if suffix else ""
    plain = f"{PREFIX}{'-'.join(parts)}{tail}"
    if len(plain.encode()) <= LONGEST:
        return plain
    digits = f"{siphash13(b''.join(string.encode() + _END for string in (*parts, suffix))):x}"
    room = LONGEST - len(PREFIX) - len(tail.encode())
    if room <= 0:
        return PREFIX + digits[: LONGEST - len(PREFIX)]
    return PREFIX + digits[:room] + tail


def siphash13(data: bytes) -> int:
    """SipHash of one compression and three finalisation rounds, with a zero key (Aumasson and Bernstein, 2012)."""
    # The paper's initial state ("somepseudorandomlygeneratedbytes"), which a zero key leaves as it is.
    v = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)
    whole = len(data) & ~7
    last = int.from_bytes(data[whole:], "little") | (len(data) & 0xFF) << 56
    words = [int.from_bytes(data[i : i + 8], "little") for i in range(0, whole, 8)]
    for word in (*words, last):
        v0, v1, v2, v3 = _round(v[0], v[1], v[2], v[3] ^ word)
        v = (v0 ^ word, v1, v2, v3)
    v = (v[0], v[1], v[2] ^ 0xFF, v[3])
    for _ in range(3):
        v = _round(*v)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def _round(v0: int, v1: int, v2: int, v3: int) -> tuple[int, int, int, int]:
    v0 = (v0 + v1) & _MASK
    v1 = _rotate(v1, 13) ^ v0
    v0 = _rotate(v0, 32)
    v2 = (v2 + v3) & _MASK
    v3 = _rotate(v3, 16) ^ v2
    v0 = (v0 + v3) & _MASK
    v3 = _rotate(v3, 21) ^ v0
    v2 = (v2 + v1) & _MASK
    v1 = _rotate(v1, 17) ^ v2
    v2 = _rotate(v2, 32)
    return v0, v1, v2, v3


def _rotate(word: int, bits: int) -> int:
    return (word << bits | word >> (64 - bits)) & _MASK
