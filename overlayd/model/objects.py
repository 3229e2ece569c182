"""The kernel objects that a node's state implies, as plain values.

Owns: their vocabulary and the marks they carry.  Must not know: how they are made (`linux`), when (`daemon`), or the
requests they come from (`wire`).

Each object has a `key`, its identity across renames and restarts: two objects with one key are the same thing,
possibly changed.  Fields with `compare=False` say where the object lives now and are no part of the comparison, so
renaming a bridge does not look like a change of everything on it.  `have`, what the kernel shows, and `want`, what
the state implies, are both maps from key to object; their difference is the plan.

`fault` of a link that was read from the kernel is what is wrong with it that no other field holds, as clauses for a
person: "it is down, its route to 10.9.0.0/24 is gone".  A wanted object has none, so a link with one is repaired.
"""

from abc import ABCMeta
from collections.abc import Hashable
from dataclasses import dataclass, field
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import TYPE_CHECKING

import msgspec

from overlayd._fast.addresses import place

if TYPE_CHECKING:
    Address = IPv4Address | IPv6Address
    Network = IPv4Network | IPv6Network
    Interface = IPv4Interface | IPv6Interface
else:
    # At run time one class each: msgspec, which writes and reads the rows of the state, wants one type for one hook.
    class Address(metaclass=ABCMeta):  # noqa: B024  nothing but a name
        """An IPv4Address or an IPv6Address."""

    class Network(metaclass=ABCMeta):  # noqa: B024  nothing but a name
        """An IPv4Network or an IPv6Network."""

    class Interface(metaclass=ABCMeta):  # noqa: B024  nothing but a name
        """An IPv4Interface or an IPv6Interface."""

    for version in (IPv4Address, IPv6Address):
        Address.register(version)
    for version in (IPv4Network, IPv6Network):
        Network.register(version)
    for version in (IPv4Interface, IPv6Interface):
        Interface.register(version)


def unmapped(address: Address) -> Address:
    """An address, and the IPv4 address where that is written as IPv6 (`::ffff:192.0.2.1`, RFC 4291, 2.5.5.2), as
    programs with one socket for both do: no packet carries such an address.
    """
    return address if address.version == 4 else address.ipv4_mapped or address


# Our own constants.  Link groups (IFLA_GROUP) tell our links from everybody else's, let nftables match them
# whatever they are called, and let many be deleted by one message.  Any number that is unlikely to be used by
# others will do; 0 is the default group.
GROUP_DEVICE = 0x6F760001
GROUP_BRIDGE = 0x6F760002
GROUP_VETH = 0x6F760003
GROUP_DOOMED = 0x6F7600FF  # veths are moved here to be deleted together

# rtm_protocol of our routes and neighbour proxies: 1-4 are the kernel's, others are listed in
# /etc/iproute2/rt_protos; 0x6F ("o") is free.
ROUTE_PROTOCOL = 0x6F

# Our own: the metric of a fence, above that of any route that leads somewhere; the last one of all is the kernel's for
# the IPv6 route of whoever has none.
FENCE_METRIC = 0xFFFF_FFFE

# IFLA_IFALIAS of a device or bridge is this, a space, the kind, a space, and the scope: "overlayd bridge web".  That of
# the global device, whose scope is empty, may be followed by a label, and then has a kind of its own.
ALIAS = "overlayd"
LONGEST_ALIAS = 254  # bytes: IFALIASZ in linux/if.h, less two zeros
LONGEST_SCOPE = 238  # bytes: so that every alias has room

# Our own: the link-local address of every bridge of an IPv6 service.  One on each link is enough, and a fixed one needs
# no duplicate address detection.
LINK_LOCAL_GATEWAY = IPv6Address("fe80::1")

# The one nftables table, in families inet and bridge.
NFT_TABLE = "overlayd"

GLOBAL = ""  # the scope of the global overlay; every other scope is the name of a service with a dedicated device


def device_alias(scope: str, label: str = "") -> str:
    """The alias of a device's link."""
    return f"{ALIAS} node {label}" if label and scope == GLOBAL else f"{ALIAS} device {scope}"


def scope_of_alias(alias: str, kind: str) -> str | None:
    """The scope that a link of that kind, "device" or "bridge", has by its alias; None when it has none of ours."""
    mark = f"{ALIAS} {kind} "
    if alias.startswith(mark):
        return alias[len(mark) :]
    return GLOBAL if kind == "device" and alias.startswith(f"{ALIAS} node ") else None


def label_of_alias(alias: str) -> str:
    """The label in the alias of a global device, empty when there is none."""
    mark = f"{ALIAS} node "
    return alias[len(mark) :] if alias.startswith(mark) else ""


def veth_alias(label: str, *, aside: bool) -> str:
    """The alias of a container's host end.  aside: the container has routes of its own that are set aside for ours."""
    if not label:
        return f"{ALIAS} veth: the container's own routes are set aside" if aside else ""
    return f"{ALIAS} {'aside' if aside else 'netns'} {label}"


def label_of_veth(alias: str) -> str:
    """The label in the alias of a host end, empty when there is none."""
    for mark in (f"{ALIAS} netns ", f"{ALIAS} aside "):
        if alias.startswith(mark):
            return alias[len(mark) :]
    return ""


@dataclass(frozen=True, slots=True)
class Device:
    """A WireGuard device, its addresses and MTU, up; its peers are objects of their own.

    private_key: 32 bytes.  listen_port: UDP.  mtu: bytes.  addresses: with the prefix the device carries them with.
    label: what its link says of the overlay beside that (`adoption.label`); empty on every device but the global one.
    """

    scope: str
    name: str
    private_key: bytes = field(repr=False)
    listen_port: int
    mtu: int
    addresses: frozenset[Interface]
    fault: str = ""
    label: str = ""

    @property
    def key(self) -> Hashable:
        return ("device", self.scope)


@dataclass(frozen=True, slots=True)
class DevicePeer:
    """One peer of a device.

    public_key: 32 bytes.  endpoint: the numeric address and port to send to, None when unknown.  keepalive:
    seconds, 0 = off. device: the device's name.
    """

    scope: str
    device: str = field(compare=False)
    public_key: bytes
    endpoint: tuple[Address, int] | None
    keepalive: int
    allowed_ips: frozenset[Network]

    @property
    def key(self) -> Hashable:
        return ("peer", self.scope, self.public_key)


@dataclass(frozen=True, slots=True)
class Bridge:
    """The bridge of a service on this node, up, spanning tree off, with the gateway's address on it and an explicit
    MAC.
    """

    service: str
    name: str
    address: Interface
    mtu: int
    fault: str = ""

    @property
    def key(self) -> Hashable:
        return ("bridge", self.service)


@dataclass(frozen=True, slots=True)
class Netns:
    """A network namespace, found through a process that lives in it.

    pid, started: the process and its start time in clock ticks since boot (field 22 of /proc/PID/stat, proc(5)).
    inode: of the namespace (/proc/PID/ns/net).  Together they tell a reused pid from the old process.
    """

    pid: int
    started: int
    inode: int

    @property
    def identity(self) -> int:
        """What no other namespace has while its process lives."""
        return self.inode


@dataclass(frozen=True, slots=True)
class NetnsPath:
    """A network namespace by the file that stands for it (nsfs): container runtimes make one before there is a process.

    path: of the file, as the caller who attached it wrote it; we need not see it there.  device, inode: of the file.
    cookie: SO_NETNS_COOKIE (asm-generic/socket.h, Linux 5.14), which no other namespace of a boot has or had, unlike
    the inode; 0 where the kernel does not tell.
    """

    path: str
    device: int
    inode: int
    cookie: int = 0

    @property
    def identity(self) -> int:
        """What no other namespace has, or had in this boot where the kernel tells that."""
        return self.cookie or self.inode


@dataclass(frozen=True, slots=True)
class Veth:
    """A veth pair: `name` is the host end, `interface` (eth0, eth1) the end inside `netns` as it is made; its name is
    the container's own affair from then on.

    service: the service whose bridge the host end is enslaved to; None means no bridge: then the host has a host
    route to the address through the veth.  bridge: that bridge's name now; it holds the port to the MAC of the inner
    end.  address: of the inner end, with its prefix.  gateway: next hop of `routes`, reached on-link through the inner
    end.  mac: of the inner end, 6 bytes.  label: what the host end says of a container that no process stands for
    (`labels.container`).
    namespace: the identity of `netns`: by which of its processes it is found makes no difference.
    """

    name: str
    netns: Netns | NetnsPath = field(compare=False)
    interface: str = field(compare=False)
    service: str | None
    bridge: str | None = field(compare=False)
    address: Interface
    gateway: Address
    routes: frozenset[Network]
    mac: bytes
    mtu: int
    fault: str = ""
    label: str = ""
    namespace: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "namespace", self.netns.identity)

    @property
    def key(self) -> Hashable:
        return ("veth", self.name)


@dataclass(frozen=True, slots=True)
class Route:
    """A route of ours in the main table of the host: `destination` through `device`, scope link.  source: the address
    of ours that the host sends from by it, None for what the kernel chooses.
    """

    scope: str
    device: str = field(compare=False)
    destination: Network
    source: Address | None = None

    @property
    def key(self) -> Hashable:
        return "route", place(self.destination)  # whose own hash is computed each time


@dataclass(frozen=True, slots=True)
class Fence:
    """An unreachable route of ours in the main table, of the metric FENCE_METRIC: what is for `destination` goes
    through the overlay or nowhere.  It is on no link, and so stays when a device goes.
    """

    destination: Network

    @property
    def key(self) -> Hashable:
        return "fence", place(self.destination)


@dataclass(frozen=True, slots=True)
class Alias:
    """One more host address (/32 or /128) on the global device: a `host_shared` container's."""

    device: str = field(compare=False)
    address: Address

    @property
    def key(self) -> Hashable:
        return ("alias", self.address)


@dataclass(frozen=True, slots=True)
class Proxy:
    """A bridge answers ARP and neighbour discovery for an address of its subnet that lives elsewhere: a guest's."""

    service: str
    bridge: str = field(compare=False)
    address: Address

    @property
    def key(self) -> Hashable:
        return ("proxy", self.address)


@dataclass(frozen=True, slots=True)
class Element:
    """One member of one of our nftables sets, or one entry of a map.

    family: "inet" or "bridge", the table's.  set: the set's name.  member: in nft syntax ("10.200.0.5",
    "10.200.0.0/16"). value: of a map entry, in nft syntax; empty for a set.
    """

    family: str
    set: str
    member: str
    value: str = ""

    @property
    def key(self) -> Hashable:
        return ("element", self.family, self.set, self.member)


Object = Device | DevicePeer | Bridge | Veth | Route | Fence | Alias | Proxy | Element


class Step(msgspec.Struct, frozen=True):
    """One change of one object: create (have is None), delete (want is None), or change in place (both; the keys
    are equal).

    along: the object goes with another one that is deleted, so there is nothing to do, but something to undo.
    """

    have: Object | None
    want: Object | None
    along: bool = False

    def inverse(self) -> "Step":
        """The step that undoes this one."""
        return Step(self.want, self.have)
