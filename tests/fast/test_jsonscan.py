"""How many values a JSON text has, beside a count that is slow and obvious."""

import json

from hypothesis import given
from hypothesis import strategies as st

from overlayd._fast.jsonscan import where_over

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
