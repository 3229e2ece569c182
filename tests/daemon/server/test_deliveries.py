"""An event to thousands of listeners does not hold the loop, and events keep their order."""

from collections.abc import Callable, Iterator

from overlayd.daemon.server.deliveries import MOST, SLICE, Deliveries


class Loop:
    def __init__(self) -> None:
        self.scheduled: list[Callable[[], None]] = []
        self.sent: list[tuple[int, int]] = []
        self.deliveries = Deliveries(self.scheduled.append)

    def tell(self, event: int, listeners: int) -> None:
        def delivery() -> Iterator[None]:
            for each in range(listeners):
                self.sent.append((event, each))
                yield

        self.deliveries.add(delivery())

    def turn(self) -> int:
        """What is sent before the sockets are looked at again."""
        before = len(self.sent)
        due, self.scheduled[:] = [*self.scheduled], []
        for each in due:
            each()
        return len(self.sent) - before


def test_a_few_are_told_at_once() -> None:
    loop = Loop()
    loop.tell(1, 3)
    loop.tell(2, 0)
    loop.tell(3, SLICE - 1)
    assert len(loop.sent) == 3 + SLICE - 1 and not loop.scheduled


def test_many_are_told_in_slices_and_in_order() -> None:
    loop = Loop()
    for event in range(4):
        loop.tell(event, 5 * SLICE // 2)
    assert len(loop.sent) == SLICE
    while loop.scheduled:
        assert len(loop.scheduled) == 1 and loop.turn() <= SLICE
    assert loop.sent == [(event, each) for event in range(4) for each in range(5 * SLICE // 2)]


def test_no_more_than_so_many_are_on_their_way_and_the_end_waits_for_all() -> None:
    loop = Loop()
    for event in range(MOST + 2):
        loop.tell(event, 2 * SLICE)
    assert len(loop.sent) == 2 * 2 * SLICE, "the oldest two are out"
    loop.deliveries.finish()
    assert loop.sent == [(event, each) for event in range(MOST + 2) for each in range(2 * SLICE)]
    while loop.scheduled:
        assert not loop.turn()
