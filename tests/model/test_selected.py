"""What traversal selects in place of a peer's endpoint, and when that counts."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from overlayd.model import overlay
from overlayd.model.layout import Facts, Selected, configured_address, endpoint_address, layout
from overlayd.model.objects import DevicePeer
from overlayd.model.rows import Node, Peer
from overlayd.model.state import Draft, State

GIVEN, RESOLVED, FOUND = ((ip_address("192.0.2.1"), port) for port in (1, 2, 3))


def shown(peer: Peer, facts: Facts) -> tuple[object, int]:
    """Endpoint and keepalive of the peer on the device."""
    state = State([Node(private_key=b"k" * 32), peer])
    draft = Draft(state)
    overlay.setup_global(
        draft,
        deployment="d",
        instance_id="1",
        cluster=ip_network("10.200.0.0/16"),
        slice=None,
        wg_port=1,
        nat=None,
    )
    state.apply(draft.rows)
    (there,) = (thing for thing in layout(state, facts).values() if isinstance(thing, DevicePeer))
    return there.endpoint, there.keepalive


@pytest.mark.parametrize(("endpoint", "configured"), [("192.0.2.1:1", GIVEN), ("a.example:2", RESOLVED), ("", None)])
def test_what_is_selected_counts_before_numbers_and_names(endpoint, configured) -> None:
    peer = Peer(public_key=b"p" * 32, endpoint=endpoint)
    facts = Facts(mtu=1420, resolved={(peer.key, "a.example:2"): RESOLVED})
    assert shown(peer, facts) == (configured, 0)
    found = replace(facts, selected={(peer.key, endpoint): Selected(FOUND, 25)})
    assert shown(peer, found) == (FOUND, 25)
    assert (endpoint_address(peer, found), configured_address(peer, found)) == (FOUND, configured)


def test_another_endpoint_ends_it_and_a_keepalive_that_was_asked_for_stays() -> None:
    peer = Peer(public_key=b"p" * 32, endpoint="192.0.2.1:1", keepalive=7)
    facts = Facts(mtu=1420, selected={(peer.key, peer.endpoint): Selected(FOUND, 25)})
    assert shown(peer, facts) == (FOUND, 7)
    assert shown(Peer(public_key=b"p" * 32, endpoint="192.0.2.1:9"), facts) == ((ip_address("192.0.2.1"), 9), 0)
