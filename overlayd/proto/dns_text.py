"""DNS messages as people read them: the form of zone files.

Owns: the names of types and response codes, and the text of records.  Must not know: sockets, or who asks.

RFC 1035 section 5.1 (the form), 3597 (types that we do not know), 4343 (escapes), 8914 (extended errors).
"""

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from overlayd._fast.dnsquery import wire_name
from overlayd.errors import ProtocolError
from overlayd.proto.dns import HEADER

TYPES = {
    "A": 1,
    "NS": 2,
    "CNAME": 5,
    "SOA": 6,
    "PTR": 12,
    "HINFO": 13,
    "MX": 15,
    "TXT": 16,
    "AAAA": 28,
    "SRV": 33,
    "NAPTR": 35,
    "DNAME": 39,
    "DS": 43,
    "RRSIG": 46,
    "NSEC": 47,
    "DNSKEY": 48,
    "TLSA": 52,
    "SVCB": 64,
    "HTTPS": 65,
    "ANY": 255,
    "CAA": 257,
}
MOST_TEXT = 65_536  # our own constant, characters: pointers make some megabytes of the longest message
CODES = ("NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED")

_NAMES = {number: name for name, number in TYPES.items()}
_OPT, _EXTENDED_ERROR = 41, 15
_RECORD = struct.Struct(">HHIH")  # type, class, lifetime, bytes of data
_POINTER = 0xC0
_LONGEST_NAME = 255
_ANSWER, _AUTHORITY, _ADDITIONAL = range(3)
_IN_NAMES, _QUOTED = b'."();@$\\', b'"\\'  # characters that mean something there


class Record(NamedTuple):
    """ttl: seconds.  data: as a zone file has it."""

    name: str
    type: str
    ttl: int
    data: str


class Response(NamedTuple):
    """code: in words.  answers, authorities: the records of these sections, as many as fit MOST_TEXT.  left_out: how
    many do not.  error: the first extended error.
    """

    code: str
    answers: tuple[Record, ...]
    authorities: tuple[Record, ...]
    left_out: int
    error: str


def type_number(text: str) -> int:
    """The number of a type such as `AAAA` or `TYPE65`.  ValueError."""
    name = text.upper()
    if name in TYPES:
        return TYPES[name]
    digits = name.removeprefix("TYPE")
    if digits != name and digits.isascii() and digits.isdecimal() and int(digits) < 1 << 16:
        return int(digits)
    raise ValueError(f"{text[:20]!r} is no type of DNS records; others than {', '.join(TYPES)} are written TYPE1234")


def type_name(number: int) -> str:
    return _NAMES.get(number, f"TYPE{number}")


def question(name: str, type: str) -> tuple[bytes, str]:
    """What is asked about a name, as it stands in a message, and the type: that of `type`, or if that is empty of an
    address its reverse name's PTR, of anything else A.  ValueError.
    """
    try:
        address = ip_address(name)
    except ValueError:
        address = None
    if address is not None and type.upper() in ("", "PTR"):
        name, type = address.reverse_pointer, "PTR"
    number = type_number(type or "A")
    try:
        return wire_name(name) + struct.pack(">HH", number, 1), type_name(number)
    except UnicodeEncodeError:
        raise ValueError(f"{name[:60]!a} is not ASCII: a name of other letters is asked for in its xn-- form") from None


def name(question: bytes) -> str:
    """The name in a question."""
    return _name(question, 0)[0]


def read(message: bytes) -> Response:
    """ProtocolError for what is no whole response."""
    if len(message) < HEADER.size:
        raise ProtocolError("a DNS response without a header")
    _, _, flags, questions, *counts = HEADER.unpack_from(message)
    code, error, text, left_out = flags & 0x0F, "", 0, 0
    at = HEADER.size
    for _ in range(questions):
        at = _name_end(message, at) + 4
    sections: tuple[list[Record], ...] = ([], [], [])
    for section, count in enumerate(counts):
        for _ in range(count):
            owner, at = at, _name_end(message, at)
            if at + _RECORD.size > len(message):
                raise ProtocolError("a DNS record is cut short")
            type, _, ttl, size = _RECORD.unpack_from(message, at)
            start = at + _RECORD.size
            at = start + size
            if at > len(message):
                raise ProtocolError("a DNS record is cut short")
            if type == _OPT:
                code |= ttl >> 24 << 4
                error = error or _extended_error(message[start:at])
            elif text > MOST_TEXT:
                left_out += section != _ADDITIONAL
            else:
                record = Record(_name(message, owner)[0], type_name(type), ttl, _data(message, type, start, at))
                text += len(record.name) + len(record.data)
                sections[section].append(record)
    words = CODES[code] if code < len(CODES) else f"RCODE{code}"
    return Response(words, tuple(sections[_ANSWER]), tuple(sections[_AUTHORITY]), left_out, error)


def _name_end(message: bytes, at: int) -> int:
    """Where what follows a name begins."""
    while at < len(message):
        size = message[at]
        if size == 0 or size >= _POINTER:
            return at + 1 + (size > 0)
        at += 1 + size
    raise ProtocolError("a DNS name is cut short")


def _name(message: bytes, at: int) -> tuple[str, int]:
    """A name, and where what follows it begins.  Each pointer has to lead further to the front."""
    labels: list[str] = []
    end, front, length = None, at, 0
    while True:
        if at >= len(message):
            raise ProtocolError("a DNS name is cut short")
        size = message[at]
        if size >= _POINTER and at + 1 < len(message):
            end = end if end is not None else at + 2
            at = (size & 0x3F) << 8 | message[at + 1]
            if at >= front:
                raise ProtocolError("a DNS name points to itself")
            front = at
            continue
        length += 1 + size
        if size >= 0x40 or length > _LONGEST_NAME:
            raise ProtocolError("not a DNS name")
        at += 1
        if size == 0:
            return "".join(f"{label}." for label in labels) or ".", end if end is not None else at
        if at + size > len(message):
            raise ProtocolError("a DNS name is cut short")
        labels.append(_escaped(message[at : at + size], _IN_NAMES))
        at += size


def _escaped(data: bytes, special: bytes, first: int = 0x21) -> str:
    """Bytes as a zone file has them.  special: what has a meaning there.  first: the first one that can be seen."""
    return "".join(
        f"\\{chr(byte)}" if byte in special else chr(byte) if first <= byte < 0x7F else f"\\{byte:03}" for byte in data
    )


def _data(message: bytes, type: int, at: int, end: int) -> str:
    """The data of a record; in hexadecimal what is of a type that we do not know, or broken."""
    data = message[at:end]
    try:
        match _NAMES.get(type):
            case "A":
                return str(IPv4Address(data))
            case "AAAA":
                return str(IPv6Address(data))
            case "NS" | "CNAME" | "PTR" | "DNAME":
                return _last_name(message, at, end)
            case "MX":
                return f"{int.from_bytes(data[:2])} {_last_name(message, at + 2, end)}"
            case "SRV":
                return " ".join((*map(str, struct.unpack_from(">HHH", data)), _last_name(message, at + 6, end)))
            case "SOA":
                server, at = _name(message, at)
                person, at = _name(message, at)
                if at + 20 == end:
                    return " ".join((server, person, *map(str, struct.unpack_from(">IIIII", message, at))))
            case "TXT" | "HINFO":
                return " ".join(_strings(data))
    except (ProtocolError, ValueError, struct.error):
        pass
    return f"\\# {len(data)} {data.hex()}".rstrip()


def _last_name(message: bytes, at: int, end: int) -> str:
    name, after = _name(message, at)
    if after != end:
        raise ProtocolError("a DNS record is longer than its name")
    return name


def _strings(data: bytes) -> list[str]:
    strings, at = [], 0
    while at < len(data):
        string = data[at + 1 : at + 1 + data[at]]
        if len(string) != data[at]:
            raise ProtocolError("a DNS string is cut short")
        strings.append(f'"{_escaped(string, _QUOTED, first=0x20)}"')
        at += 1 + len(string)
    return strings


def _extended_error(options: bytes) -> str:
    """The first extended error: its text, else its number."""
    at = 0
    while at + 4 <= len(options):
        option, size = struct.unpack_from(">HH", options, at)
        value = options[at + 4 : at + 4 + size]
        if option == _EXTENDED_ERROR and len(value) == size >= 2:
            text = value[2:].rstrip(b"\0").decode(errors="replace")
            return text or f"extended error {int.from_bytes(value[:2])}"
        at += 4 + size
    return ""
