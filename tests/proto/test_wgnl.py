import base64
from collections import Counter
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address, ip_network

import oracles_wgnl as oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayd.errors import ProtocolError
from overlayd.proto import wgnl
from overlayd.proto.netlink import attribute, nested
from overlayd.proto.wireguard import PeerChange, PeerState

keys = st.integers(0, 9).map(lambda number: bytes([number]) * 32)
ports = st.integers(0, 65535)
endpoints = st.none() | st.tuples(st.ip_addresses(), ports)


NETWORKS = """
0.0.0.0/0 128.0.0.0/1 10.0.0.0/8 10.1.0.0/16 10.1.2.0/24 10.1.2.128/25 10.1.2.254/31 10.1.2.3/32 255.255.255.255/32
::/0 8000::/1 fd00::/8 fd00::/64 fd00:7::/65 fd00::80/121 fd00::2/127 fd00::1/128 ffff:ffff::ffff/128
"""
networks = st.sampled_from([ip_network(text) for text in NETWORKS.split()])
changes = st.builds(
    PeerChange,
    public_key=keys,
    remove=st.booleans(),
    update_only=st.booleans(),
    endpoint=endpoints,
    keepalive=st.none() | st.integers(0, 65535),
    replace_allowed_ips=st.booleans(),
    add=st.lists(networks, max_size=12).map(tuple),
    drop=st.lists(networks, max_size=3).map(tuple),
)
counters = st.integers(0, 2**63 - 1)
states = st.builds(
    PeerState,
    public_key=keys,
    endpoint=endpoints,
    keepalive=st.integers(0, 65535),
    allowed_ips=st.frozensets(networks, max_size=6),
    last_handshake=counters,
    rx_bytes=counters,
    tx_bytes=counters,
)


def sent(messages):
    """What pyroute2 reads in our messages, per nest: key, flags, endpoint, keepalive, dropped and added networks."""
    peers = []
    for message in messages:
        decoded = oracle.decode(message)
        assert (decoded["cmd"], decoded["version"]) == (1, 1)
        assert decoded.get_attr("WGDEVICE_A_IFNAME") == "wg0"
        for peer in decoded.get_attr("WGDEVICE_A_PEERS"):
            endpoint = peer.get_attr("WGPEER_A_ENDPOINT")
            dropped, added = [], []
            for allowed_ip in peer.get_attr("WGPEER_A_ALLOWEDIPS") or []:
                # pyroute2 does not know the attribute with the flags and keeps it under no name.
                flagged = len(allowed_ip["attrs"]) == 4
                (dropped if flagged else added).append(ip_network(allowed_ip["addr"]))
            peers.append(
                (
                    base64.b64decode(peer.get_attr("WGPEER_A_PUBLIC_KEY")),
                    peer.get_attr("WGPEER_A_FLAGS"),
                    (ip_address(endpoint["addr"]), endpoint["port"]) if endpoint else None,
                    peer.get_attr("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL"),
                    dropped,
                    added,
                )
            )
    return peers


def joined(peers):
    """Continuations put back to the peer that they continue: the flag UPDATE_ONLY and nothing but allowed IPs."""
    whole = []
    for key, flags, endpoint, keepalive, dropped, added in peers:
        if whole and whole[-1][0] == key and flags == 4 and endpoint is None and keepalive is None:
            whole[-1][4].extend(dropped)
            whole[-1][5].extend(added)
        else:
            whole.append((key, flags, endpoint, keepalive, list(dropped), list(added)))
    return whole


def expected(change):
    if change.remove:
        return (change.public_key, 1, None, None, [], [])
    flags = 2 * change.replace_allowed_ips + 4 * change.update_only
    return (change.public_key, flags, change.endpoint, change.keepalive, list(change.drop), list(change.add))


@settings(max_examples=50)  # pyroute2 is slow
@given(
    st.lists(changes, max_size=6, unique_by=lambda change: change.public_key), st.integers(256, 2000) | st.just(65000)
)
def test_pyroute2_reads_in_our_messages_what_the_changes_say(todo, limit):
    assert joined(sent(wgnl.encode_peers("wg0", todo, limit))) == [expected(change) for change in todo]


@given(st.lists(changes, max_size=6), st.integers(256, 2000))
def test_no_message_holds_more_peers_than_the_limit_and_none_is_needless(todo, limit):
    messages = list(wgnl.encode_peers("wg0", todo, limit))
    header = len(wgnl.encode_device("wg0")) + 4
    assert all(header < len(message) <= header + limit for message in messages)
    if sum(len(message) - header for message in messages) <= limit:
        assert len(messages) == bool(todo)


def test_a_peer_of_thousands_of_allowed_ips_stays_below_the_length_of_a_nest():
    wide = PeerChange(
        bytes(32), replace_allowed_ips=True, add=tuple(IPv4Network((number << 8, 24)) for number in range(9000))
    )
    other = PeerChange(bytes([1]) * 32, keepalive=25)
    messages = list(wgnl.encode_peers("wg0", [wide, other], 65000))
    assert max(map(len, messages)) < 65536
    peers = sent(messages)
    assert [flags for _, flags, *_ in peers] == [2, *[4] * (len(peers) - 2), 0]
    assert Counter(network for *_, added in peers[:-1] for network in added) == Counter(wide.add)


def test_the_scope_of_an_endpoint_is_a_number_in_host_order():
    change = PeerChange(bytes(32), endpoint=(IPv6Address("fe80::1%7"), 5))
    (message,) = wgnl.encode_peers("wg0", [change], 1000)
    endpoint = oracle.decode(message).get_attr("WGDEVICE_A_PEERS")[0].get_attr("WGPEER_A_ENDPOINT")
    assert endpoint["scope_id"].to_bytes(4, "big") == (7).to_bytes(4, "little")  # pyroute2 reads it the wrong way round
    with pytest.raises(ValueError):
        list(wgnl.encode_peers("wg0", [PeerChange(bytes(32), endpoint=(IPv6Address("fe80::1%eth0"), 5))], 1000))


@given(st.none() | keys, st.none() | ports)
def test_the_device_is_set_as_asked(key, port):
    decoded = oracle.decode(wgnl.encode_device("wg0", key, port))
    assert decoded["cmd"] == 1
    assert decoded.get_attr("WGDEVICE_A_IFNAME") == "wg0"
    shown = decoded.get_attr("WGDEVICE_A_PRIVATE_KEY")
    assert (shown and base64.b64decode(shown)) == key
    assert decoded.get_attr("WGDEVICE_A_LISTEN_PORT") == port


def test_a_get_names_the_device():
    decoded = oracle.decode(wgnl.encode_get("wg0"))
    assert decoded["cmd"] == 0
    assert [tuple(attribute) for attribute in decoded["attrs"]] == [("WGDEVICE_A_IFNAME", "wg0")]


@st.composite
def dumps(draw):
    """A device as the kernel tells it: messages of pyroute2, with peers cut between them anywhere, and the state."""
    key, port = draw(keys), draw(ports)
    peers = draw(st.lists(states, max_size=5, unique_by=lambda state: state.public_key))
    messages = [[]]
    for state in peers:
        allowed_ips = list(state.allowed_ips)
        cuts = sorted(draw(st.lists(st.integers(0, len(allowed_ips)), max_size=3)))
        for index, (start, end) in enumerate(zip([0, *cuts], [*cuts, None], strict=True)):
            if index or draw(st.booleans()):
                messages.append([])
            fields = (
                {}
                if index
                else {
                    "endpoint": state.endpoint,
                    "keepalive": state.keepalive,
                    "handshake": state.last_handshake,
                    "rx_bytes": state.rx_bytes,
                    "tx_bytes": state.tx_bytes,
                }
            )
            messages[-1].append(oracle.peer(state.public_key, allowed_ips=allowed_ips[start:end], **fields))
    device = [
        ["WGDEVICE_A_LISTEN_PORT", port],
        ["WGDEVICE_A_FWMARK", 0],
        ["WGDEVICE_A_IFINDEX", 3],
        ["WGDEVICE_A_IFNAME", "wg0"],
        ["WGDEVICE_A_PRIVATE_KEY", base64.b64encode(key)],
        ["WGDEVICE_A_PUBLIC_KEY", base64.b64encode(key)],
    ]
    encoded = []
    for index, nests in enumerate(messages):
        encoded.append(oracle.encode((device if index == 0 else []) + [["WGDEVICE_A_PEERS", nests]]))
    return encoded, (key, port, {state.public_key: state for state in peers})


@settings(max_examples=50)  # pyroute2 is slow
@given(dumps())
def test_a_dump_becomes_the_state_with_cut_peers_made_whole(dump):
    messages, state = dump
    assert wgnl.parse_device(map(memoryview, messages)) == state
    assert wgnl.parse_own(map(memoryview, messages)) == state[:2]


@settings(max_examples=50)  # pyroute2 is slow
@given(dumps())
def test_activity_is_the_same_part_of_the_state(dump):
    messages, (_, _, peers) = dump
    assert wgnl.parse_activity(map(memoryview, messages)) == {
        key: (state.endpoint, state.last_handshake, state.rx_bytes, state.tx_bytes) for key, state in peers.items()
    }


def test_an_endpoint_with_a_scope_is_read_back():
    endpoint = (IPv6Address("fe80::1%7"), 5)
    (message,) = wgnl.encode_peers("wg0", [PeerChange(bytes(32), endpoint=endpoint)], 1000)
    assert wgnl.parse_device([memoryview(message)]).peers[bytes(32)].endpoint == endpoint


MESSAGE = next(
    wgnl.encode_peers(
        "wg0",
        [PeerChange(bytes(32), endpoint=(IPv4Address("192.0.2.1"), 9), keepalive=25, add=(IPv4Network("10.0.0.0/8"),))],
        1000,
    )
)


def test_a_message_cut_short_is_a_protocol_error():
    whole = wgnl.parse_device([memoryview(MESSAGE)])
    for end in range(4, len(MESSAGE)):
        for parse in (wgnl.parse_device, wgnl.parse_activity):
            try:
                parsed = parse([memoryview(MESSAGE)[:end]])
            except ProtocolError:
                continue
            # Between two attributes a cut cannot be seen; what is parsed is then nothing of the peers.
            assert parsed != whole and not (parsed[2] if len(parsed) == 3 else parsed)


@given(st.integers(4, len(MESSAGE) - 1), st.integers(0, 255))
def test_a_changed_byte_parses_or_is_a_protocol_error(position, value):
    changed = bytearray(MESSAGE)
    changed[position] = value
    for parse in (wgnl.parse_device, wgnl.parse_activity):
        with suppress(ProtocolError):
            parse([memoryview(changed)])


@given(st.binary())
def test_any_bytes_parse_or_are_a_protocol_error(data):
    for parse in (wgnl.parse_device, wgnl.parse_activity):
        with suppress(ProtocolError):
            parse([memoryview(data)])


@pytest.mark.parametrize(
    "peer, text",
    [
        (attribute(1, bytes(31)), "a key of 31 bytes"),
        (attribute(5, bytes(2)), "without a public key"),
        (attribute(1, bytes(32)) + attribute(7, bytes(4)), "4 bytes where 8"),
        (attribute(1, bytes(32)) + attribute(4, bytes(16)), "not an endpoint"),
    ],
)
def test_attributes_that_are_no_wireguards_are_protocol_errors(peer, text):
    message = wgnl.encode_get("wg0") + nested(8, nested(0, peer))
    for parse in (wgnl.parse_device, wgnl.parse_activity):
        with pytest.raises(ProtocolError, match=text):
            parse([memoryview(message)])
