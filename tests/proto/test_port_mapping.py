"""PCP and NAT-PMP: the bytes of the RFCs, and answers that are none."""

import struct
from contextlib import suppress
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.errors import ProtocolError
from overlayd.proto.port_mapping import Mapping, Refusal, nat_pmp_requests, pcp_request, read_nat_pmp, read_pcp

CLIENT, OUTSIDE = IPv4Address("192.168.1.7"), IPv4Address("203.0.113.9")
NONCE = bytes(range(12))
MAPPED = bytes(10) + b"\xff\xff"


def pcp_response(result: int = 0, nonce: bytes = NONCE, protocol: int = 17, port: int = 51820) -> bytes:
    head = struct.pack(">BBBBII12x", 2, 0x81, 0, result, 120, 77)
    return head + nonce + struct.pack(">B3xHH", protocol, port, 40000) + MAPPED + OUTSIDE.packed


def test_a_request_of_pcp() -> None:
    """RFC 6887, figures 2 and 9."""
    request = pcp_request(CLIENT, 51820, 3600, NONCE)
    assert request[:8] == bytes.fromhex("02010000 00000e10")
    assert request[8:24] == MAPPED + CLIENT.packed
    assert request[24:36] == NONCE and request[36:40] == b"\x11\0\0\0"
    assert request[40:44] == bytes.fromhex("ca6c ca6c") and request[44:] == MAPPED + bytes(4)


def test_requests_of_nat_pmp() -> None:
    """RFC 6886, sections 3.2 and 3.3."""
    assert nat_pmp_requests(51820, 3600) == (b"\0\0", bytes.fromhex("0001 0000 ca6c ca6c 00000e10"))


def test_what_a_router_gives() -> None:
    assert read_pcp(pcp_response(), 51820, NONCE) == Mapping(OUTSIDE, 40000, 120)
    assert read_nat_pmp(bytes.fromhex("0080 0000 00000001") + OUTSIDE.packed, 51820) == OUTSIDE
    assert read_nat_pmp(bytes.fromhex("0081 0000 00000001 ca6c 9c40 00000078"), 51820) == (40000, 120)


def test_what_a_router_refuses() -> None:
    assert read_pcp(pcp_response(2), 51820, NONCE) == Refusal("it does not allow that")
    assert read_pcp(pcp_response(99)[:24], 51820, NONCE) == Refusal("it answers 99")
    assert read_pcp(bytes.fromhex("0081 0001 00000001"), 51820, NONCE) == Refusal(
        "it does not speak this version of PCP"
    )
    assert read_nat_pmp(bytes.fromhex("0081 0002 00000001"), 51820) == Refusal("it does not allow that")


@pytest.mark.parametrize("response", [
    pcp_response(nonce=bytes(12)),
    pcp_response(2, nonce=bytes(12)),
    pcp_response(protocol=6),
    pcp_response(port=1),
    pcp_response()[:40],
    pcp_request(CLIENT, 51820, 3600, NONCE),
    b"",
])  # fmt: skip
def test_what_is_no_answer_of_pcp(response: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_pcp(response, 51820, NONCE)


@pytest.mark.parametrize(
    "response", ["", "0080 0000 00000001", "0081 0000 00000001 0001 9c40 00000078", "0180000000000001"]
)
def test_what_is_no_answer_of_nat_pmp(response: str) -> None:
    with pytest.raises(ProtocolError):
        read_nat_pmp(bytes.fromhex(response), 51820)


@given(st.binary(max_size=80), st.integers(0, 65535))
def test_anything_is_read_or_refused(response: bytes, port: int) -> None:
    for made in (response, b"\x02\x81" + response, b"\0\x80" + response, b"\0\x81" + response):
        with suppress(ProtocolError):
            read_pcp(made, port, NONCE)
        with suppress(ProtocolError):
            read_nat_pmp(made, port)
