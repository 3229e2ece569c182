from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles_uapi import Device, Peer, endpoint_of

from overlayd.errors import ProtocolError
from overlayd.proto import uapi
from overlayd.proto.wireguard import PeerChange

KEYS = [bytes([number]) * 32 for number in range(5)]
NETWORKS = [
    IPv4Network("10.0.0.0/24"),
    IPv4Network("10.0.0.7/32"),
    IPv4Network("0.0.0.0/0"),
    IPv6Network("fd00::/64"),
    IPv6Network("fd00::7/128"),
    IPv6Network("::/0"),
]

keys = st.sampled_from(KEYS)
ports = st.integers(0, 65535)
addresses = st.one_of(
    st.ip_addresses(),
    st.builds(lambda scope: IPv6Address(f"fe80::1%{scope}"), st.sampled_from(["2", "eth0"])),
)
endpoints = st.none() | st.tuples(addresses, ports)
networks = st.lists(st.sampled_from(NETWORKS), unique=True, max_size=4).map(tuple)
changes = st.builds(
    PeerChange,
    public_key=keys,
    remove=st.booleans(),
    update_only=st.booleans(),
    endpoint=endpoints,
    keepalive=st.none() | st.integers(0, 65535),
    replace_allowed_ips=st.booleans(),
    add=networks,
    drop=networks,
)
counters = st.integers(0, 2**64 - 1)


def endpoint_text(endpoint):
    if endpoint is None:
        return ""
    address, port = endpoint
    return f"[{address}]:{port}" if ":" in str(address) else f"{address}:{port}"


@st.composite
def devices(draw):
    device = Device(
        private_key=draw(st.just("") | keys.map(bytes.hex)),
        listen_port=draw(ports),
        peers={
            key.hex(): Peer(
                endpoint_text(draw(endpoints)),
                draw(st.integers(0, 65535)),
                draw(st.integers(0, 2**40)),
                draw(counters),
                draw(counters),
            )
            for key in draw(st.lists(keys, unique=True))
        },
    )
    if device.peers:
        for network in draw(networks):
            device.owners[str(network)] = draw(st.sampled_from(sorted(device.peers)))
    return device


def agrees(state, device):
    """Whether the parsed state is what the oracle holds."""
    assert state.private_key.hex() == (device.private_key or "00" * 32)
    assert state.listen_port == device.listen_port
    assert {key.hex() for key in state.peers} == set(device.peers)
    for key, peer in state.peers.items():
        expected = device.peers[key.hex()]
        assert peer.public_key == key
        assert peer.endpoint == endpoint_of(expected.endpoint)
        assert peer.keepalive == expected.keepalive
        assert peer.last_handshake == expected.last_handshake
        assert (peer.rx_bytes, peer.tx_bytes) == (expected.rx_bytes, expected.tx_bytes)
        assert peer.allowed_ips == device.allowed_ips(key.hex())
    return True


def respond(data):
    response = uapi.Response()
    assert response.feed(data)
    return response.result()


@given(devices())
def test_a_get_response_becomes_the_state_it_shows(device):
    errno, lines = respond(device.get())
    assert errno == 0
    assert agrees(uapi.parse_device(lines), device)


@given(devices())
def test_activity_is_the_same_part_of_the_state(device):
    _, lines = respond(device.get())
    assert uapi.ActivityReader().read(lines) == {
        key: (peer.endpoint, peer.last_handshake, peer.rx_bytes, peer.tx_bytes)
        for key, peer in uapi.parse_device(lines).peers.items()
    }


@given(devices(), st.integers(0, 4000))
def test_a_response_may_be_cut_anywhere(device, errno):
    data = device.get(errno)
    for cut in range(len(data) + 1):
        response = uapi.Response()
        assert response.feed(data[:cut]) == (cut == len(data))
        assert response.feed(data[cut:])
        assert response.result() == (errno, data[: data.index(b"errno=")])


@given(devices(), st.lists(st.integers(1, 9), min_size=1))
def test_a_response_may_come_in_many_pieces(device, sizes):
    data = device.get()
    response = uapi.Response()
    position = turn = 0
    while position < len(data):
        size = sizes[turn % len(sizes)]
        assert response.feed(data[position : position + size]) == (position + size >= len(data))
        position += size
        turn += 1
    assert agrees(uapi.parse_device(response.result()[1]), device)


@pytest.mark.parametrize("data", [b"errno=-22\n\n", b"errno=22\n\n"])
def test_the_error_number_is_positive_however_it_is_written(data):
    assert respond(data) == (22, b"")


@pytest.mark.parametrize("data", [b"", b"errno=0\n", b"listen_port=1\nerrno=0"])
def test_a_response_that_ends_early_is_an_error(data):
    response = uapi.Response()
    assert not response.feed(data)
    with pytest.raises(ProtocolError, match="ends early"):
        response.result()


@pytest.mark.parametrize("data", [b"listen_port=1\n\n", b"\n\n", b"errno=\n\n", b"errno=x\n\n", b"my_errno=0\n\n"])
def test_a_response_needs_an_error_number(data):
    response = uapi.Response()
    assert response.feed(data)
    with pytest.raises(ProtocolError):
        response.result()


def test_nothing_may_follow_a_response():
    with pytest.raises(ProtocolError, match="after the end"):
        uapi.Response().feed(b"errno=0\n\nerrno=0\n\n")
    response = uapi.Response()
    assert response.feed(b"errno=0\n\n")
    assert response.feed(b"")
    with pytest.raises(ProtocolError, match="after the end"):
        response.feed(b"\n")


@pytest.mark.parametrize(
    "lines",
    [
        b"listen_port\n",
        b"listen_port=a\n",
        b"private_key=00\n",
        b"public_key=" + b"zz" * 32 + b"\n",
        b"public_key=" + b"00" * 33 + b"\n",
        b"public_key=" + b"00" * 31 + b"\n",
        b"public_key=" + b"00" * 32 + b"=\n",
        b"public_key=" + b"00" * 32 + b"\nendpoint=host:1\n",
        b"public_key=" + b"00" * 32 + b"\nendpoint=1.2.3.4\n",
        b"public_key=" + b"00" * 32 + b"\nallowed_ip=10.0.0.0/33\n",
        b"public_key=" + b"00" * 32 + b"\nallowed_ip=\xff\n",
        b"public_key=" + b"00" * 32 + b"\nrx_bytes=-1\n",
        b"public_key=" + b"00" * 32 + b"\nrx_bytes=" + b"1" * 5000 + b"\n",
        b"public_key=" + b"00" * 32 + b"\nendpoint=1.2.3.4:-1\n",
    ],
)
def test_malformed_lines_are_protocol_errors(lines):
    with pytest.raises(ProtocolError):
        uapi.parse_device(lines)


@given(st.binary() | st.text(alphabet="public_key=0123456789abcdef\n:.").map(str.encode))
def test_any_lines_parse_or_are_a_protocol_error(lines):
    for parse in (uapi.parse_device, uapi.ActivityReader().read):
        with suppress(ProtocolError):
            parse(lines)


def test_unknown_keys_are_skipped():
    lines = b"colour=red\npublic_key=" + b"00" * 32 + b"\nshape=round\nrx_bytes=5\n"
    assert uapi.parse_device(lines).peers[bytes(32)].rx_bytes == 5
    assert uapi.ActivityReader().read(lines)[bytes(32)].rx_bytes == 5


def apply_slowly(device, change):
    """What a change is meant to do, on the oracle's dictionaries."""
    key = change.public_key.hex()
    if (change.update_only and key not in device.peers) or (change.remove and key not in device.peers):
        return
    if change.remove:
        del device.peers[key]
        device.owners = {network: owner for network, owner in device.owners.items() if owner != key}
        return
    peer = device.peers.setdefault(key, Peer())
    if change.endpoint is not None:
        peer.endpoint = endpoint_text(change.endpoint)
    if change.keepalive is not None:
        peer.keepalive = change.keepalive
    if change.replace_allowed_ips:
        device.owners = {network: owner for network, owner in device.owners.items() if owner != key}
    for network in change.drop:
        if device.owners.get(str(network)) == key:
            del device.owners[str(network)]
    for network in change.add:
        device.owners[str(network)] = key


@given(devices(), st.lists(changes), st.integers(1, 2000))
def test_set_operations_do_what_the_changes_say(device, todo, limit):
    expected = Device(True, device.private_key, device.listen_port, dict(device.peers), dict(device.owners))
    expected.peers = {key: Peer(**vars(peer)) for key, peer in device.peers.items()}
    for change in todo:
        apply_slowly(expected, change)
    for operation in uapi.encode_peers(todo, limit):
        device.set(operation)
    assert device == expected


@given(st.lists(changes), st.integers(1, 2000))
def test_operations_are_cut_between_peers_once_they_reach_the_limit(todo, limit):
    operations = list(uapi.encode_peers(todo, limit))
    one = list(uapi.encode_peers(todo, 10**9))
    assert len(one) == bool(todo)
    bodies = [operation[len(b"set=1\n") : -1] for operation in operations]
    assert b"".join(bodies) == b"".join(operation[len(b"set=1\n") : -1] for operation in one)
    for body in bodies:
        assert body.startswith(b"public_key=")
        last_peer = body[body.rindex(b"public_key=") :]
        assert len(body) - len(last_peer) < limit
    for body in bodies[:-1]:
        assert len(body) >= limit


@given(st.none() | keys, st.none() | ports)
def test_the_device_is_set_as_asked(key, port):
    device = Device(private_key="ab" * 32, listen_port=7)
    device.set(uapi.encode_device(key, port))
    assert device.private_key == (key.hex() if key is not None else "ab" * 32)
    assert device.listen_port == (port if port is not None else 7)


def test_a_zone_never_becomes_a_line():
    interface = PeerChange(bytes(32), endpoint=(IPv6Address("fe80::1%eth0"), 5))
    assert b"endpoint=[fe80::1%eth0]:5\n" in next(uapi.encode_peers([interface], 1000))
    lines = PeerChange(bytes(32), endpoint=(IPv6Address("fe80::1%lo]:5\nprivate_key=00\nendpoint=[fe80::2"), 5))
    with pytest.raises(ValueError, match="no zone"):
        list(uapi.encode_peers([lines], 1000))


def test_the_lines_of_a_peer_stand_in_the_order_the_protocol_needs():
    change = PeerChange(
        bytes(32),
        update_only=True,
        endpoint=(IPv4Address("192.0.2.1"), 51820),
        keepalive=25,
        add=(IPv4Network("10.0.0.1/32"),),
        drop=(IPv4Network("10.0.0.2/32"),),
    )
    assert list(uapi.encode_peers([change], 1000)) == [
        b"set=1\npublic_key=" + b"00" * 32 + b"\nupdate_only=true\nendpoint=192.0.2.1:51820\n"
        b"persistent_keepalive_interval=25\nallowed_ip=-10.0.0.2/32\nallowed_ip=10.0.0.1/32\n\n"
    ]
