"""Protobuf's wire format: what is written is read, and what is damaged is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.errors import ProtocolError
from overlayd.proto.protobuf import bytes_field, fields, varint, varint_field

numbers = st.integers(1, (1 << 29) - 1)
values = st.integers(1, (1 << 64) - 1) | st.binary(min_size=1, max_size=200)


@given(st.lists(st.tuples(numbers, values), max_size=6))
def test_fields_are_read_as_they_were_written(written: list[tuple[int, int | bytes]]) -> None:
    parts = [
        varint_field(number, value) if isinstance(value, int) else bytes_field(number, value)
        for number, value in written
    ]
    assert list(fields(b"".join(parts))) == written


def slow_varint(data: bytes) -> tuple[int, int] | None:
    """Value and length, bit by bit, of what begins with a number of at most ten bytes."""
    bits = ""
    for length, byte in enumerate(data[:10], 1):
        text = f"{byte:08b}"
        bits = text[1:] + bits
        if text[0] == "0":
            return int(bits[-64:], 2), length
    return None


@given(st.binary(min_size=1, max_size=12) | st.lists(st.sampled_from([0x80, 0xFF, 1]), min_size=1).map(bytes))
def test_a_number_is_what_its_bits_say(data: bytes) -> None:
    expected = slow_varint(data)
    wire = b"\x08" + (data if expected is None else data[: expected[1]])
    if expected is None:
        with pytest.raises(ProtocolError, match="number"):
            list(fields(wire))
    else:
        assert list(fields(wire)) == [(1, expected[0])]


def test_a_negative_number_has_64_bits() -> None:
    assert varint(-1) == b"\xff" * 9 + b"\x01"


def test_fields_of_a_fixed_width_are_stepped_over() -> None:
    wire = b"\x09" + b"12345678" + b"\x15" + b"1234" + b"\x18\x07"
    assert list(fields(wire)) == [(1, b"12345678"), (2, b"1234"), (3, 7)]


@pytest.mark.parametrize(
    "data",
    [b"\x00\x01", b"\x0b", b"\x0c", b"\x0e", b"\x0f", b"\x0a\x05abcd", b"\x09abc", b"\x0a", b"\x80", b"\x85" * 11],
    ids=["number 0", "group", "its end", "type 6", "type 7", "short bytes", "short fixed", "no length", "cut", "long"],
)
def test_what_is_no_field_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="protobuf"):
        list(fields(data))
