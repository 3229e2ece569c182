"""Work in slices is done as if it were not, and others are served in between."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from overlayd.daemon.change import slices
from overlayd.daemon.change.slices import Slices


@given(st.lists(st.text("ab.", max_size=6)), st.integers(1, 5))
def test_names_are_put_in_order_bucket_by_bucket(names: list[str], bucket: int) -> None:
    before, slices.BUCKET = slices.BUCKET, bucket
    try:
        assert asyncio.run(Slices().in_order(names)) == sorted(names)
    finally:
        slices.BUCKET = before


async def test_others_are_served_between_slices(monkeypatch) -> None:
    monkeypatch.setattr(slices, "SLICE", 0.0)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(other())
    things = dict.fromkeys(range(160))
    seen = []
    async for thing in Slices().each(things):
        things.pop(159, None)  # whatever goes meanwhile
        seen.append(thing)
    beside.cancel()
    assert seen == list(range(160))
    assert turns >= 9
