"""To whom a relay sends: each rule, and which comes first."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.proto.relay_peers import RelayPeers
from overlayd.proto.wireguard import Address

OVERLAY = ip_network("10.200.0.0/16")


def peers(**rules) -> RelayPeers:
    return RelayPeers(refused=[OVERLAY], **rules)


def refusal(rules: RelayPeers, text: str) -> str:
    return rules.refusal(ip_address(text))


def test_the_public_internet_is_relayed_to() -> None:
    assert refusal(peers(), "198.51.100.7") == refusal(peers(), "2001:db8::7") == ""


@pytest.mark.parametrize("text", [
    "10.0.0.1", "172.17.0.2", "192.168.1.1",
    "100.100.100.200", "100.64.0.1", "192.0.0.192", "168.63.129.16", "198.18.0.1",
    "fd00:ec2::254", "fc00::1", "fec0::1",
])  # fmt: skip
def test_private_networks_and_service_addresses_only_where_a_node_is_known_to_be(text: str) -> None:
    assert "allowed_peers" in refusal(peers(), text)
    assert refusal(peers(is_known=lambda address: address == ip_address(text)), text) == ""
    width = 32 if "." in text else 128
    assert refusal(peers(allowed=[ip_network(f"{text}/{width}")]), text) == ""
    assert refusal(peers(beside=[ip_network(f"{text}/{width}")]), text) == "", "nodes live on private networks too"


def test_the_cloud_address_beside_public_ones_is_that_address_alone() -> None:
    assert refusal(peers(), "168.63.129.15") == ""


def test_what_is_behind_the_host_is_refused_whatever_its_address() -> None:
    behind = peers(hop=lambda address: "inside", beside=[ip_network("10.0.0.0/8")])
    for text in ("198.51.100.7", "10.0.0.1", "2001:db8::7"):
        assert "behind this host" in refusal(behind, text)
    allowed = peers(hop=lambda address: "inside", allowed=[ip_network("198.51.100.0/24")])
    assert refusal(allowed, "198.51.100.7") == ""
    assert refusal(peers(hop=lambda address: "inside", is_known=lambda address: True), "10.0.0.1") == ""


def test_what_is_denied_is_denied_to_nodes_and_to_what_is_allowed_too() -> None:
    everything = [ip_network("0.0.0.0/0")]
    rules = peers(denied=[ip_network("198.51.100.0/24")], allowed=everything, is_known=lambda address: True)
    assert "denied_peers" in refusal(rules, "198.51.100.7")
    assert refusal(rules, "198.51.101.7") == ""


@given(st.ip_addresses())
def test_never_is_never(address: Address) -> None:
    """Against the words of `ipaddress`, whatever the operator allows; and the overlay, and the host itself."""
    everything = [ip_network("0.0.0.0/0"), ip_network("::/0")]
    rules = peers(allowed=everything, beside=everything, is_known=lambda address: True)
    never = address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified
    if never or address in OVERLAY:
        assert rules.refusal(address)
    nowhere = peers(allowed=everything, is_known=lambda address: True, hop=lambda address: "none")
    assert nowhere.refusal(address)
