"""Every response, one class a `result`, and every event, one class an `event`.

Owns: the shapes.  Must not know: which request asked, or who listens.
"""

from typing import Literal

from overlayd.wire.cluster import ClusterResponse, StatusCluster
from overlayd.wire.listing import (
    ListedAddress,
    ListedContainer,
    ListedNetwork,
    ListedPeer,
    ListedPool,
    ListedService,
)
from overlayd.wire.values import I64, U8, U16, U32, U64, NatCandidate, Peer, Secret, Value, require_u64


class _Response(Value, frozen=True, tag_field="result"):
    pass


class Ok(_Response, frozen=True, tag="ok"):
    """Done."""


class Ip(_Response, frozen=True, tag="ip"):
    """The address handed out."""

    ip: str


class Interface(Value, frozen=True, kw_only=True):
    """An interface of a container.  mtu: bytes.  host_name: of the link that is its other end on the host."""

    name: str
    mac: str
    mtu: U32
    host_name: str


class Attached(_Response, frozen=True, tag="attached"):
    """The container's address.  namespace_guid: Windows only.

    subnet, gateway, prefix_len: of its service on this node (additions); none for a container in the host's network.
    interface: of a container that is attached by its namespace (an addition).
    """

    ip: str
    namespace_guid: str | None = None
    subnet: str | None = None
    gateway: str | None = None
    prefix_len: U8 | None = None
    interface: Interface | None = None


class GuestConfig(Secret, frozen=True, tag_field="result", tag="guest_config"):
    """What a guest needs to run its own WireGuard."""

    overlay_ip: str
    prefix_len: U8
    private_key: str
    public_key: str
    listen_port: U16
    peers: tuple[Peer, ...]
    dns_server: str | None = None
    dns_domain: str | None = None


class BridgeName(_Response, frozen=True, tag="bridge_name"):
    """The name of the interface that was set up.

    subnet, gateway, prefix_len: of a service on this node (additions): the subnet is what other nodes have to be told
    with add_allowed_ip.
    """

    name: str
    subnet: str | None = None
    gateway: str | None = None
    prefix_len: U8 | None = None


class StatusPeer(Value, frozen=True):
    """A peer of the global device.  last_handshake_unix_secs: 0 = never.  health (an addition): "silent": what is sent
    has no answer; "idle": it answered once, and nothing that was sent waits for an answer; else none.  name (an
    addition): as add_peer gave it.
    """

    public_key: str
    endpoint: str
    allowed_ips: str
    last_handshake_unix_secs: I64
    health: Literal["idle", "silent"] | None = None
    name: str | None = None


class DedicatedService(Value, frozen=True):
    """A service with a device of its own, and that device."""

    service: str
    interface: str
    public_key: str
    listen_port: U16
    overlay_ip: str
    subnet: str
    peer_count: U32


class StatusService(Value, frozen=True):
    """A service on this node.  subnet: what other nodes have to be told with add_allowed_ip."""

    service: str
    mode: Literal["shared", "isolated", "dedicated"]
    bridge: str
    subnet: str
    gateway: str


class StatusDevice(Value, frozen=True):
    """A WireGuard device, and what serves it: the kernel of that version, or wireguard-go; none = unknown."""

    interface: str
    backend: Literal["kernel", "userspace"]
    version: str | None = None


class Status(_Response, frozen=True, kw_only=True, tag="status"):
    """The node's overlay.  peer_count: of the global device; service_count: shared and dedicated, once each.

    Additions: services: all of them.  devices: those of this node, the global one first.  version: of overlayd.
    backend: of its WireGuard, none without one: "kernel" or "userspace".  mtu: of its links, in bytes.  wg_port: of the
    global device.  node_id: none before it was set.  started_at_unix: when this daemon began.  findings: how many
    things are known to be wrong without looking; what they are tells `doctor`.  cluster: this
    node's part in a cluster that is kept in a store.
    """

    interface: str | None = None
    node_ip: str | None = None
    public_key: str | None = None
    overlay_cidr: str | None = None
    slice_cidr: str | None = None
    peer_count: U32
    service_count: U32
    peers: tuple[StatusPeer, ...] = ()
    dedicated_services: tuple[DedicatedService, ...] = ()
    services: tuple[StatusService, ...] = ()
    devices: tuple[StatusDevice, ...] = ()
    version: str | None = None
    backend: str | None = None
    mtu: U32 | None = None
    wg_port: U16 | None = None
    node_id: U64 | None = None
    started_at_unix: U64 | None = None
    findings: U32 | None = None
    cluster: StatusCluster | None = None

    def __post_init__(self) -> None:
        require_u64(self.node_id or 0, self.started_at_unix or 0)


class NatPeer(Value, frozen=True):
    """How one node is reached, or was before it went idle.  health (an addition): "silent" as of StatusPeer; "idle":
    nothing is sent to it, so that it is not known to answer; else none.  name (an addition): as add_peer gave it.
    """

    node_id: str
    connection_type: Literal["direct", "hole-punched", "relayed", "unreachable"]
    remote_endpoint: str | None = None
    health: Literal["idle", "silent"] | None = None
    name: str | None = None


class NatStatus(_Response, frozen=True, kw_only=True, tag="nat_status"):
    """This node's candidates, and how its peers are reached.  last_refresh: Unix seconds.  relay_failure (an addition):
    why no TURN server gives this node an address, though some are configured.
    """

    candidates: tuple[NatCandidate, ...] = ()
    peers: tuple[NatPeer, ...] = ()
    last_refresh: U64
    relay_failure: str | None = None

    def __post_init__(self) -> None:
        require_u64(self.last_refresh)


class PrunedBridges(_Response, frozen=True, tag="pruned_bridges"):
    """The bridges that were removed, sorted."""

    reclaimed: tuple[str, ...]


class ServiceOverlay(_Response, frozen=True, tag="service_overlay"):
    """A service's overlay.  All but the first two fields are set when it is dedicated."""

    name: str
    mode: Literal["shared", "dedicated"]
    wg_public_key: str | None = None
    wg_port: U16 | None = None
    overlay_ip: str | None = None
    subnet: str | None = None


class EdgeConfig(Secret, frozen=True, kw_only=True, tag_field="result", tag="edge_config"):
    """What an edge peer needs to connect (an addition).  version: of this shape."""

    version: U32
    name: str
    overlay_ip: str
    prefix_len: U8
    private_key: str
    public_key: str
    peers: tuple[Peer, ...]
    dns_server: str | None = None
    dns_domain: str | None = None
    expires_at_unix: U64

    def __post_init__(self) -> None:
        require_u64(self.expires_at_unix)


class EdgePeer(Value, frozen=True, kw_only=True):
    """A minted edge peer.  last_handshake_unix_secs: none = unknown.  allowed: the CIDRs it may reach, those of its
    services too; services: those that it was granted by name (an addition).
    """

    name: str
    overlay_ip: str
    public_key: str
    minted_at_unix: U64
    expires_at_unix: U64
    last_handshake_unix_secs: I64 | None = None
    allowed: tuple[str, ...]
    services: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_u64(self.minted_at_unix, self.expires_at_unix)


class EdgePeers(_Response, frozen=True, tag="edge_peers"):
    """Every minted edge peer that was not revoked (an addition)."""

    peers: tuple[EdgePeer, ...]


class DnsName(Value, frozen=True):
    """A registered name and its addresses, in the order of registration."""

    name: str
    ips: tuple[str, ...]


class DnsUpstream(Value, frozen=True):
    """A server that is asked for other names.  state: "ok"; "silent" when it has not answered lately, so that it is
    asked last; "loop" when it forwards to this node, so that it is not asked.
    """

    address: str
    state: str


class Dns(_Response, frozen=True, kw_only=True, tag="dns"):
    """What the name server knows (an addition).  cached, cached_bytes: answers of upstream servers; hits, misses: of
    questions for other names, since the start.
    """

    zone: str
    names: tuple[DnsName, ...]
    upstreams: tuple[DnsUpstream, ...]
    cached: U64
    cached_bytes: U64
    hits: U64
    misses: U64


class DnsRecord(Value, frozen=True):
    """A record.  ttl: seconds; data: as a zone file has it."""

    name: str
    type: str
    ttl: U32
    data: str


class DnsAnswer(_Response, frozen=True, kw_only=True, tag="dns_answer"):
    """What the name server says to a query (an addition).  name, type: what was asked.  rcode: NOERROR, NXDOMAIN and so
    on.  source: "own" for names of this node, "cache", "upstream", "stale" for an answer whose time was over, "none"
    when nobody answers.  server: the upstream whose answer it is.  error: its extended error, or ours.  left_out: how
    many records of a very long answer are not shown.
    """

    name: str
    type: str
    rcode: str
    source: str
    server: str | None = None
    error: str | None = None
    records: tuple[DnsRecord, ...] = ()
    authorities: tuple[DnsRecord, ...] = ()
    left_out: U32 = 0


class Finding(Value, frozen=True):
    """Something that a person should know.  object: what it is about; problem: a predicate of it; remedy: what to do
    about it; code: names the kind, for programs; symptom: how it shows, none when the problem says it.  An older
    daemon sends the first three only, and what it finds are errors.
    """

    object: str
    problem: str
    remedy: str
    code: str | None = None
    severity: Literal["error", "warning", "hint"] | None = None
    symptom: str | None = None


class Diagnosis(_Response, frozen=True, tag="diagnosis"):
    """What a person should know, the worst first; nothing when all is well (an addition)."""

    findings: tuple[Finding, ...]


class Listing(_Response, frozen=True, kw_only=True, tag="listing"):
    """What the node holds of the kind that was asked for; the other lists are empty (an addition)."""

    services: tuple[ListedService, ...] = ()
    containers: tuple[ListedContainer, ...] = ()
    pools: tuple[ListedPool, ...] = ()
    addresses: tuple[ListedAddress, ...] = ()
    networks: tuple[ListedNetwork, ...] = ()
    peers: tuple[ListedPeer, ...] = ()


class RenewedDevice(Value, frozen=True, kw_only=True):
    """A device that is served by another process now.  before, after: its versions, none = unknown.  down_ms: how long
    there was no device.  sessions: peers that had one; answered: those that shook hands again within a second;
    restored_ms: from the end of the old process to the last of these handshakes.
    """

    interface: str
    before: str | None = None
    after: str | None = None
    down_ms: U32
    sessions: U32
    answered: U32
    restored_ms: U32


class Renewed(_Response, frozen=True, tag="renewed"):
    """The devices that were renewed; none when all had the newest program already (an addition)."""

    devices: tuple[RenewedDevice, ...]


class Err(_Response, frozen=True, tag="err"):
    """The request failed.  message: what and why, for a person.

    code (an addition): which kind of failure, for programs; see docs/protocol.md.  None of an older daemon.
    """

    message: str
    code: str | None = None


class HelloAnswer(_Response, frozen=True, kw_only=True, tag="hello"):
    """What this daemon speaks (an addition).  protocol: the version of the contract.  requests: every op that it knows.
    abilities: additions to the contract that are more than an op.
    """

    protocol: U32
    version: str
    requests: tuple[str, ...]
    abilities: tuple[str, ...]


Response = (
    Ok
    | Ip
    | Attached
    | GuestConfig
    | BridgeName
    | Status
    | NatStatus
    | PrunedBridges
    | ServiceOverlay
    | EdgeConfig
    | EdgePeers
    | Dns
    | DnsAnswer
    | Diagnosis
    | Listing
    | Renewed
    | HelloAnswer
    | ClusterResponse
    | Err
)


class _Event(Value, frozen=True, tag_field="event"):
    pass


class PeerHealthChanged(_Event, frozen=True, tag="peer_health_changed"):
    """A peer does not answer what is sent to it, with no handshake for 180 s; or it shakes hands again."""

    pubkey: str
    healthy: bool


class NatEndpointChanged(_Event, frozen=True, tag="nat_endpoint_changed"):
    """Traversal or roaming moved a peer.  endpoint: ip:port."""

    pubkey: str
    endpoint: str


class Changed(_Event, frozen=True, tag="changed"):
    """Something of this node was set or removed, or was put right after somebody changed it (an addition, for those who
    asked to `watch`).  object: the handle of a container, the name of a service, the name itself, that of an edge peer,
    a peer's public key; of a repair what was put right; of a finding what it is about.  finding: what the doctor would
    say of that, raised or cleared; of a peer that falls silent `peer_health_changed` tells.
    """

    kind: Literal["overlay", "service", "container", "peer", "name", "edge", "repair", "finding"]
    object: str
    what: Literal["set", "removed", "repaired", "raised", "cleared"]
    finding: Finding | None = None


Event = PeerHealthChanged | NatEndpointChanged | Changed
