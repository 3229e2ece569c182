"""Candidates and what an endpoint says."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.model.candidates import (
    Candidate,
    connection_type,
    host_candidates,
    is_symmetric,
    node_candidates,
    peer_candidates,
    priority,
)

HOST, OTHER, SIX = ip_address("192.0.2.1"), ip_address("198.51.100.1"), ip_address("2001:db8::1")


def test_priorities_follow_the_preference_of_addresses() -> None:
    assert host_candidates([SIX, HOST], 51820) == [
        Candidate("host", SIX, 51820, 2130706431),
        Candidate("host", HOST, 51820, 2130706175),
    ]


def test_the_formula_of_the_rfc() -> None:
    assert priority(126, 65535, 1) == 2**24 * 126 + 2**8 * 65535 + 255
    assert priority(0, 0, 256) == 0


@given(st.lists(st.ip_addresses(), max_size=50, unique=True))
def test_no_two_priorities_are_equal(addresses) -> None:
    priorities = [candidate.priority for candidate in host_candidates(addresses, 1)]
    assert priorities == sorted(set(priorities), reverse=True)
    assert all(0 < number < 2**31 for number in priorities)


def test_what_stun_and_turn_say_comes_after_the_hosts_own() -> None:
    found = node_candidates([HOST], 51820, [(OTHER, 51820), (OTHER, 7)], [(OTHER, 9)])
    assert [(each.kind, each.address, each.port) for each in found] == [
        ("host", HOST, 51820),
        ("server-reflexive", OTHER, 51820),
        ("relay", OTHER, 9),
    ]
    assert [each.priority >> 24 for each in found] == [126, 100, 0]


def test_what_a_router_was_asked_for_is_one_more_way_in() -> None:
    found = node_candidates([HOST], 51820, [(OTHER, 7)], [], [(OTHER, 51820)])
    assert [(each.kind, each.port) for each in found[1:]] == [("server-reflexive", 51820), ("server-reflexive", 7)]
    assert node_candidates([HOST], 51820, [(OTHER, 7)], [], [(OTHER, 7)]) == node_candidates(
        [HOST], 51820, [(OTHER, 7)], []
    )


def test_of_many_addresses_some_are_told_and_all_that_are_outside() -> None:
    """A record of a cluster holds no more, and a peer that is told of more than 64 is refused."""
    sixes = [ip_address(f"2001:db8::{n:x}") for n in range(1, 100)]
    found = node_candidates([*sixes, HOST], 51820, [(OTHER, 7)], [(OTHER, 9)])
    assert [(each.kind, each.address) for each in found] == [
        *(("host", six) for six in sixes[:13]),
        ("host", HOST),
        ("server-reflexive", OTHER),
        ("relay", OTHER),
    ]


def test_of_each_address_that_is_seen_one_port_is_told_the_likeliest_first() -> None:
    """Of two uplinks either may be the way in; and no server that lies hides what the others see."""
    lie = ip_address("203.0.113.9")
    found = node_candidates([], 1, [(lie, 7), (OTHER, 5), (OTHER, 6), (SIX, 3)], [])
    assert [(each.address, each.port) for each in found] == [(OTHER, 5), (lie, 7), (SIX, 3)]
    assert len(node_candidates([], 1, [(HOST + n, 7) for n in range(9)], [])) == 3


def test_what_is_mapped_to_itself_is_no_candidate_of_its_own() -> None:
    assert node_candidates([HOST], 51820, [(HOST, 51820)], []) == host_candidates([HOST], 51820)
    kinds = [each.kind for each in node_candidates([HOST], 51820, [(HOST, 51821), (SIX, 51820)], [])]
    assert kinds == ["host", "server-reflexive", "server-reflexive"]


@pytest.mark.parametrize(
    ("mapped", "symmetric"),
    [
        ([], False),
        ([(HOST, 1)], False),
        ([(HOST, 1), (HOST, 1)], False),
        ([(HOST, 1), (SIX, 1)], False),
        ([(HOST, 1), (HOST, 2)], True),
        ([(HOST, 1), (OTHER, 1)], True),
        ([(SIX, 1), (HOST, 1), (SIX, 2)], True),
    ],
)
def test_a_nat_that_gives_each_server_another_mapping_is_symmetric(mapped, symmetric) -> None:
    assert is_symmetric(mapped) is symmetric


def test_a_peers_candidates_are_read_best_first_and_leniently() -> None:
    given = [
        ("relay", "192.0.2.1:9", 5),
        ("host", "[2001:db8::1]:51820", 7),
        ("quantum", "192.0.2.1:9", 9),
        ("host", "a name:1", 9),
        ("host", "192.0.2.1:0", 9),
        ("host", "192.0.2.1:65536", 9),
        ("host", "192.0.2.1", 9),
    ]
    assert peer_candidates(given) == [Candidate("host", SIX, 51820, 7), Candidate("relay", HOST, 9, 5)]


def test_how_a_peer_is_reached() -> None:
    told = [Candidate("host", HOST, 1, 3), Candidate("server-reflexive", OTHER, 2, 2), Candidate("relay", OTHER, 3, 1)]
    assert connection_type((HOST, 1), None, told) == "direct"
    assert connection_type((OTHER, 2), None, told) == "hole-punched"
    assert connection_type((OTHER, 3), None, told) == "relayed"
    assert connection_type((OTHER, 4), None, told) == "hole-punched", "where it roamed to, through its NAT"
    assert connection_type((OTHER, 4), (OTHER, 4), told) == "direct"
    assert connection_type((OTHER, 4), (HOST, 1), []) == "direct", "nothing tells of a NAT"
