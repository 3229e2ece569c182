"""What was looked at for a packet's way: links, addresses, routes, a device, and who answered.

Owns: the form of that.  Must not know: how it was looked at (`inspect.way`, `linux.way`), or what it means (`path`).
"""

from collections.abc import Mapping
from typing import NamedTuple

from overlayd.model.ends import Hop
from overlayd.model.objects import Address, Network


class Link(NamedTuple):
    """mtu: bytes.  master: of which bridge it is a port, empty for none."""

    up: bool
    mtu: int
    mac: str
    master: str


class Way(NamedTuple):
    """The kernel's route to an address.  problem: why there is none, else empty.  via: empty on link."""

    link: str = ""
    via: str = ""
    problem: str = ""


class Namespace(NamedTuple):
    """What a network namespace shows.  problem: why it could not be looked at, else empty.  addresses: in CIDR
    notation, by link.  way: to the other end.
    """

    links: Mapping[str, Link]
    addresses: Mapping[str, tuple[str, ...]]
    way: Way
    problem: str = ""


class DevicePeer(NamedTuple):
    """endpoint: None when unknown.  last_handshake: Unix seconds, 0 = never."""

    endpoint: tuple[Address, int] | None
    last_handshake: int
    allowed_ips: tuple[Network, ...]


class Device(NamedTuple):
    """A WireGuard device.  problem: why it could not be read.  peers: by key in base64."""

    public_key: str
    port: int
    peers: Mapping[str, DevicePeer]
    problem: str = ""


class OtherSide(NamedTuple):
    """What another node says of its side.  problem: why that is not known, else empty."""

    hops: tuple[Hop, ...] = ()
    problem: str = ""


class Seen(NamedTuple):
    """host, source, target: the namespaces of this node and of both ends, None for ends without one here.  device: the
    one that leads to the target.  forwards: whether this host forwards packets of the overlay's IP version.
    neighbours: whose MAC an address has, as a bridge of ours has it.  answers: to pings from the source ("target",
    "gateway", "other node") and from this node ("target from here", "other node from here", "endpoint"), in seconds,
    None for no answer; those that were not sent are left out.  underlay: the way to the peer's endpoint.  refused:
    whether the endpoint's host says that nobody is at its port.  other_side: what the node there says of its own side,
    None when it was not asked.
    """

    host: Namespace
    source: Namespace | None = None
    target: Namespace | None = None
    device: Device | None = None
    forwards: bool = True
    neighbours: Mapping[tuple[str, str], str] = {}
    answers: Mapping[str, float | None] = {}
    underlay: Way | None = None
    refused: bool = False
    other_side: OtherSide | None = None
