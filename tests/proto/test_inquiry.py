"""Questions and answers between nodes: what is written is read, and nothing else is taken for either."""

import json
from contextlib import suppress
from ipaddress import IPv4Network, IPv6Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.errors import ProtocolError
from overlayd.proto import inquiry
from overlayd.proto.inquiry import LARGEST, Answer, Question, Said

ids = st.integers(0, 2**53 - 1)
key = st.binary(min_size=32, max_size=32)
networks = st.one_of(
    st.ip_addresses(v=4).map(lambda each: IPv4Network((each, 24), strict=False)),
    st.ip_addresses(v=6).map(lambda each: IPv6Network((each, 64), strict=False)),
)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=2000)
said = st.builds(Said, text, text, st.sampled_from(["ok", "broken", "unknown"]), text)


@given(
    st.builds(
        Question,
        ids,
        st.text("abc-", max_size=60),
        key,
        key,
        st.ip_addresses(),
        networks,
        st.ip_addresses(),
        st.none() | st.ip_addresses(),
    )
)
def test_a_question_is_read_as_it_was_written(question: Question) -> None:
    datagram = inquiry.encode(question)
    assert len(datagram) <= LARGEST
    assert inquiry.decode(datagram) == question


@given(ids, st.lists(said, max_size=12))
def test_an_answer_fits_and_its_last_hop_is_kept(id: int, hops: list[Said]) -> None:
    datagram = inquiry.encode_answer(Answer(id=id, hops=tuple(hops)))
    assert len(datagram) <= LARGEST
    read = inquiry.decode(datagram)
    assert isinstance(read, Answer)
    assert read.id == id
    assert len(read.hops) <= len(hops)
    assert bool(read.hops) == bool(hops)
    for got, given_ in zip(reversed(read.hops), reversed(hops), strict=False):
        assert got.state == given_.state
        for short, long in ((got.where, given_.where), (got.what, given_.what), (got.remedy, given_.remedy)):
            assert long.startswith(short)


@pytest.mark.parametrize(("count", "kept"), [(1, 1), (12, 1), (40, 2)])
def test_a_long_answer_loses_its_first_hops_and_then_the_ends_of_its_texts(count: int, kept: int) -> None:
    """JSON writes each of these characters in six bytes, or two; so three of the longest texts are more than fits."""
    text = "\1" * 360 if kept == 1 else '"' * 80
    hops = [Said(f"{number}", text, "broken", text) for number in range(count)]
    read = inquiry.decode(inquiry.encode_answer(Answer(id=1, hops=tuple(hops))))
    assert isinstance(read, Answer)
    assert [each.where for each in read.hops] == [f"{number}" for number in range(count)][-len(read.hops) :]
    assert len(read.hops) >= kept
    assert all(text.startswith(each.what) and each.what for each in read.hops)


@given(
    st.binary(max_size=LARGEST + 1)
    | st.from_regex(rb'\{"kind":"(question|answer)","id":[0-9]{1,17}.*\}', fullmatch=True)
)
def test_nothing_but_protocol_errors_comes_of_nonsense(datagram: bytes) -> None:
    with suppress(ProtocolError):
        inquiry.decode(datagram)


QUESTION: dict[str, Any] = {
    "kind": "question",
    "id": 1,
    "asker": "A" * 43 + "=",
    "asked": "A" * 43 + "=",
    "near": "10.0.0.1",
    "network": "10.0.0.0/24",
    "far": "fd00::1",
}


def written(**other: Any) -> bytes:
    return json.dumps(QUESTION | other).encode()


def test_what_is_not_known_is_passed_over_and_what_is_wrong_is_refused() -> None:
    assert inquiry.decode(written()) == inquiry.decode(written(more=[1, 2]))
    for wrong in (
        {"id": -1},
        {"id": 2**53},
        {"kind": "other"},
        {"asker": "A" * 44},
        {"near": 1},
        {"near": "10.0.0.256"},
        {"network": "10.0.0.1/24"},
        {"far": None},
        {"to": "here"},
        {"far": "fe80::1%x\ny"},
        {"network": "fd00::%x/64"},
    ):
        with pytest.raises(ProtocolError):
            inquiry.decode(written(**wrong))
    with pytest.raises(ProtocolError, match="is the most"):
        inquiry.decode(written(more="x" * LARGEST))
