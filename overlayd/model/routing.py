"""What the host leads into the overlay.

Owns: which allowed IPs get a route, and where an address's packets go by that.  Must not know: who may announce what
(`peers`, `conflicts`), or the host's own routes.
"""

from overlayd import keys
from overlayd._fast import addresses
from overlayd._fast.addresses import is_inside
from overlayd.model.objects import GLOBAL, Address, Network
from overlayd.model.rows import Overlay
from overlayd.model.state import State


def has_route(scope: str, allowed: Network, cluster: Network) -> bool:
    """Whether an allowed IP gets a route of its own through the device of its scope.

    On the global device those of the cluster need none, for all of that is on-link there.  One that holds the whole
    cluster, or everything, gets none anywhere: it would take the traffic of the global overlay, or the host's, along.
    """
    if allowed.prefixlen == 0:
        return False
    if allowed.version != cluster.version:
        return True
    if allowed.prefixlen > cluster.prefixlen:
        return scope != GLOBAL or not is_inside(allowed, cluster)
    return not is_inside(cluster, allowed)


def routed_into_overlay(state: State, address: Address) -> str:
    """What of the overlay the host sends an address's packets to, for a person; empty when they leave as they are."""
    around = state.get(Overlay)
    if around is None:
        return ""
    if address in around.cluster:
        return f"the cluster CIDR {around.cluster}"
    for scope in state.scopes():
        for packed, length, key in state.allowed_ips(scope).covering(address.packed, address.max_prefixlen):
            network = addresses.of_bytes(packed, length)
            if has_route(scope, network, around.cluster):
                return f"the allowed IP {network} of peer {keys.text(key)}"
    return ""
