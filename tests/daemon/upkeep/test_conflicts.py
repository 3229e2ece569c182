"""A conflict that begins or ends from this node's side makes the peers of its scope suspect, and is told once."""

import logging
from ipaddress import ip_network

import pytest

from overlayd.daemon.upkeep.conflicts import Conflicts
from overlayd.daemon.upkeep.suspects import Part
from overlayd.model.objects import GLOBAL
from overlayd.model.rows import Change, Node, Overlay, Peer, Row, Service
from overlayd.model.state import State

KEY = b"p" * 32
ANNOUNCED = ip_network("10.200.9.0/26")
OVERLAY = Overlay(
    deployment="d",
    instance_id="1",
    interface="zl-d-1-g",
    cluster=ip_network("10.200.0.0/16"),
    slice=ip_network("10.200.1.0/24"),
    wg_port=51820,
)
SERVICE = Service(name="web", subnet=ANNOUNCED, bridge="zl-d-1-web-b")


class FakeNode:
    """A state, and who is told of its changes."""

    def __init__(self, *rows: Row) -> None:
        self.state = State([Node(private_key=b"k" * 32), OVERLAY, *rows])


@pytest.mark.parametrize("scope", [GLOBAL, "own"])
def test_what_a_service_takes_and_gives_back(scope: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    node = FakeNode(Peer(scope=scope, public_key=KEY, listed=(ANNOUNCED, ip_network("10.200.10.0/24"))))
    suspected: list[Part] = []
    routed = [] if scope == GLOBAL else [Part("device", scope)]
    conflicts = Conflicts(node, lambda part, _cause: suspected.append(part))  # type: ignore[arg-type]

    def change(rows: Change) -> None:
        suspected.clear()
        node.state.apply(rows)
        conflicts.follow(rows)

    change({SERVICE.id: SERVICE})
    assert suspected == [Part("peers", scope), *routed]
    (finding,) = conflicts.findings()
    assert (finding.code, finding.severity) == ("allowed-ip-conflict", "error")
    assert str(ANNOUNCED) in finding.object and "service web" in finding.problem
    change({SERVICE.id: SERVICE})
    assert suspected == [], "nothing is new"
    change({OVERLAY.id: OVERLAY})
    assert suspected == []
    change({SERVICE.id: None})
    assert suspected == [Part("peers", scope), *routed]
    assert conflicts.findings() == []
    said = [record.message for record in caplog.records]
    assert [("is not installed" in each, "is installed" in each) for each in said] == [(True, False), (False, True)]


def test_a_request_of_the_peer_itself_is_carried_out_by_itself() -> None:
    node = FakeNode(SERVICE)
    suspected: list[Part] = []
    conflicts = Conflicts(node, lambda part, _cause: suspected.append(part))  # type: ignore[arg-type]
    peer = Peer(public_key=KEY, listed=(ANNOUNCED,))
    for rows in ({peer.id: peer}, {peer.id: None}):
        node.state.apply(rows)
        conflicts.follow(rows)
        assert len(conflicts.findings()) == (rows[peer.id] is not None)
    assert suspected == []
