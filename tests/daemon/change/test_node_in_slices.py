"""What the node puts together on the event loop, it puts together in slices: between two turns of the loop a few
objects, however many there are.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from node_with_peers import set_up_overlay

from overlayd.daemon.change import node as node_module
from overlayd.daemon.change import slices
from overlayd.daemon.change.apply import one_by_one
from overlayd.daemon.change.disposal import dispose
from overlayd.daemon.change.journal import Journal
from overlayd.daemon.change.node import FEW, Node
from overlayd.daemon.change.resources import peers_locks, service_lock
from overlayd.model import layout as model
from overlayd.model import overlay, peers, services
from overlayd.model.layout import Facts, by_key, of_peers
from overlayd.model.objects import GLOBAL
from overlayd.model.rows import Node as Identity
from overlayd.model.rows import Service
from overlayd.model.state import Draft, State

MANY = 200  # peers
PEERS = peers_locks(GLOBAL)


class Kernel:
    """Takes everything."""

    def __init__(self) -> None:
        self.steps = []

    def apply(self, steps) -> None:
        self.steps += steps

    def apply_together(self, changes):
        return one_by_one(self.apply, changes)

    def forget(self, addresses) -> None:
        pass

    def close(self) -> None:
        pass


class Turns:
    """Counts the turns of the loop, and what was made in each."""

    def __init__(self) -> None:
        self.number = 0
        self.made: Counter[int] = Counter()

    async def count(self) -> None:
        while True:
            self.number += 1
            await asyncio.sleep(0)

    def noted(self, objects: Iterator) -> Iterator:
        for thing in objects:
            self.made[self.number] += 1
            yield thing


def fill(draft: Draft) -> None:
    set_up_overlay(draft)
    for number in range(MANY):
        network = ip_network(((10 << 24) + (201 << 16) + (number << 8), 24))
        key = (number + 1).to_bytes(32)
        peers.add_peer(
            draft,
            GLOBAL,
            key,
            own_key=b"o" * 32,
            endpoint=f"node{number}.example:51820",
            keepalive=0,
            allowed_ips=(network,),
            candidates=(),
        )


@pytest.fixture
async def filled(tmp_path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Node, Kernel, Turns]]:
    journal, kernel, turns = Journal.open(tmp_path), Kernel(), Turns()
    node = Node(State([Identity(private_key=b"k" * 32)]), journal, kernel, Facts(mtu=1420))
    await node.change(fill, everything=True)
    kernel.steps.clear()
    monkeypatch.setattr(slices, "SLICE", 0.0)  # each is over when somebody asks
    counting = asyncio.create_task(turns.count())
    yield node, kernel, turns
    counting.cancel()
    await node.close()
    await journal.close()


@asynccontextmanager
async def comparing(node: Node, turns: Turns) -> AsyncIterator[list]:
    def part(state: State, facts: Facts) -> Iterator:
        return turns.noted(of_peers(state, facts, GLOBAL))

    async with node.comparing(part, lambda _, want: want, exclusive=PEERS) as steps:
        yield steps


async def test_the_peers_of_a_device_are_compared_in_slices(filled) -> None:
    node, _, turns = filled
    async with comparing(node, turns) as steps:
        assert not steps
    assert turns.made.total() > MANY
    assert max(turns.made.values()) <= FEW


async def test_what_a_thousand_host_names_point_to_is_told_in_slices(filled, monkeypatch: pytest.MonkeyPatch) -> None:
    node, kernel, turns = filled
    monkeypatch.setattr(node_module, "implied", lambda *arguments: turns.noted(model.implied(*arguments)))
    rows = [*node.state.peers(GLOBAL).values()]
    found = {(row.key, row.endpoint): (ip_address("192.0.2.7"), 51820) for row in rows}
    await node.update_facts(lambda facts: replace(facts, resolved=found), [row.id for row in rows], exclusive=PEERS)
    assert len(kernel.steps) == MANY
    assert {step.want.endpoint for step in kernel.steps} == {(ip_address("192.0.2.7"), 51820)}
    assert max(turns.made.values()) < 2 * FEW, "what is left of the first layout, and the beginning of the second"


async def test_what_is_compared_in_slices_is_of_one_moment(filled) -> None:
    """Here a service asks to be set up when the first peers have been looked at."""
    node, _, _ = filled
    wanted = by_key(of_peers(node.state, node.facts, GLOBAL))

    def serve(draft: Draft) -> Service:
        return services.setup_service(draft, "web", subnet=ip_network("10.200.7.0/24"), dedicated_key=None)

    asked: list[asyncio.Task[Service]] = []
    there: list[bool] = []

    def part(state: State, facts: Facts) -> Iterator:
        for number, thing in enumerate(of_peers(state, facts, GLOBAL)):
            if number == FEW // 2:
                asked.append(asyncio.create_task(node.change(serve, exclusive=[service_lock("web")])))
            there.append(state.get(Service, "web") is not None)
            yield thing

    seen = []
    async with node.comparing(part, lambda _, want: seen.append({**want}) or want, exclusive=PEERS):
        pass
    await asked[0]
    assert seen == [wanted]
    assert not any(there), "a change that was asked for meanwhile is decided afterwards"


async def test_with_everything_held_all_of_it_is_put_together_beside_the_loop(filled) -> None:
    node, _, _ = filled
    threads = []

    def part(state: State, facts: Facts) -> Iterator:
        for thing in model.implied(state, facts):
            threads.append(asyncio._get_running_loop())
            yield thing

    async with node.comparing(part, lambda _, want: want) as steps:
        assert not steps
    assert len(threads) > MANY
    assert set(threads) == {None}, "no loop runs there"


async def test_large_layouts_end_one_object_after_the_other_and_beside_the_loop(
    filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, _, _ = filled
    emptied = []

    def emptying(*layouts) -> None:
        assert asyncio._get_running_loop() is None
        emptied.append(sum(map(len, layouts)))
        dispose(*layouts)
        assert not any(layouts)

    monkeypatch.setattr(node_module, "dispose", emptying)
    async with node.comparing(model.implied, lambda _, want: {**want}):
        pass
    await node.change(overlay.teardown_global, everything=True)
    await node.change(lambda draft: overlay.set_node_id(draft, 2), exclusive=["node"])  # little hangs on it now
    await node.close()
    assert len(emptied) == 2
    assert min(emptied) > MANY
