"""The values that both control protocols of WireGuard carry.

Owns: what can be asked of a peer and what a device tells about itself.  Must not know: how it is written (`uapi`,
text for wireguard-go; `wgnl`, generic netlink for the kernel), or why it is asked (`model`).
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

import msgspec

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Endpoint = tuple[Address, int]


class PeerChange(msgspec.Struct, frozen=True):
    """What one set operation does to one peer.  The defaults leave a field as it is.

    public_key: 32 bytes.  remove: the peer goes, everything else is ignored.  update_only: do nothing if the peer
    does not exist, instead of creating it.  keepalive: seconds, 0 = off, None = as it is.  replace_allowed_ips:
    forget the present ones first. add: allowed IPs to add; one that another peer has moves over.  drop: allowed IPs
    to remove, which old implementations cannot do one by one.
    """

    public_key: bytes
    remove: bool = False
    update_only: bool = False
    endpoint: Endpoint | None = None
    keepalive: int | None = None
    replace_allowed_ips: bool = False
    add: tuple[Network, ...] = ()
    drop: tuple[Network, ...] = ()


class PeerState(NamedTuple):
    """A peer as the device shows it.

    public_key: 32 bytes.  endpoint: where packets go now, which a roaming peer may have changed; None when unknown.
    keepalive: seconds, 0 = off.  last_handshake: Unix time in seconds, 0 = never.
    """

    public_key: bytes
    endpoint: Endpoint | None
    keepalive: int
    allowed_ips: frozenset[Network]
    last_handshake: int
    rx_bytes: int
    tx_bytes: int


class Own(NamedTuple):
    """What a device has beside its peers; see DeviceState."""

    private_key: bytes
    listen_port: int


class DeviceState(NamedTuple):
    """A device as it shows itself.  private_key: 32 bytes, all zero when unset.  listen_port: UDP, 0 when unset."""

    private_key: bytes
    listen_port: int
    peers: dict[bytes, PeerState]


class Activity(NamedTuple):
    """The part of a peer's state that traffic changes; the fields are those of PeerState."""

    endpoint: Endpoint | None
    last_handshake: int
    rx_bytes: int
    tx_bytes: int
