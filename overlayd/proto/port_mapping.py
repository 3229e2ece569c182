"""Asking a NAT to send a port here: PCP (RFC 6887), and NAT-PMP (RFC 6886), which it came from.

Owns: the messages of a client, for UDP over IPv4.  Must not know: sockets, clocks, who is asked or when.

Both are spoken at one port of the router, and begin with their version, so that each understands at least that the
other is none of its own.
"""

import struct
from ipaddress import IPv4Address
from typing import NamedTuple

from overlayd.errors import ProtocolError

PORT = 5351
NONCE_SIZE = 12

_PCP, _NAT_PMP = 2, 0
_RESPONSE = 0x80
_MAP = 1  # PCP's opcode
_ADDRESS, _MAP_UDP = 0, 1  # NAT-PMP's opcodes
_UDP = 17
_MAPPED = bytes(10) + b"\xff\xff"  # before an IPv4 address in the place of an IPv6 one
_PCP_HEAD = struct.Struct(">BBxBI")  # version, opcode, result (0 in a request), lifetime
_PCP_MAP = struct.Struct(">12sB3xHH16s")  # nonce, protocol, internal and external port, external address
_PCP_SIZE = 60  # of a MAP without options: head, client or epoch and reserved, and the opcode's data
_AT_MAP = 24

# What a refusal says to an operator (RFC 6887 7.4, RFC 6886 3.5).
_PCP_RESULTS = {
    1: "it does not speak this version of PCP",
    2: "it does not allow that",
    3: "it finds the request malformed",
    4: "it does not map ports",
    7: "the network before it fails",
    8: "it has no room left",
    9: "it does not map UDP",
    10: "this node has too many mappings there",
    11: "the external port is not to be had",
    12: "another NAT is in between",
}
_NAT_PMP_RESULTS = {
    1: "it does not speak this version of NAT-PMP",
    2: "it does not allow that",
    3: "the network before it fails",
    4: "it has no room left",
    5: "it does not map ports",
}


class Mapping(NamedTuple):
    """Who sends to `address` and `port` reaches us, for `lifetime` seconds."""

    address: IPv4Address
    port: int
    lifetime: int


class Refusal(NamedTuple):
    reason: str


def pcp_request(client: IPv4Address, port: int, lifetime: int, nonce: bytes) -> bytes:
    """Ask for a mapping of our UDP port.  client: our address, as the router sees it.  nonce: 12 random bytes, the same
    when the mapping is renewed.
    """
    head = _PCP_HEAD.pack(_PCP, _MAP, 0, lifetime) + _MAPPED + client.packed
    return head + _PCP_MAP.pack(nonce, _UDP, port, port, _MAPPED + bytes(4))


def read_pcp(response: bytes, port: int, nonce: bytes) -> Mapping | Refusal:
    """ProtocolError for what is no answer to that request."""
    if len(response) >= 4 and response[0] == _NAT_PMP and response[1] & _RESPONSE:
        return Refusal(_PCP_RESULTS[1])  # as a router answers that knows NAT-PMP alone (RFC 6887 appendix A)
    if len(response) < 24 or response[0] != _PCP or response[1] != _RESPONSE | _MAP:
        raise ProtocolError("no response of PCP")
    _, _, result, lifetime = _PCP_HEAD.unpack_from(response)
    if result:
        if len(response) >= _PCP_SIZE and _PCP_MAP.unpack_from(response, _AT_MAP)[0] != nonce:
            raise ProtocolError("a response of PCP to another request")
        return Refusal(_PCP_RESULTS.get(result, f"it answers {result}"))
    if len(response) < _PCP_SIZE:
        raise ProtocolError("a response of PCP that is cut short")
    echoed, protocol, internal, external, address = _PCP_MAP.unpack_from(response, _AT_MAP)
    if (echoed, protocol, internal) != (nonce, _UDP, port) or not address.startswith(_MAPPED):
        raise ProtocolError("a response of PCP to another request")
    return Mapping(IPv4Address(address[12:]), external, lifetime)


def nat_pmp_requests(port: int, lifetime: int) -> tuple[bytes, bytes]:
    """Ask for the router's external address, and for a mapping of our UDP port."""
    return struct.pack(">BB", _NAT_PMP, _ADDRESS), struct.pack(">BBxxHHI", _NAT_PMP, _MAP_UDP, port, port, lifetime)


def read_nat_pmp(response: bytes, port: int) -> IPv4Address | tuple[int, int] | Refusal:
    """The external address, the external port and its lifetime, or why neither.  ProtocolError for what is none."""
    if len(response) < 8 or response[0] != _NAT_PMP or response[1] not in (_RESPONSE, _RESPONSE | _MAP_UDP):
        raise ProtocolError("no response of NAT-PMP")
    result = int.from_bytes(response[2:4])
    if result:
        return Refusal(_NAT_PMP_RESULTS.get(result, f"it answers {result}"))
    if response[1] == _RESPONSE and len(response) >= 12:
        return IPv4Address(response[8:12])
    if response[1] == _RESPONSE | _MAP_UDP and len(response) >= 16:
        internal, external, lifetime = struct.unpack_from(">HHI", response, 8)
        if internal == port:
            return external, lifetime
    raise ProtocolError("a response of NAT-PMP to another request, or cut short")
