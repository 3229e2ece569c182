"""What `list` shows: one row class for each kind of thing that a node holds.

Owns: the rows.  Must not know: which message they are part of, or where they come from.

All of this is an addition to the contract.  Times are Unix seconds, and left out when they are not known.
"""

from typing import Literal

from overlayd.wire.values import I64, U16, U32, U64, Value, require_u64

Path = Literal["direct", "hole-punched", "relayed", "unreachable"]


class ListedService(Value, frozen=True, kw_only=True):
    """A service on this node.  device: of a dedicated one.  members: attached containers and guests; held: addresses of
    its subnet that have a holder.
    """

    service: str
    mode: Literal["shared", "isolated", "dedicated"]
    subnet: str
    gateway: str
    bridge: str
    device: str | None = None
    members: U32
    held: U32
    since_unix: U64 | None = None

    def __post_init__(self) -> None:
        require_u64(self.since_unix or 0)


class ListedContainer(Value, frozen=True, kw_only=True):
    """A container or guest that is attached.  handle: "pid:71", "netns:ID/IFNAME", "guest:ID" or "host:ID".  link: the
    host end of its veth; mac: of the other end; both of a container in a namespace of its own only.  global_ip: of its
    second interface.  interface, namespace: the name of the first one, and the path of the namespace that it is in, of
    a container that is attached by that.  network: what its runtime calls what it is attached to.  names: registered
    for it.
    """

    handle: str
    service: str
    ip: str
    global_ip: str | None = None
    isolation_network: str | None = None
    link: str | None = None
    mac: str | None = None
    interface: str | None = None
    namespace: str | None = None
    network: str | None = None
    names: tuple[str, ...] = ()
    since_unix: U64 | None = None

    def __post_init__(self) -> None:
        require_u64(self.since_unix or 0)


class ListedPool(Value, frozen=True, kw_only=True):
    """Addresses to hand out.  service: whose subnet it is, none for the node's own slice.  size: addresses that can
    have a holder; held: those that have one.
    """

    service: str | None = None
    subnet: str
    size: U32
    held: U32


class ListedAddress(Value, frozen=True, kw_only=True):
    """An address that has a holder.  service: of whose pool it is, none for the node's own slice.  holder: the handle
    of an attachment, "edge:NAME", or "allocate_ip".
    """

    ip: str
    service: str | None = None
    holder: str


class ListedNetwork(Value, frozen=True, kw_only=True):
    """An isolation network and its members on this node."""

    network: str
    members: U32
    services: tuple[str, ...]


class ListedPeer(Value, frozen=True, kw_only=True):
    """A peer of any device of this node, but for edge peers (`list_edge_peers`).  service: of whose dedicated device,
    none for the global one.  kind: another node, or a guest of this one.  path: how it is reached, of peers of the
    global device; health: as of `status`.  rx_bytes, tx_bytes: received and sent since the device is there.
    last_handshake_unix_secs: 0 = never.
    """

    name: str | None = None
    public_key: str
    service: str | None = None
    kind: Literal["node", "guest"]
    endpoint: str | None = None
    allowed_ips: tuple[str, ...]
    path: Path | None = None
    health: Literal["idle", "silent"] | None = None
    last_handshake_unix_secs: I64
    rx_bytes: U64
    tx_bytes: U64
    persistent_keepalive_secs: U16

    def __post_init__(self) -> None:
        require_u64(self.rx_bytes, self.tx_bytes)
