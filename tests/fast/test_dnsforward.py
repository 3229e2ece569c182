"""Queries that are forwarded, and what answers them, against dnspython, and against what is no DNS message."""

import contextlib
import struct

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayd._fast.dnscache import key_of
from overlayd._fast.dnsforward import Query
from overlayd._fast.dnsquery import MAX_DATAGRAM
from overlayd._fast.nametable import NameTable
from overlayd.errors import ProtocolError

LABEL = st.text("abcXYZ0-", min_size=1, max_size=20)
NAME = st.lists(LABEL, min_size=2, max_size=5).map(".".join)


def asked(name="WWW.Example.org", type="A", **options):
    return dns.message.make_query(name, type, **options)


def test_the_name_of_a_record_may_point_to_the_question():
    message = bytearray(asked(use_edns=-1).to_wire())
    message[11] = 1  # one additional record
    tsig = b"\xc0\x0c" + struct.pack(">HHIH", dns.rdatatype.TSIG, dns.rdataclass.ANY, 0, 0)
    assert Query(bytes(message) + tsig).name == Query(asked(use_edns=-1).to_wire()).name


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
    query = Query(message + b"what stands behind it")
    assert query.key == key_of(message) and query.name == message[12 : 12 + len(name) + 2].lower()
    assert query.edns == (edns == 0)
    sent = dns.message.from_wire(query.for_upstream(5, edns=True))
    assert sent.question == written.question and sent.flags == written.flags
    assert bool(sent.ednsflags & dns.flags.DO) == (dnssec and edns == 0)


@pytest.mark.parametrize("dnssec", [False, True])
@pytest.mark.parametrize("flags", [0, dns.flags.RD, dns.flags.RD | dns.flags.AD | dns.flags.CD])
def test_what_goes_upstream_is_the_question_and_an_opt_record_of_ours(flags, dnssec):
    options = [dns.edns.GenericOption(10, b"12345678"), dns.edns.ECSOption("192.0.2.0"), dns.edns.GenericOption(3, b"")]
    query = asked(use_edns=0, payload=4096, options=options, want_dnssec=dnssec)
    query.flags = flags
    read = Query(query.to_wire())
    sent = dns.message.from_wire(read.for_upstream(0xBEEF, edns=True))
    assert (sent.id, sent.flags, sent.question) == (0xBEEF, flags, query.question)
    assert (sent.edns, sent.payload, sent.options) == (0, MAX_DATAGRAM, ()) and sent.ednsflags == query.ednsflags
    plain = dns.message.from_wire(read.for_upstream(0xBEEF, edns=False))
    assert (plain.edns, plain.flags, plain.question) == (-1, flags, query.question)


def test_which_messages_are_answers():
    query = asked()
    read = Query(query.to_wire())
    query.id = 7
    response = answered(query).to_wire()
    assert read.answered_by(response, 7)
    assert not read.answered_by(response, 8)
    assert not read.answered_by(query.to_wire(), 7), "a query is no response"
    assert read.answered_by(response[:12] + response[12:].replace(b"WWW", b"www", 1), 7), "letter case"
    assert not read.answered_by(response.replace(b"WWW", b"WWX"), 7)
    other_type = asked(type="AAAA")
    other_type.id = 7
    assert not read.answered_by(dns.message.make_response(other_type).to_wire(), 7)
    for end in range(12 + len(read.name) + 4):
        assert not read.answered_by(response[:end], 7)


@settings(max_examples=200)
@given(st.binary(max_size=60), st.booleans())
def test_noise_is_no_answer_and_no_query(noise, header):
    message = struct.pack(">6H", 7, 0x8180, 1, 0, 0, 1) + noise if header else noise
    read = Query(asked().to_wire())
    assert read.answered_by(message, 7) in (False, True)
    with contextlib.suppress(ProtocolError):
        assert Query(message).key == key_of(message)


def test_a_server_that_could_not_read_the_query_or_refuses_may_leave_the_question_away():
    read = Query(asked().to_wire())
    for code in dns.rcode.Rcode:
        counts = code not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN)
        if code > 15:
            continue
        header = struct.pack(">6H", 7, 0x8180 | code, 0, 0, 0, 0)
        assert read.answered_by(header, 7) == counts and not read.answered_by(header, 8)


def test_every_truncation_of_a_query_is_refused_and_no_bit_flip_hurts():
    message = asked(use_edns=0, options=[dns.edns.GenericOption(10, b"12345678")]).to_wire()
    for end in range(len(message)):
        with pytest.raises(ProtocolError):
            Query(message[:end])
    for bit in range(8 * len(message)):
        flipped = bytearray(message)
        flipped[bit // 8] ^= 1 << bit % 8
        with contextlib.suppress(ProtocolError):
            Query(bytes(flipped)).for_upstream(1, edns=True)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4), st.booleans())
def test_what_the_table_forwards_can_be_read(damage, edns):
    """Two readers of one query must agree: what one passes on the other takes."""
    message = bytearray(asked(use_edns=0 if edns else -1).to_wire())
    for at, byte in damage:
        message[at % len(message)] = byte
    if NameTable().respond(bytes(message), False) is None:
        assert Query(bytes(message)).key == key_of(bytes(message))
