"""The cluster that is kept in a store.

Owns: the ops of `overlayctl cluster`, refused where there is none.  Must not know: sockets and frames, or the store.

What does the work is imported by a daemon that was started with --etcd, and handed over in `Daemon.cluster`.
"""

from overlayd import wire
from overlayd.daemon.handlers.context import Daemon
from overlayd.errors import RequestError


async def ask(daemon: Daemon, request: wire.ClusterRequest) -> wire.Response:
    if daemon.cluster is None:
        raise RequestError("this daemon is in no cluster of a store: start overlayd with --etcd and --cluster")
    return await daemon.cluster.ask(request)
