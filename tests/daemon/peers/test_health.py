"""Who is told what of a reading: on a node whose device is a table."""

import time
from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from lab.patience import until_async as until
from node_with_peers import NodeWithPeers

from overlayd import keys, wire
from overlayd.daemon.peers.health import Health, Listener
from overlayd.daemon.tasks import Tasks
from overlayd.model.objects import GLOBAL
from overlayd.proto.wireguard import Activity

KEY, STRANGER = b"a" * 32, b"s" * 32
HERE, THERE = (ip_address("192.0.2.1"), 1), (ip_address("2001:db8::2"), 2)


class Device:
    """A device that shows what a test puts into it."""

    name = "table"

    def __init__(self) -> None:
        self.seen: dict[bytes, Activity] = {}
        self.readings = 0

    def set_peers(self, device: str, steps: object) -> None:
        pass

    def activity(self, device: str) -> dict[bytes, Activity]:
        self.readings += 1
        return dict(self.seen)


class Everything(Listener):
    """Notes all that it is told."""

    def __init__(self) -> None:
        self.heard: list[tuple[object, ...]] = []

    def activity_read(self, scope, activity) -> None:
        self.heard.append(("read", scope, *activity))

    def peer_moved(self, scope, public_key, endpoint) -> None:
        self.heard.append(("moved", scope, public_key, endpoint))

    def health_changed(self, scope, public_key, healthy) -> None:
        self.heard.append(("health", scope, public_key, healthy))

    def peers_doubted(self, scope) -> None:
        self.heard.append(("doubted", scope))

    def published(self, event) -> None:
        self.heard.append(("event", event))


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[NodeWithPeers]:
    made = NodeWithPeers(tmp_path, Device())
    await made.add_peer(KEY, "192.0.2.1:1")
    yield made
    await made.close()


def shown(node: NodeWithPeers, **more: object) -> None:
    node.node.kernel.backend.seen[KEY] = Activity(HERE, int(time.time()), 0, 0)._replace(**more)


async def test_a_listener_is_told_in_the_order_of_the_reading_until_it_leaves(node: NodeWithPeers) -> None:
    health, listener = Health(node.node), Everything()
    shown(node, last_handshake=1)
    await health.resume()
    with health.subscribe(listener):
        assert listener.heard == [], "an earlier daemon may have told"
        shown(node, endpoint=THERE)
        await health.refresh()
        assert listener.heard == [
            ("moved", GLOBAL, KEY, THERE),
            ("event", wire.PeerHealthChanged(keys.text(KEY), True)),
            ("health", GLOBAL, KEY, True),
            ("read", GLOBAL, KEY),
        ]
    shown(node, last_handshake=1)
    await health.refresh()
    assert len(listener.heard) == 4


async def test_peers_that_nobody_wants_are_doubted_and_not_shown(node: NodeWithPeers) -> None:
    health, listener = Health(node.node), Everything()
    shown(node)
    await health.resume()
    node.node.kernel.backend.seen[STRANGER] = Activity(HERE, 0, 0, 0)
    with health.subscribe(listener):
        await health.refresh()
    assert listener.heard == [("doubted", GLOBAL), ("read", GLOBAL, KEY)]
    assert health.activity(GLOBAL, STRANGER) is None


async def test_every_listener_is_told_in_their_order_and_one_hears_what_it_defines(node: NodeWithPeers) -> None:
    order: list[str] = []

    class First(Listener):
        def health_changed(self, scope, public_key, healthy) -> None:
            order.append("first")

    class Second(First):
        def health_changed(self, scope, public_key, healthy) -> None:
            order.append("second")

    health = Health(node.node)
    shown(node, last_handshake=1)
    await health.resume()
    with health.subscribe(First()), health.subscribe(Second()):
        shown(node)
        await health.refresh()
    assert order == ["first", "second"]


async def test_the_devices_are_read_until_the_end_of_the_block(
    node: NodeWithPeers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overlayd.daemon.peers.health.INTERVAL", 0.001)
    shown(node)
    device = node.node.kernel.backend
    async with Tasks() as tasks:
        async with Health(node.node).running(tasks.keep_up):
            assert device.readings == 1, "before anybody asks"
            await until(lambda: device.readings > 3)
        before = device.readings
    assert device.readings <= before + 1
