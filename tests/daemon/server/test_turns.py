"""Who asks for little is served before all who ask for much, and these share equally."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from overlayd.daemon.server.turns import Turns


class Client:
    def __init__(self, name: int) -> None:
        self.name = name
        self.paid_until = 0


def take(turns: Turns[Client], cost: int) -> Client:
    client = turns.next()
    client.paid_until += cost
    return client


def test_a_quiet_one_comes_before_all_who_used_up_their_turns() -> None:
    turns: Turns[Client] = Turns(64)
    flood, quiet = [Client(number) for number in range(64)], Client(64)
    for client in flood:
        turns.add(client)
    for _ in flood:
        turns.add(take(turns, 64))
    for _ in range(200):
        flooding = take(turns, 64)
        assert not turns.is_next(flooding)
        turns.add(flooding)
        turns.add(quiet)
        assert take(turns, 1) is quiet


def test_who_asks_when_nobody_waits_is_next_and_owes_nothing_for_the_past() -> None:
    turns: Turns[Client] = Turns(64)
    alone, other = Client(1), Client(2)
    for _ in range(100):
        assert turns.is_next(alone)
        alone.paid_until += 64
    turns.add(alone)
    turns.add(other)
    assert [take(turns, 1) for _ in range(2)] == [other, alone]
    for _ in range(10):
        turns.add(other)
        take(turns, 64)
    turns.add(other)
    turns.add(alone)
    assert take(turns, 1) is alone


@given(st.lists(st.integers(1, 64), min_size=2, max_size=20))
def test_those_who_always_ask_share_equally(costs: list[int]) -> None:
    turns: Turns[Client] = Turns(64)
    clients = [Client(number) for number in range(len(costs))]
    got: Counter[int] = Counter()
    for client in clients:
        turns.add(client)
    for _ in range(2000):
        client = turns.next()
        client.paid_until += costs[client.name]
        got[client.name] += costs[client.name]
        turns.add(client)
        assert max(got.values()) - min(got[each.name] for each in clients) <= 2 * max(costs) + 64
