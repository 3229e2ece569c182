"""What the daemon measures, as families of samples.

Owns: names, labels and helps.  Must not know: how a scrape arrives (`endpoint`).

The names of devices and peers are those of prometheus_wireguard_exporter, and those of the process are what Prometheus'
own client libraries call it: dashboards know both.  Made in slices: of ten thousand peers the loop does its other work
in between.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import islice
from typing import Literal, NamedTuple

from overlayd import __version__, keys, wire
from overlayd.daemon.handlers.context import Daemon
from overlayd.daemon.metrics.requests import Requests
from overlayd.daemon.upkeep.sentinel import Sentinel
from overlayd.linux.usage import usage
from overlayd.model.objects import GLOBAL
from overlayd.model.peers import called
from overlayd.model.rows import Attachment, Peer, Service
from overlayd.proto.exposition import Histogram, family, histograms

SLICE = 100  # our own: lines that are made before the loop looks at its other work
AGES = (5.0, 30.0, 60.0, 120.0, 180.0, 600.0, 3600.0, 86400.0)  # of handshakes, seconds


class _PeerFlow(NamedTuple):
    """labels: device, key and name.  handshake: Unix seconds, 0 = never."""

    labels: tuple[str, str, str]
    received: int
    sent: int
    handshake: int


class Collection:
    """each_peer: whether every peer has series of its own.  started: Unix seconds.  connected: how many clients are."""

    def __init__(
        self,
        requests: Requests,
        daemon: Daemon,
        sentinel: Sentinel,
        *,
        started: float,
        each_peer: bool,
        connected: Callable[[], int],
    ) -> None:
        self._requests = requests
        self._node = daemon.node
        self._health = daemon.health
        self._nat = daemon.nat
        self._doctor = daemon.doctor
        self._nameserver = daemon.nameserver
        self._sentinel = sentinel
        self._cluster = daemon.cluster
        self._started = started
        self._each_peer = each_peer
        self._connected = connected

    async def text(self, now: float) -> str:
        """All metrics as text.  now: Unix seconds."""
        made: list[str] = []
        async for part in _in_slices(self._node_itself()):
            made.append(part)
        async for part in _in_slices(self._peers(now)):
            made.append(part)
        return "".join(made)

    def _node_itself(self) -> Iterator[str]:
        node, requests = self._node, self._requests
        backend = node.kernel.backend.name if node.kernel.backend is not None else "none"
        labels = ("version", "backend")
        yield from family(
            "overlayd_build_info",
            "gauge",
            "The version of overlayd, and the WireGuard that it uses; always 1.",
            labels,
            [((__version__, backend), 1)],
        )
        yield from family(
            "overlayd_start_time_seconds",
            "gauge",
            "When the daemon started, in seconds since 1970.",
            (),
            [((), self._started)],
        )
        up = node.state.overlay is not None and node.facts.devices
        yield from family("overlayd_ready", "gauge", "1 while tunnels can be had.", (), [((), up)])
        yield from _process()
        yield from family(
            "overlayd_connections", "gauge", "Clients that are connected to the socket.", (), [((), self._connected())]
        )
        help = "Requests that were answered."
        yield from family("overlayd_requests_total", "counter", help, ("op", "result"), requests.ended.items())
        help = "From a request's decoding to its answer."
        yield from histograms("overlayd_request_duration_seconds", help, ("op",), requests.seconds)
        help = "How late the event loop wakes who wants to be woken."
        yield from histograms("overlayd_loop_lag_seconds", help, (), {(): requests.lag})
        help = "Batches of commits that were synced to the disk."
        yield from family("overlayd_journal_syncs_total", "counter", help, (), [((), node.syncs)])
        help = "From a batch's first byte to its being on the disk."
        yield from histograms("overlayd_journal_sync_duration_seconds", help, (), {(): requests.syncs})
        help = "Rows that the disk refused to take, and that are still to be written."
        yield from family("overlayd_journal_owed_rows", "gauge", help, (), [((), node.owed)])
        help = "What was put right that somebody had changed."
        repairs = [((kind,), number) for kind, number in self._sentinel.repairs.items()]
        yield from family("overlayd_repairs_total", "counter", help, ("kind",), repairs)
        help = "What is known to be wrong without a look, as the doctor counts it."
        yield from family("overlayd_findings", "gauge", help, (), [((), self._doctor.known())])
        yield from self._holdings()
        yield from self._dns()
        if self._cluster is not None:
            yield from _cluster(self._cluster.status())

    def _holdings(self) -> Iterator[str]:
        state = self._node.state
        modes = Counter(each.mode for each in state.table(Service).values())
        samples = [((mode,), modes[mode]) for mode in ("shared", "isolated", "dedicated")]
        yield from family("overlayd_services", "gauge", "Services on this node.", ("mode",), samples)
        kinds = Counter(each.handle.partition(":")[0] for each in state.table(Attachment).values())
        samples = [((kind,), kinds[kind]) for kind in ("pid", "netns", "guest", "host")]
        yield from family("overlayd_attachments", "gauge", "Who is attached.", ("kind",), samples)
        pools = [(name, state.pools(name)) for name in (GLOBAL, *state.table(Service)) if state.pools(name)]
        help = "Addresses that can have a holder, by service; empty: the node's own."
        yield from family(
            "overlayd_pool_addresses", "gauge", help, ("pool",), [((n,), sum(p.size for p in ps)) for n, ps in pools]
        )
        help = "Addresses that have a holder."
        yield from family(
            "overlayd_pool_held", "gauge", help, ("pool",), [((n,), sum(p.held for p in ps)) for n, ps in pools]
        )

    def _dns(self) -> Iterator[str]:
        cache = self._nameserver.cache
        help = "Questions for names of others, by whether the cache had an answer."
        samples = [(("hit",), cache.hits), (("miss",), cache.misses)]
        yield from family("overlayd_dns_forwarded_questions_total", "counter", help, ("cache",), samples)
        yield from family("overlayd_dns_cached_answers", "gauge", "Answers in the cache.", (), [((), len(cache))])
        yield from family(
            "overlayd_dns_cached_bytes", "gauge", "Memory of the answers in the cache of DNS.", (), [((), cache.size)]
        )

    def _peers(self, now: float) -> Iterator[str]:
        """Yields an empty part for each peer, so that the slices are of peers."""
        state, health = self._node.state, self._health
        devices = {GLOBAL: state.overlay.interface} if state.overlay is not None else {}
        devices |= {each.name: each.device for each in state.table(Service).values() if each.dedicated}
        conditions: Counter[str] = Counter()
        paths: Counter[str] = Counter()
        flows: dict[str, list[int]] = {name: [0, 0, 0] for name in devices.values()}
        ages = Histogram(AGES)
        each_peer: list[_PeerFlow] = []
        for peer in list(state.table(Peer).values()):
            yield ""
            conditions[health.condition(peer.scope, peer.public_key)] += 1
            if peer.scope == GLOBAL:
                paths[self._nat.connection(peer)[0] or "unreachable"] += 1
            activity = health.activity(peer.scope, peer.public_key)
            device = devices.get(peer.scope)
            if activity is None or device is None:
                continue
            flow = flows[device]
            flow[0] += activity.rx_bytes
            flow[1] += activity.tx_bytes
            flow[2] += 1
            if activity.last_handshake:
                ages.observe(now - activity.last_handshake)
            if self._each_peer:
                name = called(state, peer.scope, peer.public_key)
                labels = (device, keys.text(peer.public_key), name)
                each_peer.append(_PeerFlow(labels, activity.rx_bytes, activity.tx_bytes, activity.last_handshake))
        samples = [((state,), conditions[state]) for state in ("answers", "idle", "silent")]
        yield from family("overlayd_peers", "gauge", "Peers by how they are.", ("state",), samples)
        kinds = ("direct", "hole-punched", "relayed", "unreachable")
        samples = [((path,), paths[path]) for path in kinds]
        yield from family("overlayd_peer_paths", "gauge", "Peers of the global device.", ("path",), samples)
        help = "How long ago peers shook hands, of those that ever did."
        yield from histograms("overlayd_handshake_age_seconds", help, (), {(): ages})
        help = "Peers of a device."
        yield from family("wireguard_peers", "gauge", help, ("interface",), [((d,), f[2]) for d, f in flows.items()])
        yield from self._flows(flows, each_peer)

    def _flows(self, flows: dict[str, list[int]], each_peer: list[_PeerFlow]) -> Iterator[str]:
        """What devices, or peers if that is wanted, received and sent."""
        received, sent = "wireguard_received_bytes_total", "wireguard_sent_bytes_total"
        helps = ("Received by WireGuard, authentic.", "Sent by WireGuard.")
        if not self._each_peer:
            for at, (name, help) in enumerate(zip((received, sent), helps, strict=True)):
                yield from family(name, "counter", help, ("interface",), [((d,), f[at]) for d, f in flows.items()])
            return
        labels = ("interface", "public_key", "friendly_name")
        yield from family(received, "counter", helps[0], labels, [(each.labels, each.received) for each in each_peer])
        yield from family(sent, "counter", helps[1], labels, [(each.labels, each.sent) for each in each_peer])
        name, help = "wireguard_latest_handshake_seconds", "When it shook hands last, Unix seconds, 0 = never."
        yield from family(name, "gauge", help, labels, [(each.labels, each.handshake) for each in each_peer])


def _process() -> Iterator[str]:
    """This process, as prometheus-client's ProcessCollector names what it measures."""
    used = usage()
    measured: tuple[tuple[str, Literal["counter", "gauge"], str, float], ...] = (
        ("cpu_seconds_total", "counter", "Processor time of user and system, in seconds.", used.cpu),
        ("resident_memory_bytes", "gauge", "Memory that is resident.", used.resident),
        ("virtual_memory_bytes", "gauge", "Memory that is mapped.", used.virtual),
        ("start_time_seconds", "gauge", "When the process started, in seconds since 1970.", used.started),
        ("open_fds", "gauge", "File descriptors that are open.", used.open),
        ("max_fds", "gauge", "File descriptors that there may be.", used.most),
    )
    for name, kind, help, value in measured:
        yield from family(f"process_{name}", kind, help, (), [((), value)])


def _cluster(part: wire.StatusCluster) -> Iterator[str]:
    """This node's part in a cluster that is kept in a store."""
    connected = part.state in ("connected", "guarded")
    measured: tuple[tuple[str, Literal["counter", "gauge"], str, float], ...] = (
        ("connected", "gauge", "1 while the store is followed.", connected),
        ("revision", "gauge", "Of the store, as far as it is known here.", part.revision),
        ("nodes", "gauge", "Nodes of the cluster that are known here, this one too.", part.nodes),
        ("events_total", "counter", "Changes that were read.", part.events),
        ("resyncs_total", "counter", "Listings of all that the store has.", part.resyncs),
        ("stale_seconds", "gauge", "Since anything was heard of the store.", part.stale_secs),
        ("publish_window_seconds", "gauge", "How long news of names are gathered.", part.publish_window_ms / 1000),
    )
    for name, kind, help, value in measured:
        yield from family(f"overlayd_cluster_{name}", kind, help, (), [((), value)])


async def _in_slices(parts: Iterator[str]) -> AsyncIterator[str]:
    while piece := list(islice(parts, SLICE)):
        yield "".join(piece)
        await asyncio.sleep(0)
