"""How many values a JSON text has, and which keys, beside what is slow and obvious."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd._fast.jsonscan import next_keys, where_over

texts = st.text(max_size=5) | st.sampled_from(['"', "\\", '\\"', "[{", ",,", ":"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5),
    max_leaves=30,
)


@given(values, st.booleans(), st.integers(0, 60))
def test_values_are_counted(value: object, plain: bool, most: int) -> None:
    body = json.dumps(value, ensure_ascii=plain, indent=None if plain else 1).encode()
    assert (where_over(body, most, 1000) is not None) == (scanned(value) > most)


def scanned(value: object) -> int:
    """One; for a list or an object one more than what it holds, and two for an empty one."""
    if isinstance(value, dict | list):
        inner = list(value.values()) if isinstance(value, dict) else value
        return 1 + (sum(map(scanned, inner)) or 1)
    return 1


def test_the_path_leads_to_the_list() -> None:
    body = json.dumps({"frame": "request", "request": {"op": "x", "nat": {"a": [1], "stun": ["s"] * 50}}}).encode()
    assert where_over(body, 40, 9) == [b"request", b"nat", b"stun"]
    assert where_over(body, 100, 9) is None
    assert where_over(body, 100, 6) == [b"frame"]  # the text after it is "request"


@given(st.binary(max_size=200), st.integers(0, 5))
def test_whatever_comes_is_scanned(body: bytes, most: int) -> None:
    where_over(body, most, 1000)
    where_over(memoryview(b'{"a":[' * 20 + body), most, 3)
    next_keys(body, 0, 5)


@given(st.lists(st.tuples(texts, values), max_size=8), st.booleans(), st.integers(1, 9))
def test_the_keys_of_an_object(members: list[tuple[str, object]], plain: bool, most: int) -> None:
    """A key that stands there twice is told twice."""
    parts = (
        f"{json.dumps(key, ensure_ascii=plain)} : {json.dumps(value, ensure_ascii=plain)}" for key, value in members
    )
    body = f" {{ {' , '.join(parts)} }} ".encode()
    found: list[str] = []
    at = 0
    while at >= 0:
        keys, at = next_keys(body, at, most)
        assert len(keys) == most or at == -1
        found += map(json.loads, keys)
    assert found == [key for key, _ in members]


@given(st.text(st.sampled_from('ab"\\\n'), max_size=12), st.integers(0, 30))
def test_a_text_is_too_long_by_its_bytes(text: str, longest: int) -> None:
    body = json.dumps([text, "x"]).encode()
    assert (where_over(body, 100, longest) is not None) == (max(len(json.dumps(text)) - 2, 1) > longest)


@pytest.mark.parametrize("start, most", [(0, 0), (-1, 1)])
def test_keys_are_asked_for_from_somewhere_and_at_least_one(start: int, most: int) -> None:
    with pytest.raises(ValueError, match="keys from"):
        next_keys(b"{}", start, most)
