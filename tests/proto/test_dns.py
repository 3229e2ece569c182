"""What the forwarder reads and writes, against dnspython, and against everything that is no DNS message."""

import contextlib
import struct

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rrset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayd._fast.dnscache import key_of
from overlayd._fast.dnsquery import MAX_DATAGRAM
from overlayd._fast.nametable import NameTable
from overlayd.errors import ProtocolError
from overlayd.proto import dns as codec

LABEL = st.text("abcXYZ0-", min_size=1, max_size=20)
NAME = st.lists(LABEL, min_size=2, max_size=5).map(".".join)


def asked(name="WWW.Example.org", type="A", **options):
    return dns.message.make_query(name, type, **options)


def test_the_name_of_a_record_may_point_to_the_question():
    message = bytearray(asked(use_edns=-1).to_wire())
    message[11] = 1  # one additional record
    tsig = b"\xc0\x0c" + struct.pack(">HHIH", dns.rdatatype.TSIG, dns.rdataclass.ANY, 0, 0)
    assert codec.read_query(bytes(message) + tsig).name == codec.read_query(asked(use_edns=-1).to_wire()).name


def answered(query, count=1):
    response = dns.message.make_response(query)
    name = query.question[0].name
    response.answer.append(dns.rrset.from_text_list(name, 60, "IN", "A", [f"192.0.2.{n}" for n in range(count)]))
    return response


@given(NAME, st.sampled_from(["A", "AAAA", "TXT", "ANY"]), st.sampled_from([-1, 0]), st.booleans(), st.integers(0, 7))
def test_a_query_is_read_as_it_was_written(name, type, edns, dnssec, flags):
    written = asked(name, type, use_edns=edns, want_dnssec=dnssec and edns == 0)
    bits = [dns.flags.RD, dns.flags.AD, dns.flags.CD]
    written.flags = sum(bit for number, bit in enumerate(bits) if flags >> number & 1)
    message = written.to_wire()
    query = codec.read_query(message + b"what stands behind it")
    assert query.question == message[12 : 12 + len(query.question)] and len(query.question) == len(name) + 2 + 4
    assert query.name == query.question[:-4].lower()
    assert query.flags == (message[2], message[3])
    assert (query.edns, query.dnssec) == (edns == 0, dnssec and edns == 0)


@pytest.mark.parametrize("dnssec", [False, True])
@pytest.mark.parametrize("flags", [0, dns.flags.RD, dns.flags.RD | dns.flags.AD | dns.flags.CD])
def test_what_goes_upstream_is_the_question_and_an_opt_record_of_ours(flags, dnssec):
    options = [dns.edns.GenericOption(10, b"12345678"), dns.edns.ECSOption("192.0.2.0"), dns.edns.GenericOption(3, b"")]
    query = asked(use_edns=0, payload=4096, options=options, want_dnssec=dnssec)
    query.flags = flags
    read = codec.read_query(query.to_wire())
    sent = dns.message.from_wire(codec.for_upstream(read, 0xBEEF, edns=True))
    assert (sent.id, sent.flags, sent.question) == (0xBEEF, flags, query.question)
    assert (sent.edns, sent.payload, sent.options) == (0, MAX_DATAGRAM, ()) and sent.ednsflags == query.ednsflags
    plain = dns.message.from_wire(codec.for_upstream(read, 0xBEEF, edns=False))
    assert (plain.edns, plain.flags, plain.question) == (-1, flags, query.question)


def test_which_messages_are_answers():
    query = asked()
    read = codec.read_query(query.to_wire())
    query.id = 7
    response = answered(query).to_wire()
    assert codec.answers(response, read, 7)
    assert not codec.answers(response, read, 8)
    assert not codec.answers(query.to_wire(), read, 7), "a query is no response"
    assert codec.answers(response[:12] + response[12:].replace(b"WWW", b"www", 1), read, 7), "letter case"
    assert not codec.answers(response.replace(b"WWW", b"WWX"), read, 7)
    other_type = asked(type="AAAA")
    other_type.id = 7
    assert not codec.answers(dns.message.make_response(other_type).to_wire(), read, 7)
    for end in range(12 + len(read.question)):
        assert not codec.answers(response[:end], read, 7)


@settings(max_examples=200)
@given(st.binary(max_size=60), st.booleans())
def test_noise_is_no_answer_and_no_query(noise, header):
    message = struct.pack(">6H", 7, 0x8180, 1, 0, 0, 1) + noise if header else noise
    read = codec.read_query(asked().to_wire())
    assert codec.answers(message, read, 7) in (False, True)
    with contextlib.suppress(ProtocolError):
        assert message.startswith(codec.read_query(message).message)


def test_a_server_that_could_not_read_the_query_may_leave_the_question_away():
    read = codec.read_query(asked().to_wire())
    for code, counts in ((dns.rcode.FORMERR, True), (dns.rcode.NOTIMP, True), (dns.rcode.SERVFAIL, False), (0, False)):
        header = struct.pack(">6H", 7, 0x8180 | code, 0, 0, 0, 0)
        assert codec.answers(header, read, 7) == counts and not codec.answers(header, read, 8)
        assert codec.takes_no_edns(header) == counts


def test_every_truncation_of_a_query_is_refused_and_no_bit_flip_hurts():
    message = asked(use_edns=0, options=[dns.edns.GenericOption(10, b"12345678")]).to_wire()
    for end in range(len(message)):
        with pytest.raises(ProtocolError):
            codec.read_query(message[:end])
    for bit in range(8 * len(message)):
        flipped = bytearray(message)
        flipped[bit // 8] ^= 1 << bit % 8
        with contextlib.suppress(ProtocolError):
            codec.for_upstream(codec.read_query(bytes(flipped)), 1, edns=True)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4), st.booleans())
def test_what_the_table_forwards_can_be_read(damage, edns):
    """Two readers of one query must agree: what one passes on the other takes."""
    message = bytearray(asked(use_edns=0 if edns else -1).to_wire())
    for at, byte in damage:
        message[at % len(message)] = byte
    if NameTable().respond(bytes(message), False) is None:
        query = codec.read_query(bytes(message))
        assert key_of(bytes(message))[:-1] == query.name + query.question[-4:]


def test_a_frame_has_its_length_before_it():
    assert codec.frame(b"abc") == b"\0\3abc"
