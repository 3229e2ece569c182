"""What every handler works with, and the names of what it locks.

Owns: nothing of its own.  Must not know: any request.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from overlayd import keys, wire
from overlayd.daemon.change.node import Node
from overlayd.daemon.dns.nameserver import Nameserver
from overlayd.daemon.doctor import Doctor
from overlayd.daemon.nat.session import Nat
from overlayd.daemon.peers.health import Health
from overlayd.daemon.status import StatusView
from overlayd.daemon.upkeep.surroundings import Surroundings
from overlayd.errors import RequestError
from overlayd.linux import egress
from overlayd.model.layout import endpoint_text
from overlayd.model.objects import Network
from overlayd.model.rows import Overlay

# Seconds between the keepalives of those who reach us from elsewhere: they may sit behind a NAT, and most of these
# forget a silent UDP flow after 30 s.
KEEPALIVE = 25


class InCluster(Protocol):
    """This node's part in a cluster that is kept in a store.  A daemon that has none imports nothing of it."""

    async def ask(self, request: wire.ClusterRequest) -> wire.Response:
        """RequestError: it cannot be done, or the store did not do it."""

    def status(self) -> wire.StatusCluster:
        """As `status` shows it."""

    def require_attachable(self) -> None:
        """RequestError while no address may be handed out."""


class Daemon(NamedTuple):
    """The running daemon, as handlers see it.  ask_names: looks up the host names of peers that do not answer; stop:
    ends the daemon once the answers in flight are out.
    """

    node: Node
    status: StatusView
    health: Health
    nat: Nat
    doctor: Doctor
    nameserver: Nameserver
    surroundings: Surroundings
    boot_id: str
    ask_names: Callable[[], None]
    stop: Callable[[], None]
    cluster: InCluster | None = None


class NodeAsPeer:
    """This node as a peer of a WireGuard that runs elsewhere: at its physical address, which `look` has to find."""

    def __init__(self, daemon: Daemon) -> None:
        self._node = daemon.node
        self._way_out: egress.Egress | None = None

    def look(self) -> None:
        """Blocks."""
        self._way_out = egress.physical_egress()

    def require(self) -> egress.Egress:
        """RequestError when this node has no such address."""
        if self._way_out is None:
            raise RequestError(
                "this node has no default route through a physical interface, so there is no address to reach it at"
            )
        return self._way_out

    def peer(self, allowed_ips: Sequence[Network] | None, endpoint: str | None = None) -> wire.Peer:
        """The way to `allowed_ips` (None: to the cluster), of an overlay that has been set up, if not forever.
        endpoint: `host:port` where this node is dialed, if it is not what `look` found.
        """
        overlay = self._node.state.table(Overlay)[""]
        return wire.Peer(
            public_key=keys.text(keys.public(self._node.state.node.private_key)),
            endpoint=endpoint or endpoint_text((self.require().address, overlay.wg_port)),
            allowed_ips=",".join(map(str, [overlay.cluster] if allowed_ips is None else allowed_ips)),
            persistent_keepalive_secs=KEEPALIVE,
        )
