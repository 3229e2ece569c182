"""Blocks: which one is claimed, and what it is carved into."""

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.errors import RequestError
from overlayd.model import blocks
from overlayd.model.blocks import Holding
from overlayd.model.cluster_records import read_register, write_freed, write_holding
from overlayd.model.subnets import first_free, service_prefix

CLUSTER = ip_network("10.200.0.0/16")
names = st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True)


def held(node: str, modified: int = 1) -> Holding:
    return Holding(node, node, 0, modified)


@given(st.lists(names, unique=True, max_size=40))
def test_nodes_that_claim_one_after_the_other_all_get_another_block(nodes: list[str]) -> None:
    register: dict[blocks.Network, Holding] = {}
    for node in nodes:
        block = blocks.choose(node, CLUSTER, 22, register)
        assert block not in register
        assert blocks.is_block(block, CLUSTER, 22)
        register[block] = held(node)


def test_a_node_begins_at_the_block_of_its_name_and_goes_on_from_there() -> None:
    order = list(blocks.candidates("alpha", CLUSTER, 20, {}))
    assert len(set(order)) == len(order) == 16
    assert order[1].network_address == order[0].broadcast_address + 1
    assert order[0] == blocks.choose("alpha", CLUSTER, 20, {})


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 99)), max_size=30), names)
def test_what_was_never_used_comes_first_and_then_the_oldest_freed(entries: list[tuple[int, int]], name: str) -> None:
    every = list(CLUSTER.subnets(new_prefix=20))
    register = {every[at]: Holding("", "", freed, freed) if freed % 2 else held("x") for at, freed in entries}
    found = list(blocks.candidates(name, CLUSTER, 20, register))
    fresh = [block for block in every if block not in register]
    freed = [block for block in every if block in register and not register[block].instance]
    assert set(found[: len(fresh)]) == set(fresh)
    ages = [register[block].freed for block in found[len(fresh) :]]
    assert ages == sorted(ages)
    assert set(found) == {*fresh, *freed}


def test_when_all_are_held_that_is_said() -> None:
    register = {block: held("x") for block in CLUSTER.subnets(new_prefix=18)}
    with pytest.raises(RequestError, match="address space exhausted: 4 blocks, 4 used"):
        blocks.choose("alpha", CLUSTER, 18, register)


def test_whose_a_block_is() -> None:
    block = ip_network("10.200.4.0/24")
    for entry, standing in (
        ({}, "absent"),
        ({block: held("me")}, "ours"),
        ({block: held("other")}, "others"),
        ({block: Holding("", "", 7, 9)}, "freed"),
    ):
        assert blocks.standing(entry, block, "me") == standing


def test_the_register_as_it_is_stored() -> None:
    entries = [
        ("10.200.4.0-24", write_holding("alpha", "i1"), 5),
        ("10.200.5.0-24", write_freed(9), 12),
        ("10.200.6.0-24", b"damaged", 13),
        ("nonsense", b"{}", 1),
    ]
    register = read_register(entries)
    assert register == {
        ip_network("10.200.4.0/24"): Holding("alpha", "i1", 0, 5),
        ip_network("10.200.5.0/24"): Holding("", "", 9, 12),
        ip_network("10.200.6.0/24"): Holding("?", "?", 0, 13),
    }
    assert blocks.held_by(register, "i1") == [ip_network("10.200.4.0/24")]
    # What cannot be read is claimed by nobody.
    assert ip_network("10.200.6.0/24") not in list(blocks.candidates("x", CLUSTER, 24, register))


@pytest.mark.parametrize("cidr", ["10.200.4.0/24", "fd00:4::/64"])
def test_a_block_and_its_key(cidr: str) -> None:
    block = ip_network(cidr)
    assert blocks.block_of(blocks.block_key(block)) == block
    assert "/" not in blocks.block_key(block)


def test_half_of_a_block_is_for_services() -> None:
    block = ip_network("10.200.4.0/24")
    assert blocks.carve(block, 1) == (ip_network("10.200.4.0/25"), ip_network("10.200.4.128/25"))
    assert blocks.carve(block, 0) == (block, None)
    more = ip_network("10.200.9.0/24")
    assert blocks.service_ranges([block, more], 1) == [ip_network("10.200.4.128/25"), more]
    assert blocks.service_ranges([block, more], 0) == []


@pytest.mark.parametrize("within, prefix", [("10.0.0.0/25", 26), ("10.0.0.0/27", 27), ("fd00::/65", 120)])
def test_subnets_of_services_in_a_range(within: str, prefix: int) -> None:
    network = ip_network(within)
    assert service_prefix(network) == prefix
    found = first_free(network, prefix, 1 % (1 << prefix - network.prefixlen), lambda _: None)
    assert found is not None
    assert found.subnet_of(network)  # type: ignore[arg-type]
    assert first_free(network, prefix, 0, lambda _: network) is None


@pytest.mark.parametrize(
    "prefix, share, told",
    [(16, 1, "does not divide"), (29, 1, "does not divide"), (24, 2, "service_share 2")],
)
def test_divisions_that_make_no_sense(prefix: int, share: int, told: str) -> None:
    with pytest.raises(RequestError, match=told):
        blocks.require_sensible(CLUSTER, prefix, share)
    blocks.require_sensible(CLUSTER, 28, 0)
    with pytest.raises(RequestError, match=r"10\.0\.0\.0/28 is too small for a cluster: two nodes need a /27"):
        blocks.require_sensible(ip_network("10.0.0.0/28"), 28, 1)
    blocks.require_sensible(ip_network("10.0.0.0/27"), 28, 1)
    with pytest.raises(RequestError, match="makes more than"):
        blocks.require_sensible(ip_network("fd00::/32"), 64, 1)
