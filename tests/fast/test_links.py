"""The fast reading of a link's message beside the slow one: real shapes, and whatever a message may be damaged to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles_links import link_attributes

from overlayd._fast.links import LinkAttributes
from overlayd.errors import ProtocolError
from overlayd.proto.netlink import attribute, nested, text, u32

words = st.text("abcxyz-0", max_size=15)
numbers = st.integers(0, 2**32 - 1)
options = st.dictionaries(st.integers(1, 60), st.binary(max_size=8), max_size=6)


def packed(found: dict[int, bytes]) -> bytes:
    return b"".join(attribute(kind, value) for kind, value in found.items())


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(["bridge", "veth", ""]))
    info = [text(1, kind), attribute(2, packed(draw(options))), text(4, draw(st.sampled_from(["bridge", "bond"])))]
    parts = [
        text(3, draw(words)),
        u32(4, draw(numbers)),
        u32(27, draw(numbers)),
        u32(10, draw(numbers)),
        u32(5, draw(numbers)),
        u32(37, draw(numbers)),
        attribute(1, draw(st.binary(max_size=6))),
        text(20, draw(words)),
        nested(18, *info, attribute(5, packed(draw(options)))),
        nested(52, *(text(53, name) for name in draw(st.lists(words, max_size=3)))),
        nested(26, *(nested(family, attribute(1, draw(st.binary(max_size=40)))) for family in (2, 10))),
        u32(13, draw(numbers)),
        attribute(99, draw(st.binary(max_size=9))),
    ]
    if draw(st.booleans()):  # a message of family AF_BRIDGE
        parts = [*parts[:7], attribute(12, packed(draw(options)))]
    chosen = draw(st.lists(st.sampled_from(range(len(parts))), unique=True))
    return draw(st.binary(min_size=16, max_size=16)) + b"".join(parts[at] for at in chosen)


def told(body: bytes) -> dict[str, object]:
    found = LinkAttributes(body)
    return {name: getattr(found, name) for name in link_attributes(bytes(16))}


@given(bodies())
def test_agrees_with_the_slow_one(body: bytes) -> None:
    assert told(body) == link_attributes(body)


@given(bodies(), st.integers(0, 400), st.integers(0, 255))
def test_damage_is_refused_or_read_as_the_slow_one_reads_it(body: bytes, at: int, value: int) -> None:
    damaged = bytearray(body)
    damaged[at % len(body)] = value
    try:
        found = told(bytes(damaged))
    except ProtocolError:
        return
    assert found["index"] == int.from_bytes(damaged[4:8], "little", signed=True)


@given(bodies(), st.data())
def test_a_message_that_ends_early_is_never_read_beyond(body: bytes, data: st.DataObject) -> None:
    cut = body[: data.draw(st.integers(0, len(body)))]
    try:
        found = told(cut)
    except ProtocolError:
        return
    assert len(cut) >= 16
    assert found["mac"] in body


def test_a_message_without_a_head() -> None:
    with pytest.raises(ProtocolError):
        LinkAttributes(bytes(15))


@pytest.mark.parametrize("kind", [4, 5, 10, 13, 27, 37])
def test_a_number_of_less_than_four_bytes(kind: int) -> None:
    with pytest.raises(ProtocolError, match="number is cut short"):
        told(bytes(16) + attribute(kind, b"\1\2"))


def test_less_than_the_head_of_an_attribute() -> None:
    with pytest.raises(ProtocolError, match="attribute is cut short"):
        told(bytes(16) + b"\4\0")


def test_the_last_attribute_may_lack_its_padding() -> None:
    body = bytes(16) + text(3, "zl-br0")  # seven bytes of value, and one of padding
    assert told(body[:-1]) == told(body) == link_attributes(body)
