"""What is selected of a peer, what the device hears of it, and how its connection is called."""

from collections.abc import AsyncIterator, Sequence
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace

import pytest
from node_with_peers import NodeWithPeers

from overlayd.daemon.nat.selection import KEEPALIVE, Selection
from overlayd.model.layout import Selected
from overlayd.model.objects import GLOBAL, DevicePeer, Step
from overlayd.model.rows import Peer
from overlayd.model.traversal import Way

KEY, OTHER = b"a" * 32, b"b" * 32
GIVEN, ELSEWHERE = (ip_address("192.0.2.1"), 1), (ip_address("192.0.2.9"), 9)
RELAYED, SOCKET = (ip_address("198.51.100.1"), 5000), (ip_address("127.0.0.1"), 6000)
OLD_SOCKET = (ip_address("127.0.0.1"), 6001)


class Device:
    """told: the endpoint and keepalive of each peer that it was told of, in order."""

    name = "table"

    def __init__(self) -> None:
        self.told: list[tuple[object, int]] = []

    def set_peers(self, device: str, steps: Sequence[Step]) -> None:
        self.told += [(step.want.endpoint, step.want.keepalive) for step in steps if isinstance(step.want, DevicePeer)]


class Selecting(NodeWithPeers):
    """A node with a peer, and a relay that has one socket."""

    def __init__(self, directory: Path) -> None:
        self.device = Device()
        super().__init__(directory, self.device)
        self.behind_nat = False
        loopback = SimpleNamespace(remote={SOCKET: RELAYED}.get, local={RELAYED: SOCKET}.__getitem__)
        self.subject = Selection(self.node, SimpleNamespace(loopback=loopback), lambda: self.behind_nat)  # type: ignore[arg-type]

    def peer(self, key: bytes = KEY) -> Peer:
        return self.node.state.peers(GLOBAL)[key]


@pytest.fixture
async def selecting(tmp_path: Path) -> AsyncIterator[Selecting]:
    made = Selecting(tmp_path)
    await made.add_peer(KEY, "192.0.2.1:1")
    await made.add_peer(OTHER, "192.0.2.2:2")
    made.device.told.clear()
    yield made
    await made.close()


async def test_a_way_is_told_the_device_once_and_speaks_unless_silently(selecting: Selecting) -> None:
    subject, peer, way = selecting.subject, selecting.peer(), Way("host", ELSEWHERE, False)
    await subject.point(peer, way, silently=True)
    await subject.point(peer, way, silently=True)
    assert selecting.device.told == [(ELSEWHERE, 0)]
    await subject.point(peer, way)
    assert selecting.device.told == [(ELSEWHERE, 0), (ELSEWHERE, KEEPALIVE)]
    assert subject.of(peer) == Selected(ELSEWHERE, KEEPALIVE)
    await subject.put(peer, None)
    assert selecting.device.told[2:] == [(GIVEN, 0)]
    assert subject.of(peer) is None


async def test_through_a_relay_the_device_sends_to_our_socket(selecting: Selecting) -> None:
    peer = selecting.peer()
    await selecting.subject.point(peer, Way("host", RELAYED, True))
    assert selecting.device.told == [(SOCKET, KEEPALIVE)]
    assert selecting.subject.connection(peer, SOCKET) == "relayed"


async def test_a_peer_that_was_found_on_a_relay_counts_as_relayed_until_it_is_forgotten(selecting: Selecting) -> None:
    subject, peer = selecting.subject, selecting.peer()
    assert subject.connection(peer, RELAYED) != "relayed"
    await subject.point(peer, Way("relay", RELAYED, False))
    assert subject.connection(peer, RELAYED) == "relayed"
    subject.forget(KEY)
    assert subject.connection(peer, RELAYED) != "relayed"


async def test_what_is_held_on_to_needs_a_keepalive_where_a_nat_would_forget_it(selecting: Selecting) -> None:
    subject, peer = selecting.subject, selecting.peer()
    assert subject.settled(peer, GIVEN) is None, "it is there by itself"
    assert subject.settled(peer, ELSEWHERE) == Selected(ELSEWHERE, 0), "nothing tells of a NAT"
    await selecting.add_peer(KEY, "192.0.2.1:1", candidates=(("host", "192.0.2.5:5", 1),))
    assert subject.settled(selecting.peer(), ELSEWHERE) == Selected(ELSEWHERE, KEEPALIVE)
    selecting.behind_nat = True
    assert subject.settled(peer, GIVEN) == Selected(GIVEN, KEEPALIVE)


async def test_an_earlier_daemons_socket_is_cut_off_and_ours_is_not(selecting: Selecting) -> None:
    subject, peer = selecting.subject, selecting.peer()
    assert [subject.is_cut_off(peer, at) for at in (OLD_SOCKET, SOCKET, GIVEN, ELSEWHERE)] == [
        True,
        False,
        False,
        False,
    ]
    await selecting.add_peer(KEY, "127.0.0.1:6001")
    assert not subject.is_cut_off(selecting.peer(), OLD_SOCKET), "it was configured so"


async def test_what_was_selected_of_a_peer_that_is_gone_or_has_another_endpoint_goes(selecting: Selecting) -> None:
    subject = selecting.subject
    found = {selecting.peer(key).id: (selecting.peer(key), Selected(ELSEWHERE, 0)) for key in (KEY, OTHER)}
    await subject.hold_on(found)
    assert len(selecting.node.facts.selected) == 2
    await selecting.remove_peer(OTHER)
    await selecting.add_peer(KEY, "192.0.2.3:3")
    assert subject.of(selecting.peer()) is None
    await subject.put(selecting.peer(), Selected(RELAYED, 0))
    assert list(selecting.node.facts.selected) == [(selecting.peer().key, "192.0.2.3:3")]
