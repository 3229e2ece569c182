"""The fast way of netlink messages and attributes to bytes and back agrees with the slow one."""

from collections.abc import Callable
from typing import Any

import oracles_netlink as slow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd._fast import netlink as fast
from overlayd.errors import ProtocolError

HALVES, WORDS = st.integers(0, 0xFFFF), st.integers(0, 2**32 - 1)
DAMAGED = st.lists(st.tuples(st.integers(0, 40), HALVES, st.binary(max_size=40)), max_size=4)


def outcome(read: Callable[[], Any]) -> Any:
    try:
        return list(read())
    except ProtocolError as error:
        return str(error)


@given(HALVES, HALVES, WORDS, st.binary(max_size=50))
def test_messages_are_written_alike(kind, flags, sequence, body) -> None:
    assert fast.message(kind, flags, sequence, body) == slow.message(kind, flags, sequence, body)


@given(HALVES, st.binary(max_size=50), HALVES, WORDS, st.text(max_size=20))
def test_attributes_are_written_alike(kind, payload, half, word, words) -> None:
    made = [slow.attribute(kind, payload), slow.u16(kind, half), slow.u32(kind, word), slow.text(kind, words)]
    assert [fast.attribute(kind, payload), fast.u16(kind, half), fast.u32(kind, word), fast.text(kind, words)] == made
    assert fast.attribute(kind, memoryview(payload)) == made[0]
    assert fast.nested(kind, *made) == slow.nested(kind, *made)


@given(DAMAGED, st.binary(max_size=5))
def test_messages_are_read_alike(parts, rest) -> None:
    data = b"".join(size.to_bytes(4, "little") + kind.to_bytes(2, "little") + body for size, kind, body in parts) + rest
    assert outcome(lambda: fast.messages(data)) == outcome(lambda: map(tuple, slow.messages(data)))


@given(DAMAGED, st.binary(max_size=5))
def test_attributes_are_read_alike(parts, rest) -> None:
    data = b"".join(size.to_bytes(2, "little") + kind.to_bytes(2, "little") + body for size, kind, body in parts) + rest
    view = memoryview(data)
    assert outcome(lambda: fast.attributes(view)) == outcome(lambda: slow.attributes(view))


def test_an_attribute_holds_as_much_as_its_length_tells() -> None:
    assert fast.attribute(1, bytes(0xFFFF - 4)) == slow.attribute(1, bytes(0xFFFF - 4))
    with pytest.raises(OverflowError, match="65532 bytes"):
        fast.attribute(1, bytes(0xFFFF - 3))
    with pytest.raises(OverflowError):
        fast.attribute(1 << 16, b"")
    with pytest.raises(OverflowError):
        fast.u32(1, -1)
