"""What the name server writes itself of DNS messages, against dnspython."""

import struct

import dns.message
import dns.rcode
import pytest

from overlayd._fast.dnsquery import MAX_DATAGRAM, wire_name
from overlayd.proto import dns as codec


@pytest.mark.parametrize("edns", [False, True])
def test_a_query_of_our_own(edns):
    message = dns.message.from_wire(codec.query(wire_name("www.example.org") + b"\0\x10\0\1", 0xBEEF, edns=edns))
    expected = dns.message.make_query("www.example.org", "TXT", use_edns=0 if edns else -1, payload=MAX_DATAGRAM)
    assert (message.id, message.flags, message.question) == (0xBEEF, expected.flags, expected.question)
    assert (message.edns, message.payload, message.options) == (expected.edns, MAX_DATAGRAM if edns else 0, ())


def test_which_responses_tell_that_a_server_takes_no_edns():
    for code in range(16):
        header = struct.pack(">6H", 7, 0x8180 | code, 0, 0, 0, 0)
        assert codec.takes_no_edns(header) == (code in (dns.rcode.FORMERR, dns.rcode.NOTIMP))


def test_a_frame_has_its_length_before_it():
    assert codec.frame(b"abc") == b"\0\3abc"
