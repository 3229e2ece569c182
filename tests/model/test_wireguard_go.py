"""Versions of wireguard-go: their order, and what is said of old ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.model.wireguard_go import findings, lacks_segments, order

BOOKWORM, TRIXIE, CURRENT = "0.0.20220316", "0.0.20230223", "0.0.20250522"


@given(st.lists(st.tuples(*[st.integers(0, 10**9)] * 3)))
def test_versions_are_ordered_by_their_numbers(versions: list[tuple[int, int, int]]) -> None:
    texts = [".".join(map(str, each)) for each in versions]
    assert sorted(texts, key=order) == [".".join(map(str, each)) for each in sorted(versions)]
    assert all(order("") < order(text) for text in texts)


def test_segments_came_with_one_release() -> None:
    assert [lacks_segments(each) for each in ("", BOOKWORM, TRIXIE, CURRENT)] == [
        False,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("runs", "installed", "code", "remedy"),
    [
        (BOOKWORM, BOOKWORM, "device-without-segmentation", "install wireguard-go 0.0.20230223 or later, then: "),
        (BOOKWORM, "", "device-without-segmentation", "install wireguard-go 0.0.20230223 or later, then: "),
        (BOOKWORM, CURRENT, "device-without-segmentation", f"overlayctl device renew: {CURRENT} is installed"),
        (TRIXIE, CURRENT, "device-renewable", f"overlayctl device renew: {CURRENT} is installed"),
    ],
)
def test_what_could_be_better_is_a_hint(runs: str, installed: str, code: str, remedy: str) -> None:
    (found,) = findings([("zl-a-g", runs)], installed)
    assert (found.code, found.severity, found.object) == (code, "hint", "device zl-a-g")
    assert runs in found.problem
    assert found.remedy.startswith(remedy)


@pytest.mark.parametrize(("runs", "installed"), [(CURRENT, CURRENT), (CURRENT, TRIXIE), ("", CURRENT), (TRIXIE, "")])
def test_nothing_is_said_of_what_cannot_be_better(runs: str, installed: str) -> None:
    assert findings([("zl-a-g", runs)], installed) == []
