"""What is asked and answered of a cluster that is kept in a store (an addition to the contract).

Owns: the shapes.  Must not know: what a request does.
"""

from typing import Literal

from overlayd.wire.values import U32, U64, Text, Value


class _Request(Value, frozen=True, forbid_unknown_fields=True, tag_field="op"):
    pass


class _Response(Value, frozen=True, tag_field="result"):
    pass


class InitCluster(_Request, frozen=True, kw_only=True, tag="cluster_init"):
    """Make the cluster that this node was started to join.

    block_prefix: prefix length of a node's block, none for 24 (IPv6: 64).  service_share: 1 when half of a node's first
    block is for services, 0 when nothing is.  node_ttl_secs: how long a node may be gone before it is removed, 0: for
    ever.
    """

    cluster_cidr: Text
    block_prefix: U32 | None = None
    service_share: U32 = 1
    zone: Text | None = None
    node_ttl_secs: U32 = 0


class ListNodes(_Request, frozen=True, tag="cluster_nodes"):
    """Ask for the nodes of the cluster.  -> cluster_nodes"""


class SetCluster(_Request, frozen=True, tag="cluster_set"):
    """Set something of the cluster: node_ttl_secs, rate or zone."""

    key: Text
    value: Text


class LeaveCluster(_Request, frozen=True, tag="cluster_leave"):
    """Leave the cluster: this node's record, names and blocks are given up.  force: though it has attachments."""

    force: bool = False


class RemoveNode(_Request, frozen=True, tag="cluster_remove_node"):
    """Remove a node that is gone."""

    node: Text


class RejoinCluster(_Request, frozen=True, tag="cluster_rejoin"):
    """Take another block, when that of this node is held by another."""


class AcceptCluster(_Request, frozen=True, tag="cluster_accept"):
    """Accept that the store lacks nodes that were known here, or that the cluster was made again."""


class RotateKey(_Request, frozen=True, kw_only=True, tag="rotate_key"):
    """Give this node another key, while its tunnels live; the answer comes when it is prepared.

    after_secs: seconds from when the other nodes are told to when it is used, none for 60.  force: though guests, edge
    peers or peers of an orchestrator know this node by its present key, and have to be told the new one.
    """

    after_secs: U32 | None = None
    force: bool = False


class CheckCluster(_Request, frozen=True, tag="cluster_check"):
    """Compare the store, the journal and the device.  -> cluster_differences"""


class ClusterNode(Value, frozen=True, kw_only=True):
    """A node of the cluster.  present: whether it says that it lives, none when the store does not answer; since: Unix
    seconds of its daemon's start.  names: how many it serves.  problem: what of its record is not believed.
    """

    name: str
    node_id: U64
    public_key: str
    endpoint: str
    blocks: tuple[str, ...]
    nat: bool
    version: str
    own: bool = False
    present: bool | None = None
    since: U64 | None = None
    names: U32 = 0
    withheld: bool = False
    problem: str | None = None


class ClusterNodes(_Response, frozen=True, tag="cluster_nodes"):
    """The nodes of the cluster, by name."""

    nodes: tuple[ClusterNode, ...]


class ClusterDifferences(_Response, frozen=True, tag="cluster_differences"):
    """What differs between the store, the journal and the device, a sentence each."""

    differences: tuple[str, ...]


class StatusCluster(Value, frozen=True, kw_only=True):
    """This node's part in its cluster.  state: "connected" to the store; "syncing", "disconnected"; "conflict": its
    block or name is another's in the store; "guarded": nodes that the store lacks are kept.  since: Unix seconds.
    revision: of the store, as far as it is known here.  events, resyncs: since the start; stale_secs: since anything
    was heard; publish_window_ms: how long news of names are gathered; rotation: what another key waits for.
    """

    name: str
    node: str
    state: Literal["connected", "syncing", "disconnected", "conflict", "guarded"]
    since: U64
    revision: U64
    nodes: U32
    block: str | None = None
    blocks: tuple[str, ...] = ()
    cluster_cidr: str | None = None
    endpoint: str | None = None
    error: str | None = None
    events: U64 = 0
    resyncs: U64 = 0
    stale_secs: U64 = 0
    publish_window_ms: U32 = 0
    skipped_records: U32 = 0
    windowed: bool = False
    rotation: str | None = None


ClusterRequest = (
    InitCluster
    | ListNodes
    | SetCluster
    | LeaveCluster
    | RemoveNode
    | RejoinCluster
    | AcceptCluster
    | RotateKey
    | CheckCluster
)
ClusterResponse = ClusterNodes | ClusterDifferences
