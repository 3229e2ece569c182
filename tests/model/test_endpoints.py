"""Endpoints at which no peer can be, and those that end on this host."""

from ipaddress import ip_address

import pytest
from decisions import KEYS, OWN, change, ready

from overlayd.errors import RequestError
from overlayd.model import peers
from overlayd.model.candidates import peer_candidates
from overlayd.model.endpoints import misplaced, nobodys
from overlayd.model.objects import GLOBAL

NOBODYS = ["0.0.0.0", "::", "224.0.0.1", "239.1.2.3", "ff02::1", "255.255.255.255"]


@pytest.mark.parametrize("address", NOBODYS)
def test_nobody_is_there(address):
    assert nobodys(ip_address(address))
    at = f"[{address}]:51820" if ":" in address else f"{address}:51820"
    with pytest.raises(RequestError, match=r"^request\.endpoint: "):
        change(
            ready(),
            lambda draft: peers.add_peer(
                draft, GLOBAL, KEYS[0], own_key=OWN, endpoint=at, keepalive=0, allowed_ips=(), candidates=()
            ),
        )
    assert peer_candidates([("host", at, 1), ("host", "192.0.2.1:51820", 2)]) == peer_candidates(
        [("host", "192.0.2.1:51820", 2)]
    )


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "192.0.2.255", "240.0.0.1", "fe80::1", "::1"])
def test_somebody_may_be_there(address):
    assert not nobodys(ip_address(address))


def test_what_ends_here_is_told_by_port_and_network():
    state = ready()
    port = state.overlay.wg_port
    own, lan, other = ip_address("192.0.2.7"), ip_address("192.0.2.255"), ip_address("192.0.2.8")
    here = {own: "", lan: "192.0.2.0/24"}
    assert misplaced(state, (own, port), here) == "is this node's own WireGuard port"
    assert misplaced(state, (ip_address("127.0.0.5"), port), here)
    assert misplaced(state, (lan, 9), here) == "is the broadcast address of network 192.0.2.0/24"
    for at in ((own, port + 1), (ip_address("127.0.0.1"), port + 1), (other, port)):
        assert not misplaced(state, at, here)
