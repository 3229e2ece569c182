"""Resource locks against a plain model: nobody overlaps who must not, everybody gets a turn, in order."""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st
from lab.patience import LIMIT

from overlayd.daemon.change.locks import ResourceLocks

NAMES = st.frozensets(st.sampled_from("abc"), max_size=2)
REQUESTS = st.lists(st.tuples(NAMES, NAMES, st.booleans(), st.integers(0, 3), st.booleans()), max_size=12)


def conflict(one, other):
    """Whether two holders may not overlap."""
    (exclusive1, shared1, everything1), (exclusive2, shared2, everything2) = one, other
    if everything1 or everything2:
        return True
    return bool(exclusive1 & (exclusive2 | shared2) or exclusive2 & shared1)


@given(REQUESTS)
@settings(max_examples=200)
def test_conflicting_holders_never_overlap_and_keep_their_order(requests):
    async def run():
        locks, holding, began = ResourceLocks(), [], []

        async def hold(number, exclusive, shared, everything, turns):
            async with locks.hold(exclusive, shared, everything=everything):
                mine = (exclusive, shared, everything)
                assert not any(conflict(mine, other) for other in holding)
                holding.append(mine)
                began.append(number)
                try:
                    for _ in range(turns):
                        await asyncio.sleep(0)
                finally:
                    holding.remove(mine)

        tasks = []
        for number, (exclusive, shared, everything, turns, cancel) in enumerate(requests):
            tasks.append(asyncio.create_task(hold(number, exclusive, shared, everything, turns)))
            if cancel:
                await asyncio.sleep(0)
                tasks[-1].cancel()
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), LIMIT)
        assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results)
        assert not locks._queues, "a lock was left behind"
        kept = [n for n, result in enumerate(results) if result is None]
        for i, one in enumerate(kept):
            for other in kept[i + 1 :]:
                alone = all(len(requests[n][0] | requests[n][1]) == 1 for n in (one, other))
                if alone and requests[one][0] & requests[other][0]:
                    assert began.index(one) < began.index(other)

    asyncio.run(run())


async def test_a_holder_of_everything_waits_for_all_and_keeps_later_ones_out():
    locks, order = ResourceLocks(), []

    async def one(name, **kind):
        async with locks.hold(**kind):
            order.append(name)
            await asyncio.sleep(0.001)

    await asyncio.gather(
        one("first", exclusive=["a"]),
        one("all", everything=True),
        one("late", exclusive=["b"]),
        one("last", shared=["b"]),
    )
    assert order.index("first") < order.index("all") < order.index("late") < order.index("last")


async def test_shared_holders_go_together():
    locks = ResourceLocks()
    both = asyncio.Barrier(2)

    async def one():
        async with locks.hold(shared=["a"]):
            await both.wait()

    await asyncio.wait_for(asyncio.gather(one(), one()), LIMIT)
