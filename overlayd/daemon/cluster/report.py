"""What status and doctor say of this node's part in a cluster.

Owns: the words, and since when the state is what it is.  Must not know: what is tried next (`cluster`), or who asks.
"""

import asyncio
import time

from overlayd import wire
from overlayd.daemon.cluster.cluster import Cluster
from overlayd.model.findings import Finding
from overlayd.model.rows import Membership

MOST_FAULTS = 20  # records that the doctor names


class Report:
    """Reads a cluster, and changes nothing of it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._since = time.time()
        self._state = ""

    def status(self) -> wire.StatusCluster:
        """For the status of the node."""
        cluster = self._cluster
        settings = cluster.settings
        unknown = Membership(cluster=settings.cluster, node=settings.node, instance="")
        known = cluster.node.state.get(Membership) or unknown
        state = cluster.state
        if state != self._state:
            self._state, self._since = state, time.time()
        session = cluster.following.session if cluster.following is not None else None
        now = asyncio.get_running_loop().time()
        error = cluster.conflict or cluster.error or self._lost_store()
        if not error and cluster.news is not None:
            error = cluster.news.problem or cluster.growth.failure
        return wire.StatusCluster(
            name=known.cluster,
            node=known.node,
            state=state,
            since=int(self._since),
            revision=session.revision if session is not None else known.revision,
            nodes=(len(cluster.news.registry) if cluster.news is not None else 0) + bool(known.blocks),
            block=str(known.blocks[0]) if known.blocks else None,
            blocks=tuple(map(str, known.blocks[1:])),
            cluster_cidr=str(known.cidr) if known.cidr is not None else None,
            endpoint=cluster.etcd.servers[session.endpoint].url if session is not None else None,
            error=error or None,
            events=session.changes_seen if session is not None else 0,
            resyncs=session.resyncs if session is not None else 0,
            stale_secs=int(now - session.heard) if session is not None and session.heard else 0,
            publish_window_ms=round(cluster.publishing.window.length * 1000),
            skipped_records=len(cluster.news.registry.faults) if cluster.news is not None else 0,
            windowed=session.windowed if session is not None else False,
            rotation=cluster.rotation.stage or None,
        )

    def findings(self) -> list[Finding]:
        """For the doctor."""
        cluster = self._cluster
        found: list[Finding] = []
        what = f"cluster {cluster.settings.cluster}"
        if cluster.conflict:
            symptom = "containers that are here stay connected, and no new ones are attached"
            found.append(
                Finding("cluster-conflict", "error", what, f"disagrees: {cluster.conflict}", symptom, "see there")
            )
        session = cluster.following.session if cluster.following is not None else None
        if session.state == "disconnected" if session is not None else not cluster.growth.failure:
            why = cluster.error or self._lost_store() or "not yet connected"
            symptom = "what is here goes on; news of other nodes, and of this one to them, wait"
            remedy = cluster.remedy or "see to the store (--etcd), or to the way there"
            found.append(Finding("cluster-disconnected", "warning", what, f"is not followed: {why}", symptom, remedy))
        if cluster.news is not None and cluster.news.guarded:
            lacking, disputed = len(cluster.news.registry.withheld), len(cluster.news.registry.disputed)
            problem = (
                "has another cluster of that name in the store"
                if cluster.news.foreign
                else f"lacks {lacking} nodes in the store that were known here, and has another of {disputed}"
            )
            remedy = "put the store's backup back, wait for the nodes, or accept it (overlayctl cluster accept)"
            found.append(Finding("cluster-guarded", "error", what, problem, "what was known here stays", remedy))
        if cluster.news is not None:
            found += [
                Finding(
                    "cluster-record", "warning", f"record {key}", f"is not believed: {why}", "", "repair or remove it"
                )
                for key, why in list(cluster.news.registry.faults.items())[:MOST_FAULTS]
            ]
        found += cluster.growth.findings()
        if cluster.publishing.failure:
            problem = f"is not told of this node: {cluster.publishing.failure}"
            found.append(
                Finding("cluster-untold", "warning", what, problem, "", "see to the store, or to our role in it")
            )
        if cluster.janitor is not None and cluster.janitor.denied:
            problem = f"has node_ttl_secs, and no janitor that may remove nodes: {cluster.janitor.denied}"
            symptom = "nodes that are gone stay, with their blocks"
            remedy = "let the role of one node at least write p/_janitor, s/node/ and s/name/; see docs/cluster.md"
            found.append(Finding("cluster-janitor", "warning", what, problem, symptom, remedy))
        return found

    def _lost_store(self) -> str:
        """Why the store is not followed at present; empty when it is, or nobody tried."""
        following = self._cluster.following
        return str(following.session.error) if following is not None and following.session.error else ""
