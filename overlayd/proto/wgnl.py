"""WireGuard's generic netlink messages, as the kernel speaks them.

Owns: set and get requests to bytes, the messages of a dump to values.  Must not know: sockets, the header around a
message or how attributes are written (`proto.netlink`), or what a device is for.

Sources: linux/wireguard.h (commands, attributes, flags), linux/genetlink.h.  A message here is a genlmsghdr and its
attributes.  Numbers are in host byte order, addresses and ports in network byte order.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from overlayd._fast import addresses
from overlayd.errors import ProtocolError
from overlayd.keys import KEY_SIZE
from overlayd.proto.netlink import attribute, attributes, nested, text, u16, u32
from overlayd.proto.wireguard import Activity, DeviceState, Endpoint, Network, Own, PeerChange, PeerState

FAMILY = "wireguard"  # WG_GENL_NAME
VERSION = 1  # WG_GENL_VERSION
GET_DEVICE, SET_DEVICE = 0, 1  # enum wg_cmd

# enum wgdevice_attribute
_DEVICE_IFNAME, _DEVICE_PRIVATE_KEY, _DEVICE_LISTEN_PORT, _DEVICE_PEERS = 2, 3, 6, 8
# enum wgpeer_attribute, enum wgpeer_flag
_PEER_PUBLIC_KEY, _PEER_FLAGS, _PEER_ENDPOINT, _PEER_KEEPALIVE = 1, 3, 4, 5
_PEER_LAST_HANDSHAKE, _PEER_RX_BYTES, _PEER_TX_BYTES, _PEER_ALLOWED_IPS = 6, 7, 8, 9
_REMOVE_ME, _REPLACE_ALLOWED_IPS, _UPDATE_ONLY = 1, 2, 4
# enum wgallowedip_attribute, enum wgallowedip_flag (REMOVE_ME since Linux 6.16)
_ALLOWED_IP_FAMILY, _ALLOWED_IP_ADDRESS, _ALLOWED_IP_PREFIX, _ALLOWED_IP_FLAGS = 1, 2, 3, 4
_ALLOWED_IP_REMOVE_ME = 1

_AF_INET, _AF_INET6 = 2, 10  # linux/socket.h
_HEADER = struct.Struct("=BBxx")  # struct genlmsghdr: command, version
_U16 = struct.Struct("=H")
_U32 = struct.Struct("=I")
_U64 = struct.Struct("=Q")
_TIMESPEC = struct.Struct("=qq")  # struct __kernel_timespec: seconds, nanoseconds
_SOCKADDR_IN = struct.Struct("=H2s4s8x")  # family, port, address
_SOCKADDR_IN6 = struct.Struct("=H2s4x16sI")  # family, port, flow information, address, scope

Field = tuple[int, memoryview]  # an attribute: type and payload


def encode_get(name: str) -> bytes:
    """Ask for everything about a device; sent as a dump."""
    return _HEADER.pack(GET_DEVICE, VERSION) + text(_DEVICE_IFNAME, name)


def encode_device(name: str, private_key: bytes | None = None, listen_port: int | None = None) -> bytes:
    """Change the device itself.  None leaves a field as it is; private_key: 32 bytes."""
    parts = [_HEADER.pack(SET_DEVICE, VERSION), text(_DEVICE_IFNAME, name)]
    if private_key is not None:
        parts.append(attribute(_DEVICE_PRIVATE_KEY, private_key))
    if listen_port is not None:
        parts.append(u16(_DEVICE_LISTEN_PORT, listen_port))
    return b"".join(parts)


def encode_peers(name: str, changes: Iterable[PeerChange], limit: int) -> Iterator[bytes]:
    """The messages that make `changes`, in their order.

    limit: bytes of peers in one message, from 256 to 65,000, for the nest of peers has a length of 16 bits.  A peer
    with more allowed IPs than fit is cut: another message goes on with its key and the rest.  No changes, no message.

    An IPv6 endpoint's scope must be a number; ValueError otherwise.
    """
    header = _HEADER.pack(SET_DEVICE, VERSION) + text(_DEVICE_IFNAME, name)
    peers: list[bytes] = []
    size = 0
    for change in changes:
        for peer in _encode_peer(change, limit):
            if size + len(peer) > limit and peers:
                yield header + nested(_DEVICE_PEERS, b"".join(peers))
                peers = []
                size = 0
            peers.append(peer)
            size += len(peer)
    if peers:
        yield header + nested(_DEVICE_PEERS, b"".join(peers))


def _encode_peer(change: PeerChange, limit: int) -> Iterator[bytes]:
    """The peer's nests: one, or several of at most `limit` bytes."""
    key = attribute(_PEER_PUBLIC_KEY, change.public_key)
    if change.remove:
        yield nested(0, key + u32(_PEER_FLAGS, _REMOVE_ME))
        return
    flags = _REPLACE_ALLOWED_IPS * change.replace_allowed_ips | _UPDATE_ONLY * change.update_only
    fields = key + u32(_PEER_FLAGS, flags)
    if change.endpoint is not None:
        fields += attribute(_PEER_ENDPOINT, _encode_endpoint(change.endpoint))
    if change.keepalive is not None:
        fields += u16(_PEER_KEEPALIVE, change.keepalive)
    allowed_ips = [_encode_allowed_ip(network, _ALLOWED_IP_REMOVE_ME) for network in change.drop]
    allowed_ips += [_encode_allowed_ip(network, 0) for network in change.add]
    start = 0
    while True:
        end = start
        size = len(fields) + 8  # two headers, of the peer and of its allowed IPs
        while end < len(allowed_ips) and size + len(allowed_ips[end]) <= limit:
            size += len(allowed_ips[end])
            end += 1
        yield nested(0, fields + nested(_PEER_ALLOWED_IPS, b"".join(allowed_ips[start:end])))
        if end == len(allowed_ips):
            return
        start = end
        fields = key + u32(_PEER_FLAGS, _UPDATE_ONLY)


def _encode_allowed_ip(network: Network, flags: int) -> bytes:
    family = _AF_INET if network.version == 4 else _AF_INET6
    fields = (
        u16(_ALLOWED_IP_FAMILY, family)
        + attribute(_ALLOWED_IP_ADDRESS, network.network_address.packed)
        + attribute(_ALLOWED_IP_PREFIX, bytes([network.prefixlen]))
    )
    # Older kernels refuse an attribute that they do not know, even when it says nothing.
    return nested(0, fields + u32(_ALLOWED_IP_FLAGS, flags) if flags else fields)


def _encode_endpoint(endpoint: Endpoint) -> bytes:
    address, port = endpoint
    if isinstance(address, IPv4Address):
        return _SOCKADDR_IN.pack(_AF_INET, port.to_bytes(2, "big"), address.packed)
    return _SOCKADDR_IN6.pack(_AF_INET6, port.to_bytes(2, "big"), address.packed, int(address.scope_id or 0))


@dataclass(slots=True)
class _Peer:
    """A peer while its parts are collected; the kernel may tell its allowed IPs in several messages."""

    endpoint: Endpoint | None = None
    keepalive: int = 0
    last_handshake: int = 0
    rx_bytes: int = 0
    tx_bytes: int = 0
    allowed_ips: list[Network] = field(default_factory=list)


def parse_own(messages: Iterable[memoryview]) -> Own:
    """Key and port from the messages of a dump, as `parse_device` reads them; no peer is looked at."""
    private_key, listen_port = bytes(KEY_SIZE), 0
    for message in messages:
        for kind, payload in attributes(message[_HEADER.size :]):
            if kind == _DEVICE_PRIVATE_KEY:
                private_key = _key(payload)
            elif kind == _DEVICE_LISTEN_PORT:
                listen_port = _number(_U16, payload)
    return Own(private_key, listen_port)


def parse_device(messages: Iterable[memoryview]) -> DeviceState:
    """The whole state from the messages of a dump, in their order.

    The first message carries the device's own attributes; a peer that is cut between two messages comes again with its
    key and the rest of its allowed IPs.  Raises ProtocolError on attributes that are cut short or are no WireGuard's.
    """
    messages = list(messages)
    peers: dict[bytes, _Peer] = {}
    for message in messages:
        for fields in _peers(message):
            peer = peers.setdefault(_public_key(fields), _Peer())
            for kind, payload in fields:
                _take(peer, kind, payload)
                if kind == _PEER_ALLOWED_IPS:
                    peer.allowed_ips += [_allowed_ip(each) for _, each in attributes(payload)]
    return DeviceState(
        *parse_own(messages),
        {
            key: PeerState(
                key,
                peer.endpoint,
                peer.keepalive,
                frozenset(peer.allowed_ips),
                peer.last_handshake,
                peer.rx_bytes,
                peer.tx_bytes,
            )
            for key, peer in peers.items()
        },
    )


def parse_activity(messages: Iterable[memoryview]) -> dict[bytes, Activity]:
    """Per public key the activity, without looking into the allowed IPs.  Raises ProtocolError like `parse_device`."""
    peers: dict[bytes, _Peer] = {}
    for message in messages:
        for fields in _peers(message):
            peer = peers.setdefault(_public_key(fields), _Peer())
            for kind, payload in fields:
                _take(peer, kind, payload)
    return {
        key: Activity(peer.endpoint, peer.last_handshake, peer.rx_bytes, peer.tx_bytes) for key, peer in peers.items()
    }


def _peers(message: memoryview) -> Iterator[list[Field]]:
    """The attributes of every peer in a message."""
    for kind, payload in attributes(message[_HEADER.size :]):
        if kind == _DEVICE_PEERS:
            for _, peer in attributes(payload):
                yield list(attributes(peer))


def _public_key(fields: list[Field]) -> bytes:
    for kind, payload in fields:
        if kind == _PEER_PUBLIC_KEY:
            return _key(payload)
    raise ProtocolError("WireGuard netlink: a peer without a public key")


def _take(peer: _Peer, kind: int, payload: memoryview) -> None:
    """Keep one attribute of a peer, other than its allowed IPs."""
    if kind == _PEER_ENDPOINT:
        peer.endpoint = _endpoint(payload)
    elif kind == _PEER_KEEPALIVE:
        peer.keepalive = _number(_U16, payload)
    elif kind == _PEER_LAST_HANDSHAKE:
        peer.last_handshake = _number(_TIMESPEC, payload)
    elif kind == _PEER_RX_BYTES:
        peer.rx_bytes = _number(_U64, payload)
    elif kind == _PEER_TX_BYTES:
        peer.tx_bytes = _number(_U64, payload)


def _number(layout: struct.Struct, payload: memoryview) -> int:
    """The first field of an attribute that is `layout`."""
    if len(payload) != layout.size:
        raise ProtocolError(f"WireGuard netlink: {len(payload)} bytes where {layout.size} are due")
    return int(layout.unpack(payload)[0])


def _key(payload: memoryview) -> bytes:
    if len(payload) != KEY_SIZE:
        raise ProtocolError(f"WireGuard netlink: a key of {len(payload)} bytes")
    return bytes(payload)


def _endpoint(payload: memoryview) -> Endpoint:
    if len(payload) == _SOCKADDR_IN.size:
        family, port, packed = _SOCKADDR_IN.unpack(payload)
        if family == _AF_INET:
            return IPv4Address(packed), int.from_bytes(port, "big")
    elif len(payload) == _SOCKADDR_IN6.size:
        family, port, packed, scope = _SOCKADDR_IN6.unpack(payload)
        if family == _AF_INET6:
            address = IPv6Address(packed)
            return IPv6Address(f"{address}%{scope}") if scope else address, int.from_bytes(port, "big")
    raise ProtocolError(f"WireGuard netlink: not an endpoint: {payload.hex()}")


def _allowed_ip(payload: memoryview) -> Network:
    fields = dict(attributes(payload))
    try:
        packed, prefix = bytes(fields[_ALLOWED_IP_ADDRESS]), fields[_ALLOWED_IP_PREFIX][0]
        return addresses.of_bytes(packed, prefix)
    except (KeyError, IndexError, ValueError) as error:
        raise ProtocolError(f"WireGuard netlink: not an allowed IP: {payload.hex()}") from error
