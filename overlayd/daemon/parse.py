"""Strings of requests become values, here and once.

Owns: the forms of addresses, CIDRs, keys and endpoints, and the errors that name the field.  Must not know: what
they are for.
"""

import re
from ipaddress import IPv4Network, ip_address, ip_network

from overlayd import keys
from overlayd._fast import addresses
from overlayd.errors import InvalidValue, quoted
from overlayd.model.objects import Address, Network, unmapped

MAPPED = 96  # bits before an IPv4 address that is written as IPv6 (RFC 4291, 2.5.5.2)
KEEPALIVE_MAX = 65535  # seconds, a u16 in linux/wireguard.h


def address(text: str, field: str) -> Address:
    """`10.200.0.5` or `fd00::5`; `::ffff:10.200.0.5` is the first.

    Without a zone, which neither WireGuard's text protocol nor a netlink address has.
    """
    if (plain := addresses.address(text)) is not None:
        return unmapped(plain)
    try:
        value = ip_address(text)
    except ValueError:
        raise InvalidValue(f"request.{field}: {quoted(text)} is not an IP address") from None
    _require_no_zone(text, field)
    return unmapped(value)


def network(text: str, field: str) -> Network:
    """A CIDR; host bits beyond the prefix are dropped, an address without a prefix stands for itself."""
    value = addresses.network(text)
    if value is None:
        try:
            value = ip_network(text.strip(), strict=False)
        except ValueError:
            raise InvalidValue(f"request.{field}: {quoted(text)} is not a CIDR like 10.200.0.0/16") from None
        _require_no_zone(text, field)
    if value.version == 4 or value.prefixlen < MAPPED or (first := value.network_address.ipv4_mapped) is None:
        return value
    return IPv4Network((first, value.prefixlen - MAPPED))


def networks(text: str, field: str, most: int) -> tuple[Network, ...]:
    """Comma-separated CIDRs, possibly none, and `most` at most."""
    if text.count(",") >= most and (number := sum(1 for part in text.split(",") if part.strip())) > most:
        raise InvalidValue(f"request.{field}: at most {most} CIDRs, got {number}")
    return tuple([network(part, field) for part in text.split(",") if part.strip()])


def mac(text: str, field: str) -> bytes:
    """The MAC of an interface: six bytes in hexadecimal, with colons or hyphens."""
    if re.fullmatch("[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}", text) is None:
        raise InvalidValue(f"request.{field}: {quoted(text)} is not a MAC like 02:00:00:00:00:01")
    return bytes.fromhex(text.replace(":", "").replace("-", ""))


def key(text: str, field: str) -> bytes:
    """A WireGuard key: 32 bytes in base64."""
    try:
        return keys.parse(text)
    except ValueError as error:
        raise InvalidValue(f"request.{field}: {error}") from None


def endpoint(text: str, field: str) -> str:
    """`host:port` with a numeric port; empty for none.  The host is an IPv4 address, an IPv6 address in brackets, or a
    DNS name.
    """
    if not text:
        return ""
    host, colon, port = text.rpartition(":")
    if not colon or not host or re.fullmatch("[0-9]{1,5}", port) is None or not 0 < int(port) < 65536:
        raise InvalidValue(f"request.{field}: {quoted(text)} is not host:port")
    if host.startswith("[") != host.endswith("]") or (":" in host and not host.startswith("[")):
        raise InvalidValue(f"request.{field}: {quoted(text)}: an IPv6 host stands in brackets, like [fd00::1]:51820")
    if host.startswith("["):
        address(host[1:-1], field)
    elif addresses.address(host) is None:
        dns_name(host, field)
    return text


def server(text: str, field: str, port: int) -> str:
    """`host:port` of a server, or a host alone for the port that is usual."""
    bare = text.rpartition("]")[2] if text.startswith("[") else text
    if not text:
        raise InvalidValue(f"request.{field}: a server must not be empty")
    return endpoint(text if ":" in bare else f"{text}:{port}", field)


def dns_name(text: str, field: str) -> str:
    """One DNS name: labels of 1-63 letters, digits, hyphens and underscores, 253 characters at most (RFC 1035,
    2.3.4).
    """
    name = text.removesuffix(".").lower()
    labels = name.split(".")
    good = 0 < len(name) <= 253 and all(
        0 < len(label) <= 63
        and label.isascii()
        and not label.startswith("-")
        and not label.endswith("-")
        and all(character.isalnum() or character in "-_" for character in label)
        for label in labels
    )
    if not good:
        raise InvalidValue(
            f"request.{field}: {quoted(text)} is not a DNS name: at most 253 characters in labels of 1 to 63 letters, "
            "digits, - and _, with no - at either end; other scripts in their form xn--"
        )
    return name


def _require_no_zone(text: str, field: str) -> None:
    _, percent, zone = text.partition("%")
    if percent:
        raise InvalidValue(
            f"request.{field}: {quoted(text)}: a zone (%{zone[:15]}) cannot be kept; use an address without one"
        )
