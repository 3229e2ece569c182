"""The messages about set elements, as pyroute2 reads them."""

import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.nfnetlink.nftsocket import nft_set_elem_list_msg

from overlayd.linux import setelem
from overlayd.model import set_changes, set_members
from overlayd.model.objects import Element, Step

addresses = st.builds(IPv4Address, st.integers(1, 2**32 - 1)) | st.builds(IPv6Address, st.integers(1, 2**128 - 1))
networks = st.builds(
    lambda value, length: IPv4Network((value, length), strict=False), st.integers(1, 2**32 - 1), st.integers(1, 32)
) | st.builds(
    lambda value, length: IPv6Network((value, length), strict=False), st.integers(1, 2**128 - 1), st.integers(1, 128)
)


def read(element: Element):
    """The message that adds one element: its table, set, and the kernel's elements of it."""
    (change,) = set_changes.changes([Step(None, element)])
    body = struct.pack(">BBH", 1, 0, 0) + setelem._list(change)
    message = nft_set_elem_list_msg(struct.pack("=IHHII", 16 + len(body), 10 << 8 | 12, 0, 1, 0) + body)
    message.decode()
    assert message.get("table") == "overlayd"
    assert message.get("set") == element.set
    return message.get("elements")


def key(element, name="NFTA_SET_ELEM_KEY") -> bytes:
    return bytes(element.get_attr(name).get_attr("NFTA_DATA_VALUE"))


@given(addresses)
def test_an_address(address) -> None:
    (element,) = set_members.node(address)
    (shown,) = read(element)
    assert key(shown) == address.packed


@given(networks)
def test_a_prefix_is_a_start_and_an_end(network) -> None:
    (element,) = set_members.cluster(network)
    shown = read(element)
    assert ip_address(key(shown[0])) == network.network_address
    last = ip_network((0, 0)) if network.version == 4 else ip_network("::/0")
    if network.broadcast_address == last.broadcast_address:
        assert len(shown) == 1, "an interval up to the last address has no end"
        return
    assert len(shown) == 2
    assert ip_address(key(shown[1])) == network.broadcast_address + 1
    assert shown[0].get_attr("NFTA_SET_ELEM_FLAGS") is None
    assert set(shown[1].get_attr("NFTA_SET_ELEM_FLAGS")) == {1}  # NFT_SET_ELEM_INTERVAL_END


@given(addresses, networks)
def test_an_address_and_a_prefix_are_one_element_with_an_end(address, network) -> None:
    if address.version != network.version:
        return
    (grant,) = (each for each in set_members.edge(address, [network]) if each.set.startswith("grant"))
    (shown,) = read(grant)
    assert key(shown) == address.packed + network.network_address.packed
    assert key(shown, "NFTA_SET_ELEM_KEY_END") == address.packed + network.broadcast_address.packed


@given(addresses, st.integers(1, set_members.MAX_NETWORK))
def test_an_entry_of_a_map_has_its_value(address, number) -> None:
    entry = next(each for each in set_members.member(address, number) if each.value)
    (shown,) = read(entry)
    assert key(shown) == address.packed
    major, minor = (int(part, 16) for part in entry.value.split(":"))
    assert key(shown, "NFTA_SET_ELEM_DATA") == struct.pack("=I", major << 16 | minor)


@pytest.mark.parametrize("name", ["veth-1-s", "veth-4194304-s"])
def test_the_name_of_a_link_fills_its_field(name) -> None:
    entry = next(each for each in set_members.member(IPv4Address("10.0.0.1"), 7, name) if each.family == "bridge")
    (shown,) = read(entry)
    assert name.encode().ljust(16, b"\0") in key(shown)
