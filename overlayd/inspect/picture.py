"""What the kernel shows of this node's overlay, as plain rows, one kind a section, and what differs from the journal.

Owns: the vocabulary.  Must not know: who reads it, and what should be there.
"""

from dataclasses import dataclass, field, fields
from typing import NamedTuple

from overlayd.model.objects import Interface, Network


class Role(NamedTuple):
    """What a link is to us, by its mark.  kind: "device", "bridge" or "veth".  name: the scope of a device ("" is the
    global overlay), the service of a bridge, the name of a veth's host end.
    """

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Link:
    """A link of ours.  type: the kernel's kind ("wireguard", "tun", "bridge", "veth").  names: its name and its
    alternative names.  master: the name of the bridge that it is a port of, empty for none.  mtu: bytes.
    """

    name: str
    role: Role
    type: str
    up: bool
    mtu: int
    mac: str
    master: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Address:
    """An address on a link of ours."""

    link: str
    address: Interface


@dataclass(frozen=True, slots=True)
class Route:
    """A route through a link of ours, or with our mark.  link, via: empty for none.  protocol: rtm_protocol.  type:
    "unicast", "unreachable", ...
    """

    destination: Network
    link: str
    via: str
    protocol: int
    type: str


@dataclass(frozen=True, slots=True)
class Forwarding:
    """An entry of a bridge's forwarding database.  state: "permanent", "static" or "learned"."""

    bridge: str
    port: str
    mac: str
    state: str


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An entry of a link's ARP or ND table.  state: the kernel's ("reachable", "stale", ...), or "proxy"."""

    link: str
    address: str
    mac: str
    state: str


@dataclass(frozen=True, slots=True)
class Socket:
    """A socket at an address or port of the overlay.  protocol: "udp", "tcp" or "unix".  remote: empty for none."""

    protocol: str
    local: str
    remote: str
    state: str


@dataclass(frozen=True, slots=True)
class Connection:
    """A tracked connection with an overlay address at one of its ends, and what its answers come back as.  protocol: a
    name or the number.
    """

    protocol: str
    source: str
    target: str
    answered_by: str
    answered_to: str


@dataclass(slots=True)
class Picture:
    """Every section.  unseen: sections that could not be read, and why."""

    links: list[Link] = field(default_factory=list)
    addresses: list[Address] = field(default_factory=list)
    routes: list[Route] = field(default_factory=list)
    fdb: list[Forwarding] = field(default_factory=list)
    neighbours: list[Neighbour] = field(default_factory=list)
    sockets: list[Socket] = field(default_factory=list)
    conntrack: list[Connection] = field(default_factory=list)
    unseen: dict[str, str] = field(default_factory=dict)


SECTIONS = tuple(each.name for each in fields(Picture) if each.name != "unseen")


class Difference(NamedTuple):
    """object: what it is about, as the doctor calls it.  problem: a predicate of it."""

    object: str
    problem: str


@dataclass(frozen=True, slots=True)
class Inspection:
    """picture: what the kernel shows.  journal: the file that it was compared with.  uncompared: why it was not,
    empty when it was.  differences: what is missing or too much.
    """

    picture: Picture
    journal: str
    uncompared: str
    differences: tuple[Difference, ...]
