"""A record that was removed is gone for good only when nobody puts it again within the grace."""

from hypothesis import given
from hypothesis import strategies as st

from overlayd.model.removals import GRACE, Removals

KEYS = "abc"
STEPS = st.lists(
    st.tuples(st.sampled_from(["remove", "put", "look", "clear"]), st.sampled_from(KEYS), st.floats(0, 2 * GRACE)),
    max_size=30,
)


@given(STEPS)
def test_removals_against_a_slow_account(steps: list[tuple[str, str, float]]) -> None:
    removals, now = Removals(), 0.0
    since: dict[str, float] = {}
    for step, key, later in steps:
        now += later
        match step:
            case "remove":
                removals.remove(key, now)
                since.setdefault(key, now)
            case "put":
                removals.put(key)
                since.pop(key, None)
            case "clear":
                removals.clear()
                since.clear()
            case "look":
                expected = {each for each, at in since.items() if now >= at + GRACE or each == key}
                assert {*removals.due(now, key.__eq__)} == expected
                for gone in expected:
                    del since[gone]
        assert len(removals) == len(since)
        assert removals.next == min((at + GRACE for at in since.values()), default=None)
