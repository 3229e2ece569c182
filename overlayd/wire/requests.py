"""Every request, one class an `op`.

Owns: the shapes.  Must not know: what a request does (`daemon.handlers`).

A docstring names the success response where it is not `ok`, and says which requests and keys are additions.
"""

from typing import Annotated, Literal

from msgspec import Meta

from overlayd.wire.cluster import ClusterRequest
from overlayd.wire.values import (
    GLOBAL,
    MOST_BRIDGES,
    MOST_GRANTS,
    U16,
    U64,
    Handle,
    NatConfig,
    Peer,
    Scope,
    Text,
    Value,
    require_u64,
)


class _Request(Value, frozen=True, forbid_unknown_fields=True, tag_field="op"):
    pass


class SetLocalNodeId(_Request, frozen=True, tag="set_local_node_id"):
    """The orchestrator's number of this node: it spreads the services' subnets over the nodes."""

    node_id: U64

    def __post_init__(self) -> None:
        require_u64(self.node_id)


class SetLocalWgPubkey(_Request, frozen=True, tag="set_local_wg_pubkey"):
    """The public key that the orchestrator knows this node by."""

    pubkey: Text


class SetupGlobalOverlay(_Request, frozen=True, kw_only=True, tag="setup_global_overlay"):
    """Bring up this node's device in the cluster's overlay.  -> bridge_name: the device's name"""

    deployment: Text
    instance_id: Text
    cluster_cidr: Text
    slice_cidr: Text | None = None
    wg_port: U16
    host_adapter_mandatory: bool = False
    nat: NatConfig | None = None


class TeardownGlobalOverlay(_Request, frozen=True, tag="teardown_global_overlay"):
    """Drop the global device; key, peers and allocations stay on disk."""


class SetupServiceOverlay(_Request, frozen=True, tag="setup_service_overlay"):
    """Make a service's bridge, or its own device too.  -> bridge_name, or service_overlay for a dedicated one

    mode: auto means shared; isolated is the same bridge, whose containers come with an isolation_network.  subnet: use
    exactly this CIDR (an addition to the contract); none: overlayd chooses.  The node's slice may be one service's: its
    containers then have the node's own addresses, which every node of the cluster reaches.
    """

    service: Text
    mode: Literal["auto", "shared", "isolated", "dedicated"]
    subnet: Text | None = None


class TeardownServiceOverlay(_Request, frozen=True, tag="teardown_service_overlay"):
    """Remove a service's bridge and device, and free its subnet and port."""

    service: Text


class AllocateIp(_Request, frozen=True, tag="allocate_ip"):
    """Hand out an address.  -> ip"""

    service: Text
    join_global: bool


class ReleaseIp(_Request, frozen=True, tag="release_ip"):
    """Take back what `allocate_ip` handed out."""

    ip: Text


class AttachContainer(_Request, frozen=True, tag="attach_container"):
    """Connect a container to a service.  -> attached, or guest_config for a guest_managed handle

    Additions: ip: the address that it is to have, of the service's subnet here.  mac: of its interface.  default_route:
    what is for the outside goes through that interface too.  The latter two are of containers in a namespace of their
    own.
    """

    handle: Handle
    service: Text
    join_global: bool
    ephemeral: bool = False
    isolation_network: Text | None = None
    dns_server: Text | None = None
    dns_domain: Text | None = None
    ip: Text | None = None
    mac: Text | None = None
    default_route: bool = True


class DetachContainer(_Request, frozen=True, tag="detach_container"):
    """Disconnect a container and release its addresses."""

    handle: Handle


class AddPeer(Peer, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="add_peer"):
    """Add a peer, or set what is known of it.

    name: what people call it (an addition), shown in place of its key; none: as before; empty: it has none any more.
    """

    scope: Scope = GLOBAL
    name: Text | None = None


class RemovePeer(_Request, frozen=True, tag="remove_peer"):
    """Forget a peer."""

    pubkey: Text
    scope: Scope = GLOBAL


class AddAllowedIp(_Request, frozen=True, tag="add_allowed_ip"):
    """Route a CIDR to a peer, and away from the peer that had it."""

    pubkey: Text
    cidr: Text
    scope: Scope = GLOBAL


class RemoveAllowedIp(_Request, frozen=True, tag="remove_allowed_ip"):
    """Take a CIDR from a peer."""

    pubkey: Text
    cidr: Text
    scope: Scope = GLOBAL


class RegisterDns(_Request, frozen=True, tag="register_dns"):
    """Let a name resolve to an address."""

    name: Text
    ip: Text


class UnregisterDns(_Request, frozen=True, tag="unregister_dns"):
    """Forget a name, or one address of it."""

    name: Text
    ip: Text | None = None


class WriteScopedResolver(_Request, frozen=True, tag="write_scoped_resolver"):
    """Send a zone's queries to a resolver (macOS; elsewhere only the zone is checked)."""

    zone: Text
    node_ip: Text
    port: U16 | None = None


class RemoveScopedResolver(_Request, frozen=True, tag="remove_scoped_resolver"):
    """Undo write_scoped_resolver."""

    zone: Text


class PruneOrphanBridges(_Request, frozen=True, tag="prune_orphan_bridges"):
    """Remove every service bridge that is not listed and has no living container on it.  -> pruned_bridges"""

    live_bridge_names: Annotated[tuple[Text, ...], Meta(max_length=MOST_BRIDGES)]


class GetStatus(_Request, frozen=True, tag="status"):
    """Ask for the node's devices and peers.  -> status"""


class ListDns(_Request, frozen=True, tag="list_dns"):
    """Ask what the name server knows (an addition).  -> dns"""


class QueryDns(_Request, frozen=True, tag="query_dns"):
    """Ask this node's name server for a name, and learn who answered (an addition).  type: of records, such as AAAA or
    TYPE65; empty means A, and for an address the name of its holder.  -> dns_answer
    """

    name: Text
    type: Text = ""


class FlushDns(_Request, frozen=True, tag="flush_dns"):
    """Forget what upstream servers have answered (an addition)."""


class NatTick(_Request, frozen=True, tag="nat_tick"):
    """Refresh candidates and retry traversal now."""


class GetNatStatus(_Request, frozen=True, tag="nat_status"):
    """Ask how peers are reached.  -> nat_status"""


class Shutdown(_Request, frozen=True, tag="shutdown"):
    """Drop the global device and end the daemon."""


class MintEdgePeer(_Request, frozen=True, tag="mint_edge_peer"):
    """Make a key and an address for a device outside the cluster (an addition).  -> edge_config

    ttl_secs: how long it may connect; allow: what it may reach, CIDRs and names of services of this node, none for the
    whole cluster CIDR; node_endpoint: `host:port` where it dials this node, none for the address of this host.
    """

    name: Text
    ttl_secs: U64
    allow: Annotated[tuple[Text, ...], Meta(max_length=MOST_GRANTS)] = ()
    node_endpoint: Text | None = None

    def __post_init__(self) -> None:
        require_u64(self.ttl_secs)


class ListEdgePeers(_Request, frozen=True, tag="list_edge_peers"):
    """Ask for the minted edge peers (an addition).  -> edge_peers"""


class RevokeEdgePeer(_Request, frozen=True, tag="revoke_edge_peer"):
    """Disconnect an edge peer for good (an addition)."""

    name: Text


class RenewDevices(_Request, frozen=True, tag="renew_devices"):
    """Have the WireGuard devices served by the newest program there is, one after the other (an addition).  Those that
    it serves already are left alone, unless `force`.  -> renewed
    """

    force: bool = False


class Doctor(_Request, frozen=True, tag="doctor"):
    """Compare state, kernel and devices, and change nothing (an addition).  -> diagnosis"""


class ListThings(_Request, frozen=True, tag="list"):
    """Ask what this node holds, of one kind (an addition).  -> listing"""

    what: Literal["services", "containers", "pools", "addresses", "networks", "peers"]


class Hello(_Request, frozen=True, tag="hello"):
    """Ask what this daemon speaks (an addition).  -> hello"""


class Watch(_Request, frozen=True, tag="watch"):
    """Have `changed` events sent on this connection, too, from now on (an addition)."""


Request = (
    SetLocalNodeId
    | SetLocalWgPubkey
    | SetupGlobalOverlay
    | TeardownGlobalOverlay
    | SetupServiceOverlay
    | TeardownServiceOverlay
    | AllocateIp
    | ReleaseIp
    | AttachContainer
    | DetachContainer
    | AddPeer
    | RemovePeer
    | AddAllowedIp
    | RemoveAllowedIp
    | RegisterDns
    | UnregisterDns
    | WriteScopedResolver
    | RemoveScopedResolver
    | PruneOrphanBridges
    | GetStatus
    | NatTick
    | GetNatStatus
    | ListDns
    | QueryDns
    | FlushDns
    | Shutdown
    | MintEdgePeer
    | ListEdgePeers
    | RevokeEdgePeer
    | Doctor
    | ListThings
    | RenewDevices
    | Hello
    | Watch
    | ClusterRequest
)
