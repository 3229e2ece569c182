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

from overlayd._fast.nametable import MAX_DATAGRAM, NameTable
from overlayd.errors import ProtocolError
from overlayd.proto import dns as codec

LABEL = st.text("abcXYZ0-", min_size=1, max_size=20)
NAME = st.lists(LABEL, min_size=2, max_size=5).map(".".join)


def asked(name="WWW.Example.org", type="A", **options):
    return dns.message.make_query(name, type, **options)


def answered(query, count=1):
    response = dns.message.make_response(query)
    name = query.question[0].name
    response.answer.append(dns.rrset.from_text_list(name, 60, "IN", "A", [f"192.0.2.{n}" for n in range(count)]))
    return response


@given(NAME, st.sampled_from(["A", "AAAA", "TXT", "ANY"]), st.sampled_from([-1, 0]), st.integers(0, 65535))
def test_a_query_is_read_as_it_was_written(name, type, edns, payload):
    message = asked(name, type, use_edns=edns, payload=payload if edns == 0 else None).to_wire()
    query = codec.read_query(message + b"what stands behind it")
    assert query.message == message
    assert query.question == message[12 : 12 + len(query.question)] and len(query.question) == len(name) + 2 + 4
    assert query.id == int.from_bytes(message[:2], "big")
    assert query.payload == (max(512, payload) if edns == 0 else 512)
    assert bool(query.opt) == (edns == 0)


@pytest.mark.parametrize("payload", [512, 1000, 1232, 4096, 65535])
def test_what_goes_upstream_differs_by_id_and_payload_only(payload):
    cookie = dns.edns.GenericOption(10, b"12345678")
    query = asked(use_edns=0, payload=payload, options=[cookie], want_dnssec=True)
    sent = dns.message.from_wire(codec.for_upstream(codec.read_query(query.to_wire()), 0xBEEF))
    assert sent.id == 0xBEEF and sent.payload == min(payload, MAX_DATAGRAM)
    assert sent.question == query.question and sent.options == query.options and sent.ednsflags == query.ednsflags
    same = asked(use_edns=0, payload=sent.payload, options=[cookie], want_dnssec=True)
    same.id = sent.id
    assert sent.to_wire() == same.to_wire()


def test_without_edns_nothing_but_the_id_changes():
    message = asked().to_wire()
    assert codec.for_upstream(codec.read_query(message), 7) == b"\0\7" + message[2:]


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


def test_every_truncation_of_a_query_is_refused_and_no_bit_flip_hurts():
    message = asked(use_edns=0, options=[dns.edns.GenericOption(10, b"12345678")]).to_wire()
    for end in range(len(message)):
        with pytest.raises(ProtocolError):
            codec.read_query(message[:end])
    for bit in range(8 * len(message)):
        flipped = bytearray(message)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            query = codec.read_query(bytes(flipped))
        except ProtocolError:
            continue
        codec.for_upstream(query, 1)
        codec.failure(query, codec.OTHER, "no")
        codec.for_client(bytes(2000), query, stream=False)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4), st.booleans())
def test_what_the_table_forwards_can_be_read(damage, edns):
    """Two readers of one query must agree: what one passes on the other takes."""
    message = bytearray(asked(use_edns=0 if edns else -1).to_wire())
    for at, byte in damage:
        message[at % len(message)] = byte
    if NameTable().respond(bytes(message), False) is None:
        codec.read_query(bytes(message))


def test_an_answer_goes_back_under_the_clients_id_and_letters():
    query = asked("WwW.eXample.org")
    read = codec.read_query(query.to_wire())
    lower = asked("www.example.org")
    response = answered(lower).to_wire()
    given = codec.for_client(response, read, stream=False)
    assert given[:2] == query.to_wire()[:2] and read.question in given
    assert given[2:12] == response[2:12] and given[12 + len(read.question) :] == response[12 + len(read.question) :]


@pytest.mark.parametrize(
    ("payload", "count", "cut"), [(None, 20, False), (None, 40, True), (1232, 60, False), (4096, 90, True)]
)
def test_a_datagram_carries_what_the_client_and_we_take(payload, count, cut):
    query = asked(use_edns=-1 if payload is None else 0, payload=payload)
    response = answered(query, count)
    read = codec.read_query(query.to_wire())
    wire = response.to_wire(max_size=65535)
    given = dns.message.from_wire(codec.for_client(wire, read, stream=False))
    assert bool(given.flags & dns.flags.TC) == cut and bool(given.answer) != cut
    assert query.is_response(given) and given.edns == query.edns
    assert codec.is_truncated(codec.for_client(wire, read, stream=False)) == cut
    assert codec.for_client(wire, read, stream=True) == wire


def test_a_failure_says_why_to_who_speaks_edns():
    for edns in (-1, 0):
        query = asked(use_edns=edns)
        message = codec.failure(codec.read_query(query.to_wire()), codec.NO_REACHABLE_AUTHORITY, "nobody is there")
        response = dns.message.from_wire(message)
        assert query.is_response(response) and response.rcode() == dns.rcode.SERVFAIL and response.edns == edns
        assert response.flags & dns.flags.RA and response.flags & dns.flags.RD
        if edns == 0:
            (error,) = response.options
            assert (error.code, error.text) == (22, "nobody is there")
        assert codec.is_refusal(message)
    assert not codec.is_refusal(answered(asked()).to_wire())


def test_a_frame_has_its_length_before_it():
    assert codec.frame(b"abc") == b"\0\3abc"
