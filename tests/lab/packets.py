"""Packets and frames that no honest stack would send.

Owns: their bytes.  Must not know: who sends them, or whether they arrive.  Formats: Ethernet II, ARP (RFC 826), IPv4
(RFC 791), IPv6 (RFC 8200), UDP (RFC 768), ICMP (RFC 792), ICMPv6 (RFC 4443), neighbour discovery (RFC 4861).
"""

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

UDP, ICMPV6 = 17, 58
ECHO_REQUEST = {4: 8, 6: 128}
ECHO_REPLY = {4: 0, 6: 129}
ROUTER_ADVERTISEMENT, NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT, REDIRECT = 134, 135, 136, 137
ARP_REQUEST, ARP_REPLY = 1, 2
EVERYBODY = b"\xff" * 6
ALL_NODES = "ff02::1"
_ETHERTYPE = {4: 0x0800, 6: 0x86DD}
_ARP = 0x0806
_TYPE_SOURCE_LINK_LAYER, _TYPE_TARGET_LINK_LAYER, _TYPE_PREFIX = 1, 2, 3

Address = IPv4Address | IPv6Address


def datagram(source: str, destination: str, ports: tuple[int, int], payload: bytes) -> bytes:
    """An IP packet with a UDP datagram from `source`; ports: its own and the destination's."""
    head = struct.pack("!HHHH", *ports, 8 + len(payload), 0)
    return _packet(ip_address(source), ip_address(destination), UDP, head + payload, checksum_at=6)


def source_routed(packet: bytes, kind: int, hop: str) -> bytes:
    """An IPv4 packet that is to go on to `hop` from where it arrives (RFC 791, section 3.1).  kind: of the option, 131
    loose, 137 strict.
    """
    option = bytes([kind, 7, 4]) + ip_address(hop).packed + b"\0"
    length = struct.pack("!H", len(packet) + len(option))
    head = bytes([0x47, packet[1]]) + length + packet[4:10] + b"\0\0" + packet[12:20] + option
    return head[:10] + struct.pack("!H", _checksum(head)) + head[12:] + packet[20:]


def echo_request(version: int, identifier: int, payload: bytes) -> bytes:
    """What a raw socket of ICMP or ICMPv6 is given to send; the checksum of ICMPv6 is the kernel's to add."""
    message = struct.pack("!BBHHH", ECHO_REQUEST[version], 0, 0, identifier, 0) + payload
    return message if version == 6 else message[:2] + struct.pack("!H", _checksum(message)) + message[4:]


def neighbour_advertisement(source: str, destination: str, target: str, mac: bytes) -> bytes:
    """`target` is at `mac`, says `source`; it overrides what was known."""
    override = 0x2000_0000
    body = struct.pack("!I", override) + ip_address(target).packed + _link_layer(_TYPE_TARGET_LINK_LAYER, mac)
    return _icmpv6(source, destination, NEIGHBOUR_ADVERTISEMENT, body)


def neighbour_solicitation(source: str, destination: str, target: str, mac: bytes) -> bytes:
    """Who is `target`, asks `source`, who is at `mac`?"""
    body = bytes(4) + ip_address(target).packed + _link_layer(_TYPE_SOURCE_LINK_LAYER, mac)
    return _icmpv6(source, destination, NEIGHBOUR_SOLICITATION, body)


def router_advertisement(source: str, mac: bytes, prefix: str) -> bytes:
    """A default router for half an hour, and a prefix to make addresses of."""
    body = struct.pack("!BBHII", 64, 0, 1800, 0, 0)
    body += struct.pack("!BBBBIII", _TYPE_PREFIX, 4, 64, 0xC0, 3600, 3600, 0) + ip_address(prefix).packed
    body += _link_layer(_TYPE_SOURCE_LINK_LAYER, mac)
    return _icmpv6(source, ALL_NODES, ROUTER_ADVERTISEMENT, body)


def arp(operation: int, sender: tuple[bytes, str], target: tuple[bytes, str]) -> bytes:
    """An ARP message; sender and target with MAC and IPv4 address."""
    ends = b"".join(mac + ip_address(address).packed for mac, address in (sender, target))
    return struct.pack("!HHBBH", 1, _ETHERTYPE[4], 6, 4, operation) + ends


def frame(source: bytes, destination: bytes, content: bytes) -> bytes:
    """`content`, an IP packet or an ARP message, in a frame from one MAC to another."""
    kind = _ETHERTYPE.get(content[0] >> 4, _ARP)
    return destination + source + struct.pack("!H", kind) + content


def eui64(mac: bytes) -> str:
    """The IPv6 link-local address that a kernel makes of a MAC (RFC 4291, appendix A)."""
    return str(IPv6Address(b"\xfe\x80" + bytes(6) + bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]))


def multicast_mac(address: str) -> bytes:
    """Where an IPv6 multicast packet goes on Ethernet (RFC 2464, section 7)."""
    return b"\x33\x33" + ip_address(address).packed[-4:]


def _icmpv6(source: str, destination: str, kind: int, body: bytes) -> bytes:
    head = struct.pack("!BBH", kind, 0, 0)
    return _packet(ip_address(source), ip_address(destination), ICMPV6, head + body, checksum_at=2, hops=255)


def _link_layer(kind: int, mac: bytes) -> bytes:
    return bytes([kind, 1]) + mac


def _packet(
    source: Address, destination: Address, protocol: int, body: bytes, *, checksum_at: int, hops: int = 64
) -> bytes:
    pseudo = source.packed + destination.packed + struct.pack("!II", len(body), protocol)
    checksum = _checksum(pseudo + body) or 0xFFFF  # of UDP 0 means that there is none
    body = body[:checksum_at] + struct.pack("!H", checksum) + body[checksum_at + 2 :]
    if source.version == 6:
        return struct.pack("!IHBB", 6 << 28, len(body), protocol, hops) + source.packed + destination.packed + body
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, hops, protocol, 0)
    head += source.packed + destination.packed
    return head[:10] + struct.pack("!H", _checksum(head)) + head[12:] + body


def _checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
