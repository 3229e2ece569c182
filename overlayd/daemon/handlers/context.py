"""What every handler works with, and the names of what it locks.

Owns: nothing of its own.  Must not know: any request.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from overlayd import wire
from overlayd.daemon.candidates import Candidates
from overlayd.daemon.doctor import Doctor
from overlayd.daemon.health import Health
from overlayd.daemon.nameserver import Nameserver
from overlayd.daemon.node import Node
from overlayd.daemon.status import StatusView
from overlayd.errors import RequestError
from overlayd.linux import egress
from overlayd.linux.wireguard import public_key
from overlayd.model.layout import endpoint_text
from overlayd.model.objects import Network
from overlayd.model.overlay import NOT_SET_UP
from overlayd.model.peers import text

# Seconds between the keepalives of those who reach us from elsewhere: they may sit behind a NAT, and most of these
# forget a silent UDP flow after 30 s.
KEEPALIVE = 25


class Daemon(NamedTuple):
    """The running daemon, as handlers see it.  ask_names: looks up the host names of peers that do not answer; stop:
    ends the daemon once the answers in flight are out.
    """

    node: Node
    status: StatusView
    health: Health
    candidates: Candidates
    doctor: Doctor
    nameserver: Nameserver
    boot_id: str
    ask_names: Callable[[], None]
    stop: Callable[[], None]


async def this_node(daemon: Daemon, allowed_ips: Sequence[Network] | None) -> wire.Peer:
    """This node as a peer of a WireGuard that runs elsewhere: at its physical address, the way to `allowed_ips` (None:
    to the cluster).  RequestError when it has no such address.
    """
    node = daemon.node
    overlay = node.state.overlay
    if overlay is None:
        raise RequestError(NOT_SET_UP)
    way_out = await node.run(egress.physical_egress)
    if way_out is None:
        raise RequestError(
            "this node has no default route through a physical interface, so there is no address to reach it at"
        )
    return wire.Peer(
        public_key=text(public_key(node.state.node.private_key)),
        endpoint=endpoint_text((way_out.address, overlay.wg_port)),
        allowed_ips=",".join(map(str, [overlay.cluster] if allowed_ips is None else allowed_ips)),
        persistent_keepalive_secs=KEEPALIVE,
    )
