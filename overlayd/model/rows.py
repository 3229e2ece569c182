"""What a node remembers, as rows: the only things that are written to the journal.

Owns: the row types and their JSON.  Must not know: what they mean for the kernel (`layout`), how rows change
(`overlay`, `services`, `peers`, `attachments`, `ipam`), or where they are kept (`daemon.change.journal`).

A row is immutable, lives in one table under one key, and is replaced as a whole.  A `Change` maps row ids to their
new rows, None for a row that goes; it is at once the unit of decision, of durability and of undo.
"""

from collections.abc import Mapping
from functools import lru_cache
from ipaddress import IPv4Network, ip_address, ip_network
from typing import Any, ClassVar, Literal

import msgspec

from overlayd._fast import addresses
from overlayd.errors import StateError
from overlayd.model.names import Leg, namespace_veth_name, veth_name
from overlayd.model.objects import GLOBAL, Address, Netns, NetnsPath, Network, unmapped

RowId = tuple[str, str]  # (table, key)

# Our own constant: every change of a peer, and every start, looks at its endpoint several times.
_ENDPOINTS_REMEMBERED = 16384


class Row(msgspec.Struct, frozen=True, omit_defaults=True):
    """A row of `table`, identified in it by `key`."""

    table: ClassVar[str]

    @property
    def key(self) -> str:
        return ""

    @property
    def id(self) -> RowId:
        return (self.table, self.key)


Change = Mapping[RowId, Row | None]


class Node(Row, frozen=True, kw_only=True, omit_defaults=True):
    """Who this node is.  private_key: X25519, 32 bytes.  announced_key: what the orchestrator takes our public key for.
    next_key: the private key that takes its place when the other nodes know it, empty when there is none; former_key:
    the one before, until the device has the new one.
    """

    table: ClassVar[str] = "node"
    private_key: bytes
    node_id: int = 0
    announced_key: bytes = b""
    next_key: bytes = b""
    former_key: bytes = b""


class Overlay(Row, frozen=True, kw_only=True, omit_defaults=True):
    """The global overlay.  interface: the device's name.  nat: the request's NatConfig as it takes effect, None for
    the built-in one.  up: False after a teardown, which keeps key, peers and allocations.  slice_service: the service
    whose subnet the slice is; empty for none.
    """

    table: ClassVar[str] = "overlay"
    deployment: str
    instance_id: str
    interface: str
    cluster: Network
    slice: Network | None = None
    wg_port: int
    nat: dict[str, Any] | None = None
    up: bool = True
    slice_service: str = ""


class Service(Row, frozen=True, kw_only=True, omit_defaults=True):
    """A service on this node.  subnet: its containers' addresses.  isolated: its containers are expected to come with
    an isolation network.  lasting: an attach since the setup was not ephemeral.  left: its last container, ephemeral
    as all before it, has left since the setup, and addresses of allocate_ip keep it.  device, private_key, wg_port:
    only of a dedicated service.  since: when it was set up, Unix seconds, 0 when that is not known.
    """

    table: ClassVar[str] = "service"
    name: str
    subnet: Network
    bridge: str
    isolated: bool = False
    lasting: bool = False
    left: bool = False
    device: str = ""
    private_key: bytes = b""
    wg_port: int = 0
    since: int = 0

    @property
    def key(self) -> str:
        return self.name

    @property
    def dedicated(self) -> bool:
        return bool(self.device)

    @property
    def mode(self) -> Literal["shared", "isolated", "dedicated"]:
        if self.dedicated:
            return "dedicated"
        return "isolated" if self.isolated else "shared"


class Peer(Row, frozen=True, kw_only=True, omit_defaults=True):
    """A peer of the device of `scope`.  endpoint: `host:port` as it was given, empty when none.  keepalive:
    seconds.  listed: allowed IPs of the last add_peer.  added: those of add_allowed_ip, which stay; one may be both.
    name: what people call it, empty for none.
    member: whose it is, if the cluster's store told of it; empty when an orchestrator did.
    """

    table: ClassVar[str] = "peer"
    scope: str = GLOBAL
    public_key: bytes
    endpoint: str = ""
    keepalive: int = 0
    listed: tuple[Network, ...] = ()
    added: tuple[Network, ...] = ()
    candidates: tuple[tuple[str, str, int], ...] = ()
    name: str = ""
    member: str = ""

    @property
    def key(self) -> str:
        return peer_key(self.scope, self.public_key)

    @property
    def allowed_ips(self) -> frozenset[Network]:
        return frozenset(self.listed + self.added)


@lru_cache(_ENDPOINTS_REMEMBERED)
def numeric_endpoint(endpoint: str) -> tuple[Address, int] | None:
    """`1.2.3.4:5` or `[fd00::1]:5` as an address and a port; None when the host is a name.

    Nor has it a zone: that of an address may be any text, also lines of WireGuard's text protocol.
    """
    host, _, port = endpoint.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if "%" in host:
        return None
    try:
        return unmapped(addresses.address(host) or ip_address(host)), int(port)
    except ValueError:
        return None


def peer_key(scope: str, public_key: bytes) -> str:
    """The key of a Peer row: the key in hex first, since a scope may hold any character."""
    return f"{public_key.hex()}/{scope}"


def peer_of(key: str) -> tuple[bytes, str]:
    """The public key and the scope in the key of a Peer row."""
    digits, _, scope = key.partition("/")
    return bytes.fromhex(digits), scope


class Lease(Row, frozen=True, kw_only=True, omit_defaults=True):
    """An address that was handed out.  pool: the service whose subnet it is from, GLOBAL for the node's own pool.
    holder: who holds it, empty when released; released: the order of releases, so that the oldest is reused first.
    """

    table: ClassVar[str] = "lease"
    address: Address
    pool: str
    holder: str = ""
    released: int = 0

    @property
    def key(self) -> str:
        return str(self.address)


class Attachment(Row, frozen=True, kw_only=True, omit_defaults=True):
    """A container or guest.  handle: `pid:71`, `netns:ID/eth0`, `guest:vm1` or `host:x`.  netns: of a container, found
    through a process that was attached; others: the processes of the same namespace that were attached too; file: of a
    container that was attached by its namespace, with `interface` in it; boot_id: the boot they live in.
    global_address: of its second interface.  joined: it was attached with join_global, and its one address does for
    that.  mac: of its interface, if it asked for one.  default_route: its traffic to the outside goes through us too.
    network: by what a container runtime knows what it is attached to.  private_key: of a guest, which this node makes.
    since: when it was attached, Unix seconds, 0 when that is not known.
    """

    table: ClassVar[str] = "attachment"
    handle: str
    service: str
    address: Address
    ephemeral: bool = False
    netns: Netns | None = None
    others: tuple[Netns, ...] = ()
    boot_id: str = ""
    global_address: Address | None = None
    isolation_network: str = ""
    dns_server: Address | None = None
    dns_domain: str = ""
    private_key: bytes = b""
    public_key: bytes = b""
    since: int = 0
    file: NetnsPath | None = None
    interface: str = ""
    joined: bool = False
    mac: bytes = b""
    default_route: bool = True
    network: str = ""

    @property
    def key(self) -> str:
        return self.handle

    @property
    def namespace(self) -> Netns | NetnsPath | None:
        """Where a container lives; None for a guest, and for who shares the host's network."""
        return self.netns or self.file

    @property
    def processes(self) -> tuple[Netns, ...]:
        """Those that are attached: the container has its network while one of them lives."""
        return () if self.netns is None else (self.netns, *self.others)

    def host_end(self, leg: Leg = "s") -> str:
        """The name of a container's link on the host: after the process that was attached first, or its namespace."""
        kind, _, name = self.handle.partition(":")
        if kind == "pid":
            return veth_name(int(name), leg)
        return namespace_veth_name(name.removesuffix(f"/{self.interface}"), self.interface, leg)


class Isolation(Row, frozen=True, kw_only=True, omit_defaults=True):
    """The number that stands for an isolation network in packet filters, kept while it has members."""

    table: ClassVar[str] = "isolation"
    name: str
    number: int

    @property
    def key(self) -> str:
        return self.name


class Record(Row, frozen=True, kw_only=True, omit_defaults=True):
    """A registered name and its addresses: the first one registered, and the others."""

    table: ClassVar[str] = "record"
    name: str
    address: Address
    others: tuple[Address, ...] = ()

    @property
    def key(self) -> str:
        return self.name

    @property
    def addresses(self) -> tuple[Address, ...]:
        return (self.address, *self.others)


class Edge(Row, frozen=True, kw_only=True, omit_defaults=True):
    """A minted edge peer: a device outside the cluster that may reach `allowed`, and the subnets of `services` as they
    are on this node, until `expires` (Unix seconds).

    Its private key is not here: nobody but the device needs it.
    """

    table: ClassVar[str] = "edge"
    name: str
    address: Address
    public_key: bytes
    minted: int
    expires: int
    allowed: tuple[Network, ...]
    services: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return self.name


class Host(Row, frozen=True, kw_only=True, omit_defaults=True):
    """What the host was in this boot before it got an overlay.  closed: the versions of IP that it did not forward, so
    that it is we who switched that on.  bridged: those whose packets inside a bridge the host's packet filter sees as
    if they were forwarded (br_netfilter).
    """

    table: ClassVar[str] = "host"
    boot_id: str
    closed: tuple[int, ...] = ()
    bridged: tuple[int, ...] = ()


class Membership(Row, frozen=True, kw_only=True, omit_defaults=True):
    """This node's place in a cluster that is kept in a store.  cluster: its name; cluster_id: of its making, empty
    until it is known.  node: our name in it; instance: of our data directory, so that a name has one holder; machine:
    of the host that it is on.  blocks: of the cluster CIDR that are ours, the first one first.  revision: of the store,
    up to which the rows of members are known, 0 while some of them are in doubt; witness: the newest key of then
    (`proto.store`); history: the mark that the store had then.  seq: the number of what we put last in the store, or
    were about to.  The rest is as the cluster was made.
    """

    table: ClassVar[str] = "membership"
    cluster: str
    node: str
    instance: str
    machine: str = ""
    cluster_id: str = ""
    cidr: Network | None = None
    block_prefix: int = 0
    service_share: int = 1
    zone: str = ""
    node_ttl: int = 0
    rate: float = 10.0
    blocks: tuple[Network, ...] = ()
    revision: int = 0
    witness: tuple[str, int, int] | None = None
    history: str = ""
    seq: int = 0


class Member(Row, frozen=True, kw_only=True, omit_defaults=True):
    """Another node of the cluster, as its record in the store has it.  next_key: the public key that it will have soon.
    created: the store's revision at which the record came, so that of two who claim one thing the older is known.  seq:
    the number that the node gave it, higher than that of any record before it of this instance.
    """

    table: ClassVar[str] = "member"
    name: str
    instance: str
    node_id: int
    public_key: bytes
    endpoint: str = ""
    candidates: tuple[tuple[str, str, int], ...] = ()
    nat: bool = False
    blocks: tuple[Network, ...]
    version: str = ""
    next_key: bytes = b""
    created: int
    seq: int = 0

    @property
    def key(self) -> str:
        return self.name


class MemberNames(Row, frozen=True, kw_only=True, omit_defaults=True):
    """Names that another node of the cluster serves.  part: its name, with a number behind a slash if it has many."""

    table: ClassVar[str] = "membernames"
    part: str
    names: dict[str, tuple[Address, ...]]

    @property
    def key(self) -> str:
        return self.part


ROWS: tuple[type[Row], ...] = (
    Node,
    Overlay,
    Service,
    Peer,
    Lease,
    Attachment,
    Isolation,
    Record,
    Edge,
    Host,
    Membership,
    Member,
    MemberNames,
)


def _decode_hook(kind: type[Any], value: Any) -> Any:
    if issubclass(IPv4Network, kind):
        return addresses.network(value) or ip_network(value)
    return addresses.address(value) or ip_address(value)


_ENCODER = msgspec.json.Encoder(enc_hook=str)
_DECODERS = {row.table: msgspec.json.Decoder(row, dec_hook=_decode_hook) for row in ROWS}


def encode(row: Row) -> bytes:
    """The row as JSON, for the journal."""
    return _ENCODER.encode(row)


def decode(id: RowId, data: bytes) -> Row:
    """The row that `encode` wrote.  StateError: it is of no table that we know, or not a row of it (a newer
    overlayd wrote it).
    """
    decoder = _DECODERS.get(id[0])
    if decoder is None:
        raise StateError(
            f"the journal has a row in the table {id[0]!r}, unknown here: was it written by a newer overlayd?"
        )
    try:
        return decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise StateError(f"the journal's row {id[0]}/{id[1]} cannot be read: {error}") from error
