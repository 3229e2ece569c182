import base64
import copy
import subprocess
from dataclasses import replace
from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st
from oracles_uapi import Device, endpoint_of

from overlayd import keys
from overlayd.linux.wireguard.backend import peer_changes
from overlayd.model.objects import DevicePeer, Step
from overlayd.proto import uapi

KEYS = [bytes([number]) * 32 for number in range(4)]
NETWORKS = [ip_network(text) for text in ("10.0.0.0/24", "10.0.1.0/24", "10.0.0.7/32", "fd00::/64", "::/0")]
ENDPOINTS = [None, (ip_address("192.0.2.1"), 1), (ip_address("192.0.2.2"), 2), (ip_address("2001:db8::1"), 3)]
ROAMED = "192.0.2.99:99"


@st.composite
def layouts(draw):
    """A set of peers in which every allowed IP has one owner at most."""
    chosen = draw(st.lists(st.sampled_from(KEYS), unique=True))
    owners = {network: draw(st.sampled_from([None, *chosen])) for network in NETWORKS}
    return {
        key: DevicePeer(
            "",
            "",
            key,
            draw(st.sampled_from(ENDPOINTS)),
            draw(st.sampled_from([0, 25])),
            frozenset(network for network, owner in owners.items() if owner == key),
        )
        for key in chosen
    }


def steps_between(have, want):
    return [Step(have.get(key), want.get(key)) for key in KEYS if key in have or key in want]


def apply(device, steps, drops):
    for operation in uapi.encode_peers(peer_changes(steps, drops=drops), 10**6):
        device.set(operation)


def shown(device):
    return {
        key: (endpoint_of(peer.endpoint), peer.keepalive, device.allowed_ips(key)) for key, peer in device.peers.items()
    }


@given(layouts(), layouts(), st.booleans(), st.data())
def test_steps_in_any_order_lead_to_what_is_wanted(have, want, drops, data):
    device = Device(removes_one=drops)
    apply(device, steps_between({}, have), drops)
    assert {key: value[2] for key, value in shown(device).items()} == {
        key.hex(): peer.allowed_ips for key, peer in have.items()
    }
    apply(device, data.draw(st.permutations(steps_between(have, want))), drops)
    expected = {}
    for key, peer in want.items():
        # An endpoint cannot be forgotten: one that is wanted no more stays.
        left = have[key].endpoint if key in have else None
        expected[key.hex()] = (peer.endpoint or left, peer.keepalive, peer.allowed_ips)
    assert shown(device) == expected


@given(layouts(), layouts(), st.booleans())
def test_an_endpoint_is_sent_only_when_another_is_wanted(have, want, drops):
    device = Device(removes_one=drops)
    apply(device, steps_between({}, have), drops)
    for peer in device.peers.values():
        peer.endpoint = ROAMED
    apply(device, steps_between(have, want), drops)
    for key in have.keys() & want.keys():
        changed = want[key].endpoint not in (None, have[key].endpoint)
        assert (device.peers[key.hex()].endpoint == ROAMED) == (not changed)


@given(layouts(), st.booleans())
def test_no_difference_sends_nothing(layout, drops):
    device = Device()
    apply(device, steps_between({}, layout), drops)
    before = copy.deepcopy(device)
    assert peer_changes(steps_between(layout, layout), drops=drops) == []
    assert device == before


def test_one_more_allowed_ip_is_one_line_whatever_the_peer_has():
    have = DevicePeer("", "", KEYS[1], None, 25, frozenset(NETWORKS[:4]))
    want = replace(have, allowed_ips=frozenset(NETWORKS))
    for drops in True, False:
        assert list(uapi.encode_peers(peer_changes([Step(have, want)], drops=drops), 1000)) == [
            b"set=1\npublic_key=" + KEYS[1].hex().encode() + b"\nupdate_only=true\nallowed_ip=::/0\n\n"
        ]


def test_one_allowed_ip_less_is_one_line_where_the_device_can_do_it():
    have = DevicePeer("", "", KEYS[1], None, 25, frozenset(NETWORKS))
    want = replace(have, allowed_ips=frozenset(NETWORKS[:4]))
    assert list(uapi.encode_peers(peer_changes([Step(have, want)], drops=True), 1000)) == [
        b"set=1\npublic_key=" + KEYS[1].hex().encode() + b"\nupdate_only=true\nallowed_ip=-::/0\n\n"
    ]


def test_keys_are_what_wg_makes_of_them():
    private = keys.generate()
    assert private != keys.generate()
    assert private[0] & 7 == 0 and private[31] & 0xC0 == 0x40
    shown = subprocess.run(["wg", "pubkey"], input=base64.b64encode(private), stdout=subprocess.PIPE, check=True).stdout
    assert base64.b64decode(shown) == keys.public(private)
