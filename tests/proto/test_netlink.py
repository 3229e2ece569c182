"""Messages and attributes there and back, and what is made of damaged ones."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.errors import ProtocolError
from overlayd.proto.netlink import (
    NLM_F_ACK_TLVS,
    NLMSGERR_ATTR_MSG,
    attribute,
    attributes,
    message,
    messages,
    nested,
    number,
    refusal,
    string,
    text,
    u16,
    u32,
)

kinds = st.integers(0, 0x3FFF)


@given(st.lists(st.tuples(kinds, st.binary(max_size=40))))
def test_attributes_are_padded_and_come_back(fields):
    encoded = b"".join(attribute(kind, payload) for kind, payload in fields)
    assert len(encoded) % 4 == 0
    assert [(kind, bytes(payload)) for kind, payload in attributes(memoryview(encoded))] == fields
    ((kind, inside),) = attributes(memoryview(nested(8, encoded)))
    assert (kind, bytes(inside)) == (8, encoded)


def test_numbers_and_texts_in_host_order():
    encoded = u32(1, 7) + u16(2, 7) + text(3, "zl-\N{LATIN SMALL LETTER E WITH ACUTE}")
    (_, long), (_, short), (_, name) = attributes(memoryview(encoded))
    assert (number(long), number(None)) == (7, 0)
    assert (bytes(short), string(name)) == (b"\7\0", "zl-é")


@given(st.lists(st.tuples(kinds, st.integers(0, 0xFFFF), st.integers(0, 2**32 - 1), st.binary(max_size=40))))
def test_messages_come_back_from_a_datagram(sent):
    data = b"".join(message(*each) for each in sent)
    assert [(each.type, each.flags, each.sequence, bytes(each.body)) for each in messages(data)] == sent
    assert {each.port for each in messages(data)} <= {0}


@pytest.mark.parametrize("data", [b"\1", b"\0\0\0\0", b"\3\0\1\0", b"\xff\xff\1\0ab"])
def test_damaged_attributes_are_a_protocol_error(data):
    with pytest.raises(ProtocolError):
        list(attributes(memoryview(data)))


def test_what_is_cut_short_is_a_protocol_error_but_between_two():
    field, whole = u32(1, 2), message(1, 2, 3, u32(1, 2))
    for end in {*range(1, 2 * len(field))} - {len(field)}:
        with pytest.raises(ProtocolError):
            list(attributes(memoryview(2 * field)[:end]))
    for end in {*range(1, 2 * len(whole))} - {len(whole)}:
        with pytest.raises(ProtocolError):
            list(messages((2 * whole)[:end]))


@given(st.binary())
def test_any_bytes_are_read_or_a_protocol_error(data):
    for read in (messages, lambda data: attributes(memoryview(data))):
        with suppress(ProtocolError):
            list(read(data))


def test_a_refusal_tells_its_errno_and_the_kernels_words():
    words = text(NLMSGERR_ATTR_MSG, "no such thing")
    body = memoryview((-22).to_bytes(4, "little", signed=True) + bytes(16) + words)
    assert refusal(NLM_F_ACK_TLVS, body, 20) == (22, "no such thing")
    assert refusal(0, body, 20) == (22, "")
    assert refusal(NLM_F_ACK_TLVS, memoryview(bytes(20)), 20) == (0, "")
