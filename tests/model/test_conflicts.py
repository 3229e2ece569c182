"""What a peer announces of this node's own is kept and not installed, for as long as this node has it."""

from ipaddress import ip_address, ip_network

import pytest
from decisions import CLUSTER, FACTS, KEYS, OWN, SLICE, attach, change, new_state, ready, serve, set_up
from hypothesis import given
from hypothesis import strategies as st

from overlayd.errors import RequestError
from overlayd.model import attachments, conflicts, edges, ipam, peers, services
from overlayd.model.attachments import AttachSpec
from overlayd.model.layout import layout
from overlayd.model.objects import GLOBAL, DevicePeer, Route
from overlayd.model.rows import Attachment, Lease, Overlay, Peer, Service, peer_key

A, B, C, D, _ = KEYS
FREE = ip_network("10.200.250.0/24")
OUTSIDE = ip_network("192.168.77.0/24")


def announce(state, key, *networks, scope=GLOBAL, endpoint=""):
    return change(
        state,
        lambda draft: peers.add_peer(
            draft,
            scope,
            key,
            own_key=OWN,
            endpoint=endpoint,
            keepalive=0,
            allowed_ips=tuple(networks),
            candidates=(),
        ),
    )[0]


def installed(state, key, scope=GLOBAL):
    thing = layout(state, FACTS)["peer", scope, key]
    assert isinstance(thing, DevicePeer)
    return thing.allowed_ips


def host(address):
    return ip_network(address)


def own_things(state):
    """What of a node with one of each kind nobody else may announce, and a word of its holder."""
    container = attach(state, 7, join_global=True)
    guest, _ = change(
        state, lambda draft: attachments.attach_guest(draft, AttachSpec("web"), "vm1", b"g" * 32, b"G" * 32)
    )
    shared, _ = change(state, lambda draft: attachments.attach_host(draft, AttachSpec("web"), "db"))
    edge, _ = change(
        state, lambda draft: edges.mint(draft, "laptop", public_key=b"E" * 32, now=0, ttl=60, allowed=[CLUSTER])
    )
    handed, _ = change(state, lambda draft: ipam.allocate_ip(draft, "web"))
    subnet = state.get(Service, "web").subnet
    return {
        SLICE: "this node's own slice",
        next(SLICE.subnets()): "this node's own slice",
        subnet: "the subnet of service web here",
        host(container.address): "container pid 7",
        host(container.global_address): "container pid 7",
        host(guest.address): "guest vm1",
        host(shared.address): "host_shared container db",
        host(edge.address): "edge peer laptop",
        host(handed): "allocate_ip",
        host(state.node_address): "this node's own slice",
    }


def test_a_request_of_nothing_but_conflicts_names_the_holder():
    state = ready()
    announce(state, A, FREE)
    for network, holder in own_things(state).items():
        for decide in (
            lambda draft, it=network: peers.add_allowed_ip(draft, GLOBAL, A, it),
            lambda draft, it=network: peers.add_peer(
                draft, GLOBAL, B, own_key=OWN, endpoint="", keepalive=0, allowed_ips=(it,), candidates=()
            ),
        ):
            with pytest.raises(RequestError, match=rf"{network} is .*{holder}"):
                change(state, decide)
    assert installed(state, A) == {FREE}


def test_the_rest_of_a_request_stands_and_its_conflicts_end_with_their_holder():
    state = ready()
    own = own_things(state)
    announce(state, A, FREE, *own)
    assert state.peers(GLOBAL)[A].allowed_ips == {FREE, *own}, "all of it is remembered"
    assert installed(state, A) == {FREE}
    assert conflicts.withheld(state, state.peers(GLOBAL)[A]).keys() == own.keys()
    guest = state.get(Attachment, "guest:vm1")
    assert installed(state, guest.public_key) == {host(guest.address)}, "the guest keeps its address"
    change(state, lambda draft: attachments.detach(draft, guest))
    assert guest.public_key not in state.peers(GLOBAL)
    change(state, lambda draft: services.teardown_service(draft, "web"))
    subnet = next(network for network, holder in own.items() if "subnet" in holder)
    assert installed(state, A) >= {FREE, subnet, host(guest.address)}
    announce(state, B, host(guest.address), FREE)
    assert installed(state, B) == {host(guest.address), FREE}, "it has an owner again, and moves"
    assert host(guest.address) not in installed(state, A)


def test_a_wider_announcement_is_no_conflict():
    state = ready()
    announce(state, A, CLUSTER, SLICE.supernet())
    assert installed(state, A) == {CLUSTER, SLICE.supernet()}


def test_without_a_slice_what_is_held_counts_by_its_address():
    state = ready(slice=None)
    address, _ = change(state, lambda draft: ipam.allocate_ip(draft, ""))
    announce(state, A, FREE, host(address), host(state.node_address))
    assert installed(state, A) == {FREE}
    change(state, lambda draft: ipam.release(draft, address, ipam.REQUEST))
    assert installed(state, A) == {FREE, host(address)}


def test_a_slice_that_arrives_later_takes_what_a_peer_had():
    state = ready(slice=None)
    later = ip_network("10.200.99.0/24")
    announce(state, A, FREE, later)
    set_up(state, slice=later)
    assert installed(state, A) == {FREE}


def test_on_a_dedicated_device_neither_is_installed_nor_routed():
    state = ready()
    serve(state, "own", dedicated_key=b"d" * 32)
    subnet = state.get(Service, "web").subnet
    announce(state, A, FREE, OUTSIDE, subnet, SLICE, scope="own")
    assert installed(state, A, "own") == {FREE, OUTSIDE}
    routes = {thing.destination for thing in layout(state, FACTS).values() if isinstance(thing, Route)}
    assert routes == {FREE, OUTSIDE}


def test_what_is_outside_of_the_cluster_is_routed_through_the_global_device():
    state = ready()
    wider, v6 = CLUSTER.supernet(), ip_network("fd09::/64")
    announce(state, A, FREE, OUTSIDE, wider, v6, ip_network("0.0.0.0/0"))
    routes = [thing for thing in layout(state, FACTS).values() if isinstance(thing, Route)]
    assert {route.destination for route in routes} == {OUTSIDE, v6}
    assert {route.device for route in routes} == {state.get(Overlay).interface}
    serve(state, "own", dedicated_key=b"d" * 32)
    with pytest.raises(RequestError, match="leads to the global overlay already"):
        announce(state, B, OUTSIDE, scope="own")
    announce(state, B, ip_network("192.168.78.0/24"), scope="own")
    with pytest.raises(RequestError, match="dedicated overlay of service own already"):
        announce(state, C, ip_network("192.168.78.0/24"))


@pytest.mark.parametrize("scope", [GLOBAL, "own"])
def test_no_tunnel_is_led_into_itself(scope):
    state = ready()
    serve(state, "own", dedicated_key=b"d" * 32)
    with pytest.raises(RequestError, match=r"endpoint: 10\.200\.2\.1:5 is in the cluster CIDR"):
        announce(state, A, FREE, scope=scope, endpoint="10.200.2.1:5")
    with pytest.raises(RequestError, match=r"holds its own endpoint 192\.168\.77\.9"):
        announce(state, A, OUTSIDE, scope=scope, endpoint="192.168.77.9:5")
    announce(state, A, FREE, scope=scope, endpoint="192.168.77.9:5")
    with pytest.raises(RequestError, match=r"holds its own endpoint"):
        change(state, lambda draft: peers.add_allowed_ip(draft, scope, A, OUTSIDE))
    with pytest.raises(RequestError, match=r"holds 192\.168\.77\.9:5, the endpoint of a peer"):
        announce(state, B, OUTSIDE, scope=scope, endpoint="192.0.2.9:5")
    announce(state, A, OUTSIDE, scope=scope, endpoint="192.0.2.1:5")
    with pytest.raises(RequestError, match=r"is in the allowed IP 192\.168\.77\.0/24"):
        announce(state, B, scope=scope, endpoint="192.168.77.1:5")
    with pytest.raises(RequestError, match=r"holds its own endpoint 192\.168\.9\.9"):
        at, announced = ip_address("192.168.9.9"), ip_network("192.168.9.0/24")
        announce(state, C, FREE, scope=scope, endpoint="c.example:5")
        change(state, lambda draft: peers.add_allowed_ip(draft, scope, C, announced, resolved=at))
    announce(state, D, ip_network("::/0"), scope=scope, endpoint="[fd00::9]:5")  # everything is not routed


def test_a_cluster_that_would_hold_an_endpoint_is_refused():
    state = new_state()
    set_up(state)
    announce(state, A, FREE, endpoint="192.168.77.9:5")
    set_up(state)
    with pytest.raises(RequestError, match=r"holds 192\.168\.77\.9:5"):
        set_up(state, cluster=ip_network("192.168.0.0/16"), slice=None)


@given(st.lists(st.tuples(st.sampled_from([A, B, C]), st.sampled_from(["x", "y", "z", ""])), max_size=20))
def test_endpoints_are_found_whoever_shares_them(changes):
    """Against a list: peers behind one NAT have one address."""
    state = ready()
    at: dict[bytes, str] = {}
    addresses = {"x": "192.0.2.1:5", "y": "192.0.2.1:6", "z": "192.0.2.200:5", "": ""}
    for key, name in changes:
        announce(state, key, endpoint=addresses[name])
        at[key] = name
        for network in (ip_network("192.0.2.0/25"), ip_network("192.0.2.128/25"), ip_network("192.0.2.0/24")):
            there = {
                each for each, name in at.items() if name and ip_address(addresses[name].partition(":")[0]) in network
            }
            found = state.endpoint_in(network)
            assert (found.public_key in there) if there else found is None
            for each in there:
                other = state.endpoint_in(network, other_than=peer_key(GLOBAL, each))
                assert (other is not None) == (len(there) > 1)


def test_the_owner_of_an_address_is_right_however_claims_come_and_go():
    state = ready(slice=None)
    (address,) = [change(state, lambda draft: ipam.allocate_ip(draft, "web"))[0]]
    change(state, lambda draft: ipam.release(draft, address, ipam.REQUEST))
    assert isinstance(state.get(Lease, str(address)), Lease)
    guest, _ = change(
        state, lambda draft: attachments.attach_guest(draft, AttachSpec("web"), "vm", b"g" * 32, b"G" * 32)
    )
    claimed = host(guest.address)
    announce(state, A, FREE, claimed)
    announce(state, B, claimed, ip_network("10.200.251.0/24"))
    assert claimed not in state.peers(GLOBAL)[A].allowed_ips, "moved from one claimant to the other"
    assert set(state.announcers(claimed)) == {peer_key(GLOBAL, B), peer_key(GLOBAL, guest.public_key)}
    change(state, lambda draft: attachments.detach(draft, guest))
    assert list(state.announcers(claimed)) == [peer_key(GLOBAL, B)]
    change(state, lambda draft: peers.remove_allowed_ip(draft, GLOBAL, B, claimed))
    assert list(state.announcers(claimed)) == []
    assert isinstance(state.get(Peer, peer_key(GLOBAL, B)), Peer)
