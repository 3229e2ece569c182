"""Whose an allowed IP is, and which peers are refused."""

import re
from ipaddress import IPv4Network, ip_network

import pytest
from decisions import KEYS, OWN, change, dump, new_state, ready, serve

from overlayd import keys
from overlayd.errors import RequestError
from overlayd.model import attachments, edges, peers
from overlayd.model.attachments import AttachSpec
from overlayd.model.objects import GLOBAL


def test_moving_an_allowed_ip_takes_it_from_its_owner_and_says_so():
    state = ready()
    network = ip_network("10.200.3.0/24")
    for key in KEYS[:2]:
        change(
            state,
            lambda draft, key=key: peers.add_peer(
                draft, GLOBAL, key, own_key=OWN, endpoint="", keepalive=0, allowed_ips=(), candidates=()
            ),
        )
    assert change(state, lambda draft: peers.add_allowed_ip(draft, GLOBAL, KEYS[0], network))[0] == []
    (line,) = change(state, lambda draft: peers.add_allowed_ip(draft, GLOBAL, KEYS[1], network))[0]
    assert keys.text(KEYS[0]) in line and keys.text(KEYS[1]) in line
    assert state.peers(GLOBAL)[KEYS[0]].allowed_ips == frozenset()


def test_the_most_allowed_ips_move_at_once_and_what_is_looked_at_grows_no_faster_than_they(monkeypatch):
    state = ready()
    looks = 0

    def counted(network, count=IPv4Network.__hash__):
        nonlocal looks
        looks += 1
        return count(network)

    def add(key, networks):
        return change(
            state,
            lambda draft: peers.add_peer(
                draft, GLOBAL, key, own_key=OWN, endpoint="", keepalive=0, allowed_ips=networks, candidates=()
            ),
        )[0]

    networks = tuple(ip_network(f"10.201.{number >> 8}.{number & 255}") for number in range(peers.MOST_ALLOWED_IPS))
    monkeypatch.setattr(IPv4Network, "__hash__", counted)
    add(KEYS[0], networks[:600])
    add(KEYS[1], networks[600:])
    assert add(KEYS[0], networks[:600]) == []
    moved = add(KEYS[2], networks)
    assert len(moved) == len(networks)
    assert state.peers(GLOBAL)[KEYS[2]].allowed_ips == set(networks)
    assert not state.peers(GLOBAL)[KEYS[0]].allowed_ips and not state.peers(GLOBAL)[KEYS[1]].allowed_ips
    assert looks < 40 * len(networks)


def test_the_peer_of_a_guest_is_the_guests_alone():
    state = ready()
    key, network, foreign = KEYS[0], ip_network("10.200.3.0/24"), ip_network("10.200.4.0/24")
    guest = change(
        state, lambda draft: attachments.attach_guest(draft, AttachSpec(service="web"), "vm", b"p" * 32, key)
    )[0]
    own = ip_network(guest.address)
    options = {"own_key": OWN, "endpoint": "", "keepalive": 0, "allowed_ips": (network,), "candidates": ()}
    before = dump(state)
    for decide in (
        lambda draft: peers.add_peer(draft, GLOBAL, key, **options),
        lambda draft: peers.remove_peer(draft, GLOBAL, key),
        lambda draft: peers.add_allowed_ip(draft, GLOBAL, key, network),
        lambda draft: peers.remove_allowed_ip(draft, GLOBAL, key, own),
    ):
        with pytest.raises(RequestError, match=f"{re.escape(keys.text(key))} is guest vm: detach it first"):
            change(state, decide)
    change(state, lambda draft: peers.remove_allowed_ip(draft, GLOBAL, key, foreign))
    assert dump(state) == before
    serve(state, "own", dedicated_key=b"d" * 32)
    change(state, lambda draft: peers.add_peer(draft, "own", key, **options))  # another device
    change(state, lambda draft: attachments.detach(draft, guest))
    change(state, lambda draft: peers.remove_peer(draft, GLOBAL, key))
    change(state, lambda draft: peers.add_peer(draft, GLOBAL, key, **options))


def test_added_allowed_ips_survive_an_upsert():
    state = ready()
    listed, added = ip_network("10.200.3.0/24"), ip_network("10.200.4.0/24")

    def upsert(draft):
        return peers.add_peer(
            draft, GLOBAL, KEYS[0], own_key=OWN, endpoint="", keepalive=0, allowed_ips=(listed,), candidates=()
        )

    change(state, upsert)
    change(state, lambda draft: peers.add_allowed_ip(draft, GLOBAL, KEYS[0], added))
    change(state, upsert)
    assert state.peers(GLOBAL)[KEYS[0]].allowed_ips == {listed, added}


@pytest.mark.parametrize("added_first", [True, False])
def test_an_added_allowed_ip_stays_although_an_upsert_listed_it_for_a_while(added_first):
    state, network = ready(), ip_network("10.200.4.0/24")

    def upsert(*allowed_ips):
        options = {"own_key": OWN, "endpoint": "", "keepalive": 0, "candidates": ()}
        change(state, lambda draft: peers.add_peer(draft, GLOBAL, KEYS[0], allowed_ips=allowed_ips, **options))

    def add():
        change(state, lambda draft: peers.add_allowed_ip(draft, GLOBAL, KEYS[0], network))

    upsert()
    for step in (add, lambda: upsert(network)) if added_first else (lambda: upsert(network), add):
        step()
    upsert()
    assert state.peers(GLOBAL)[KEYS[0]].allowed_ips == {network}
    assert state.allowed_ips(GLOBAL).exact(network.network_address.packed, 24) == KEYS[0]
    change(state, lambda draft: peers.remove_allowed_ip(draft, GLOBAL, KEYS[0], network))
    assert state.peers(GLOBAL)[KEYS[0]].allowed_ips == frozenset()


@pytest.mark.parametrize("scope", ["web", "unknown"])
def test_a_scope_without_a_device_is_an_error(scope):
    state = ready()
    with pytest.raises(RequestError, match=f"no dedicated overlay for service {scope}"):
        change(state, lambda draft: peers.remove_peer(draft, scope, KEYS[0]))


def test_peers_need_the_overlay():
    with pytest.raises(RequestError, match="global overlay not set up"):
        change(new_state(), lambda draft: peers.remove_peer(draft, GLOBAL, KEYS[0]))


def test_the_own_key_is_no_peer():
    state = ready()
    with pytest.raises(RequestError, match="own key"):
        change(
            state,
            lambda draft: peers.add_peer(
                draft, GLOBAL, OWN, own_key=OWN, endpoint="", keepalive=0, allowed_ips=(), candidates=()
            ),
        )


def test_a_peer_has_a_limited_number_of_allowed_ips():
    state = ready()
    many = tuple(ip_network((0xFD00 << 112 | number << 64, 64)) for number in range(peers.MOST_ALLOWED_IPS + 1))
    options = {"own_key": OWN, "endpoint": "", "keepalive": 0, "candidates": ()}
    with pytest.raises(RequestError, match=r"request\.allowed_ips: at most 1024 allowed IPs a peer"):
        change(state, lambda draft: peers.add_peer(draft, GLOBAL, KEYS[0], allowed_ips=many, **options))
    change(state, lambda draft: peers.add_peer(draft, GLOBAL, KEYS[0], allowed_ips=many[:-1], **options))
    with pytest.raises(RequestError, match=r"request\.cidr: at most 1024 allowed IPs a peer"):
        change(state, lambda draft: peers.add_allowed_ip(draft, GLOBAL, KEYS[0], many[-1]))
    change(state, lambda draft: peers.add_allowed_ip(draft, GLOBAL, KEYS[0], many[7]))  # it has that one
    with pytest.raises(RequestError, match=r"request\.allowed_ips: at most 1024"):
        change(state, lambda draft: peers.add_peer(draft, GLOBAL, KEYS[0], allowed_ips=many[:7] + many[8:], **options))


def test_an_edge_peers_key_and_an_endpoint_inside_the_cluster_are_refused():
    state = ready()
    options = {"own_key": OWN, "keepalive": 0, "allowed_ips": (), "candidates": ()}
    change(state, lambda draft: edges.mint(draft, "phone", public_key=KEYS[0], now=0, ttl=60, allowed=(), services=()))
    with pytest.raises(RequestError, match=f"{re.escape(keys.text(KEYS[0]))} is edge peer phone: revoke it first"):
        change(state, lambda draft: peers.add_peer(draft, GLOBAL, KEYS[0], endpoint="", **options))
    for endpoint in ("10.200.9.1:51820", "10.200.0.0:1"):
        with pytest.raises(RequestError, match="endpoint"):
            change(state, lambda draft, it=endpoint: peers.add_peer(draft, GLOBAL, KEYS[1], endpoint=it, **options))
    assert state.peers(GLOBAL).keys().isdisjoint(KEYS)


def test_what_is_not_there_is_removed_without_an_error_and_not_extended():
    state = ready()
    before = dump(state)
    network = ip_network("10.200.3.0/24")
    change(state, lambda draft: peers.remove_peer(draft, GLOBAL, KEYS[0]))
    change(state, lambda draft: peers.remove_allowed_ip(draft, GLOBAL, KEYS[0], network))
    with pytest.raises(RequestError, match=r"no peer .*: send add_peer first"):
        change(state, lambda draft: peers.add_allowed_ip(draft, GLOBAL, KEYS[0], network))
    assert dump(state) == before
