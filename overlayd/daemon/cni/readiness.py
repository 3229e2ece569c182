"""Whether an ADD can succeed now, for STATUS and for what offers the network to runtimes.

Owns: what an ADD needs, and the words when it is missing.  Must not know: who asks.
"""

from overlayd.daemon.change.kernel_layout import present
from overlayd.daemon.handlers.context import Daemon
from overlayd.errors import RequestError
from overlayd.model import drift
from overlayd.model.layout import layout
from overlayd.model.plan import plan
from overlayd.model.rows import Overlay
from overlayd.proto import cni
from overlayd.proto.cni import CniError


def missing(daemon: Daemon) -> str:
    """Why no container can be attached now, empty when some can.  It does not matter whether a store or an API server
    can be reached.
    """
    overlay = daemon.node.state.overlay
    if overlay is None:
        return "the global overlay is not set up"
    if daemon.cluster is not None:
        try:
            daemon.cluster.require_attachable()
        except RequestError as error:
            return str(error)
    return ""


async def require(daemon: Daemon, service: str) -> None:
    """CniError 50: an ADD to that service would fail; 51: the container could not reach all it should."""
    if reason := missing(daemon):
        raise CniError(cni.NOT_AVAILABLE, f"no container can be attached: {reason}", "overlayctl status says more")
    node = daemon.node
    state = node.state
    pools = state.pools(service)
    if pools and all(pool.held >= pool.size for pool in pools):
        held = sum(pool.held for pool in pools)
        raise CniError(
            cni.NOT_AVAILABLE,
            f"service {service} has no address left: all {held} of {', '.join(str(pool.network) for pool in pools)} "
            "are held",
            "remove containers, or give the service a larger subnet (overlayctl ip)",
        )
    if not node.facts.devices:
        raise CniError(
            cni.LIMITED, "there is no WireGuard on this node: containers reach no other node", "overlayctl doctor"
        )
    if not await node.run(node.kernel.nft.intact):
        raise CniError(
            cni.LIMITED, "the packet filter is not overlayd's own", "overlayd puts it right; else overlayctl doctor"
        )
    want = layout(state, node.facts, {(Overlay.table, "")})
    steps = plan(await node.run(present, node.kernel, want), want)
    for object, problem in drift.describe(steps):
        raise CniError(cni.LIMITED, f"{object} {problem}", "overlayd puts it right; else overlayctl doctor says more")
