"""Who is looked for, when, and what becomes of the device: on a node whose device is a table of peers, with real raw
sockets that nobody answers.  What passes real NATs is tested end to end.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path

import pytest
from lab.patience import until_async as until
from node_with_peers import NodeWithPeers

from overlayd import wire
from overlayd.daemon.nat import traversal
from overlayd.daemon.nat.allocation import Allocation
from overlayd.daemon.nat.checks import Checks
from overlayd.daemon.nat.reflexive import Reflexive
from overlayd.daemon.nat.selection import KEEPALIVE, Selection
from overlayd.daemon.nat.stun_port import StunPort
from overlayd.daemon.nat.traversal import Traversal
from overlayd.daemon.peers.health import Health, Listener
from overlayd.daemon.peers.lookup import Lookups
from overlayd.model import path_loss, peers
from overlayd.model.layout import endpoint_text
from overlayd.model.objects import GLOBAL, DevicePeer, Step
from overlayd.model.rows import numeric_endpoint
from overlayd.model.traversal import Way
from overlayd.proto.wireguard import Activity

KEY, OTHER = b"a" * 32, b"b" * 32
PORT = 9  # raw sockets listen for STUN on it, and hear none
GIVEN, RELAYED = "192.0.2.1:1", "192.0.2.2:2"


class Device:
    """A WireGuard device, as far as peers go."""

    name = "table"

    def __init__(self) -> None:
        self.peers: dict[bytes, DevicePeer] = {}
        self.seen: dict[bytes, Activity] = {}
        self.told: list[tuple[str, int]] = []  # endpoint and keepalive, in order

    def set_peers(self, device: str, steps: Sequence[Step]) -> None:
        for step in steps:
            if isinstance(step.want, DevicePeer):
                key, endpoint = step.want.public_key, step.want.endpoint
                self.peers[key] = step.want
                old = self.seen.get(key, Activity(None, 0, 0, 0))
                self.seen[key] = old._replace(endpoint=endpoint or old.endpoint)
                self.told.append((endpoint_text(endpoint) if endpoint else "", step.want.keepalive))
            elif isinstance(step.have, DevicePeer):
                del self.peers[step.have.public_key], self.seen[step.have.public_key]

    def activity(self, device: str) -> dict[bytes, Activity]:
        return dict(self.seen)


class Events(Listener):
    """What clients are told."""

    def __init__(self, events: list[wire.Event]) -> None:
        self.events = events

    def published(self, event: wire.Event) -> None:
        self.events.append(event)


class Looking(NodeWithPeers):
    """A node, its traversal, and how to change its peers.  checked: where checks were sent."""

    def __init__(self, directory: Path) -> None:
        self.device = Device()
        super().__init__(directory, self.device, PORT)
        self.health = Health(self.node)
        self.checked: list[Way] = []
        self.events: list[wire.Event] = []
        self.subscriptions = contextlib.ExitStack()
        self.traversal = self.make()

    def make(self) -> Traversal:
        port, lookups = StunPort(PORT), Lookups()
        allocation = Allocation([], lookups, PORT, lambda *_: None)
        made = Traversal(
            self.node,
            self.health,
            wire.NatConfig(hole_punch_timeout_secs=0),
            port=port,
            checks=Checks(self.node.state.node.private_key, lambda _, way: self.checked.append(way)),
            reflexive=Reflexive(port, lookups, [], 60),
            allocation=allocation,
            selection=Selection(self.node, allocation, lambda: False),
            spawn=self.spawn,
        )
        self.subscriptions.close()
        for listener in (Events(self.events), made):
            self.subscriptions.enter_context(self.health.subscribe(listener))
        self.subscriptions.enter_context(self.node.subscribe(made.follow))
        return made

    def stop(self) -> None:
        self.subscriptions.close()
        self.traversal.close()

    async def add(
        self, key: bytes = KEY, endpoint: str = GIVEN, *candidates: tuple[str, str, int], keepalive=0
    ) -> None:
        await self.add_peer(key, endpoint, keepalive=keepalive, candidates=candidates)

    async def shake(self, key: bytes, endpoint=None, **more: int) -> None:
        """The device shows a handshake of now, or what else is said."""
        old = self.device.seen[key]
        changes = {"last_handshake": int(time.time()), "endpoint": endpoint or old.endpoint} | more
        self.device.seen[key] = old._replace(**changes)
        await self.health.refresh()


RELAY = ("relay", RELAYED, 1)


@pytest.fixture
async def looking(tmp_path: Path) -> AsyncIterator[Looking]:
    made = Looking(tmp_path)
    yield made
    made.stop()
    await made.close()


async def test_a_new_peer_with_candidates_is_looked_for_and_left_alone_once_found(looking: Looking) -> None:
    await looking.add(KEY, GIVEN, RELAY)
    await until(lambda: looking.device.told == [(GIVEN, 0), (RELAYED, KEEPALIVE)])
    assert {endpoint_text(way.endpoint) for way in looking.checked} <= {GIVEN, RELAYED}
    await looking.shake(KEY)
    await until(lambda: not looking.running())
    assert looking.device.told == [(GIVEN, 0), (RELAYED, KEEPALIVE)], "it stays, and its keepalive as well"
    assert [event.endpoint for event in looking.events if isinstance(event, wire.NatEndpointChanged)] == [RELAYED]

    await looking.add(KEY, GIVEN, RELAY)
    looking.traversal.retry()
    assert not looking.running()
    await looking.add(KEY, GIVEN, RELAY, keepalive=7)
    assert not looking.running()
    assert looking.device.told[2:] == [(RELAYED, 7)], "where it is has not been touched, what was asked for has"


async def session_at(looking: Looking, endpoint: str, *candidates: tuple[str, str, int]) -> None:
    """A peer that answers there, and of whose attempt nothing is left."""
    await looking.add(KEY, GIVEN, *candidates)
    await looking.shake(KEY, endpoint=numeric_endpoint(endpoint), rx_bytes=500)
    await until(lambda: not looking.running())


async def test_new_candidates_of_a_peer_that_is_relayed_are_checked_and_it_stays_where_it_is(
    looking: Looking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traversal, "REVIEW", 0.2)
    await session_at(looking, RELAYED, RELAY)
    told = len(looking.device.told)
    looking.checked.clear()
    await looking.add(KEY, GIVEN, RELAY, ("host", "192.0.2.9:9", 2))
    await until(lambda: any(endpoint_text(way.endpoint) == "192.0.2.9:9" for way in looking.checked))
    await until(lambda: not looking.running())
    assert {at for at, _ in looking.device.told[told:]} <= {RELAYED}


async def test_new_candidates_of_a_peer_that_is_at_one_of_them_change_nothing(looking: Looking) -> None:
    await session_at(looking, GIVEN, ("host", GIVEN, 3))
    await looking.add(KEY, GIVEN, ("host", GIVEN, 3), ("host", "192.0.2.9:9", 2))
    assert not looking.running()


async def test_a_relayed_peer_is_reviewed_again_and_again(looking: Looking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traversal, "REVIEW", 0.1)
    monkeypatch.setattr(traversal, "next_review", lambda interval, phase, now: now + 0.05)
    await session_at(looking, RELAYED, RELAY, ("host", "192.0.2.9:9", 2))
    told, begun = len(looking.device.told), len(looking.tasks)
    looking.checked.clear()
    await until(lambda: len(looking.tasks) >= begun + 3)
    assert {endpoint_text(way.endpoint) for way in looking.checked} <= {"192.0.2.9:9", GIVEN}
    assert {at for at, _ in looking.device.told[told:]} <= {RELAYED}


async def test_a_path_that_carries_no_answers_is_given_up_before_its_session(
    looking: Looking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(path_loss, "UNANSWERED", 2.0)
    await session_at(looking, GIVEN, ("host", GIVEN, 3), RELAY)
    begun = len(looking.tasks)
    await looking.shake(KEY, tx_bytes=500)
    assert len(looking.tasks) == begun
    await until_read(looking, lambda: len(looking.tasks) > begun)
    silently_then_with_a_word = ((RELAYED, 0), (RELAYED, KEEPALIVE))
    await until(lambda: silently_then_with_a_word in pairwise(looking.device.told))
    await looking.shake(KEY, rx_bytes=900)
    await until(lambda: not looking.running())
    assert looking.node.facts.selected[f"{KEY.hex()}/", GIVEN].endpoint == numeric_endpoint(RELAYED)


async def test_a_lost_peer_whose_candidates_change_is_still_looked_for(
    looking: Looking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(path_loss, "UNANSWERED", 0.5)
    host = ("host", GIVEN, 3)
    await session_at(looking, GIVEN, host, RELAY)
    begun = len(looking.tasks)
    await looking.shake(KEY, tx_bytes=500)
    await until_read(looking, lambda: len(looking.tasks) > begun)
    await looking.add(KEY, GIVEN, host, RELAY, ("server-reflexive", "192.0.2.9:9", 2))
    silently_then_with_a_word = ((RELAYED, 0), (RELAYED, KEEPALIVE))
    await until(lambda: silently_then_with_a_word in pairwise(looking.device.told))
    await looking.shake(KEY, rx_bytes=900)
    await until(lambda: not looking.running())
    assert looking.node.facts.selected[f"{KEY.hex()}/", GIVEN].endpoint == numeric_endpoint(RELAYED)


async def until_read(looking: Looking, condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.05)
        await looking.health.refresh()


async def test_another_endpoint_ends_what_was_selected(looking: Looking) -> None:
    await looking.add(KEY, GIVEN, RELAY)
    await until(lambda: looking.device.told[-1] == (RELAYED, KEEPALIVE))
    await looking.add(KEY, "192.0.2.7:7")
    assert looking.device.told[-1] == ("192.0.2.7:7", 0)
    await until(lambda: not looking.running())
    assert looking.device.told[-1] == ("192.0.2.7:7", 0)


async def test_a_peer_that_went_is_looked_for_no_more(looking: Looking) -> None:
    await looking.add(KEY, GIVEN, RELAY)
    await until(lambda: looking.device.told[-1][0] == RELAYED)
    await looking.node.change_together(lambda draft: peers.remove_peer(draft, GLOBAL, KEY), ["peers "])
    await until(lambda: not looking.running())
    await looking.add(OTHER, GIVEN, RELAY)
    await until(lambda: (f"{OTHER.hex()}/", GIVEN) in looking.node.facts.selected)
    assert len(looking.node.facts.selected) == 1, "what was selected of the other one is forgotten"


async def test_who_is_not_reached_goes_back_to_what_is_configured_and_is_tried_again(
    looking: Looking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traversal, "HOLD", 0.05)
    monkeypatch.setattr(traversal, "next_attempt", lambda failures, phase, now: now + 0.05)
    await looking.add(KEY, GIVEN, RELAY)
    await until(lambda: len(looking.device.told) >= 5)
    there, back = (RELAYED, KEEPALIVE), (GIVEN, 0)
    assert looking.device.told[:5] == [back, there, back, there, back]


async def test_a_name_that_resolves_meanwhile_counts_when_nothing_was_found(
    looking: Looking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traversal, "HOLD", 2.0)
    await looking.add(KEY, "a.example:7", RELAY)
    await until(lambda: looking.device.told[-1] == (RELAYED, KEEPALIVE))
    (peer,) = looking.node.state.peers(GLOBAL).values()
    resolved = {(peer.key, peer.endpoint): (ip_address("192.0.2.77"), 7)}
    await looking.node.update_facts(lambda facts: replace(facts, resolved=resolved), [peer.id], exclusive=["peers "])
    assert looking.device.told[-1] == (RELAYED, KEEPALIVE), "while it is looked for elsewhere, the name waits"
    await until(lambda: not looking.running())
    assert looking.device.told[-1] == ("192.0.2.77:7", 0)


async def test_healthy_peers_and_those_with_nowhere_else_to_be_cost_nothing(looking: Looking) -> None:
    await looking.add(OTHER, GIVEN)
    assert not looking.tasks
    looking.traversal.retry()
    assert not looking.tasks
    await looking.add(KEY, GIVEN, RELAY)
    await looking.shake(KEY)
    await until(lambda: not looking.running())
    begun = len(looking.tasks)
    looking.traversal.retry()
    await looking.health.refresh()
    assert len(looking.tasks) == begun


async def test_a_silent_peer_is_looked_for_when_it_is_missed(looking: Looking) -> None:
    await looking.add(KEY, GIVEN, ("host", GIVEN, 1), RELAY)
    await until(lambda: looking.device.told[-1][0] == RELAYED)
    looking.device.set_peers(
        "", [Step(None, looking.device.peers[KEY].__class__(GLOBAL, "", KEY, None, 0, frozenset()))]
    )
    await looking.shake(KEY, endpoint=next(way.endpoint for way in looking.checked if way.kind == "host"))
    await until(lambda: not looking.running())
    assert looking.node.facts.selected == {}, "it is where it is configured, and no NAT is between"
    begun = len(looking.tasks)
    await looking.shake(KEY, last_handshake=1, tx_bytes=100)
    await looking.health.refresh()
    assert len(looking.tasks) == begun, "it has nothing to say, nor have we"
    await looking.shake(KEY, last_handshake=1, tx_bytes=248)
    assert len(looking.tasks) == begun + 1, "what we send is not answered"


async def test_many_are_looked_for_a_few_at_a_time(looking: Looking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traversal, "AT_ONCE", 3)
    looking.stop()
    looking.traversal = looking.make()
    for number in range(1, 10):
        await looking.add(bytes([number]) * 32, "", ("relay", f"192.0.2.1:{number}", 1))
    await until(lambda: len(looking.device.told) == 9 + 3)
    assert looking.running() == 3
    for number in range(1, 10):
        await until(lambda number=number: looking.device.peers[bytes([number]) * 32].endpoint is not None)
        await looking.shake(bytes([number]) * 32)
    await until(lambda: not looking.running())


async def test_who_was_there_at_a_start_is_taken_up(looking: Looking) -> None:
    looking.stop()
    await looking.add(KEY, GIVEN, RELAY)
    await looking.add(OTHER, GIVEN, RELAY)
    await looking.shake(KEY, endpoint=looking.device.seen[KEY].endpoint)
    looking.device.seen[KEY] = looking.device.seen[KEY]._replace(
        endpoint=(*looking.device.seen[OTHER].endpoint[:1], 77)
    )
    await looking.health.resume()
    begun = len(looking.tasks)
    looking.traversal = looking.make()
    await looking.traversal.resume()
    assert len(looking.tasks) == begun + 1, "the one that does not answer"
    selected = looking.node.facts.selected[f"{KEY.hex()}/", GIVEN]
    assert (endpoint_text(selected.endpoint), selected.keepalive) == ("192.0.2.1:77", KEEPALIVE), "behind a NAT"
