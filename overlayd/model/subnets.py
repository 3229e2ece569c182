"""Which subnet of the cluster a service gets on this node, and which of its addresses can be used.

Owns: the slot rule, which the orchestrator computes too.  Must not know: who holds which subnet or address.
"""

from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network

from overlayd.errors import RequestError
from overlayd.model.objects import Address, Network

SUBNET_PREFIX = {4: 28, 6: 120}  # of a service's subnet, by IP version

# Our own constant: the most addresses of a network that are handed out; a network can hold more than anybody counts.
MOST_ADDRESSES = 65_536

# FNV-1a, 64 bits (RFC 9923).
_FNV_BASIS = 0xCBF29CE484222325
_FNV_PRIME = 0x100000001B3

_SEPARATOR = b"\x1f"  # between service and node, so that ("web1", "1") and ("web", "11") differ


def slot(cluster: Network, service: str, node: str) -> int:
    """The slot where the search for a service's subnet starts; node is the decimal node id.

    Raises RequestError when the cluster has no slot at all.
    """
    value = _FNV_BASIS
    for byte in service.encode() + _SEPARATOR + node.encode():
        value = (value ^ byte) * _FNV_PRIME & 0xFFFFFFFFFFFFFFFF
    return value % _slots(cluster)


def choose(cluster: Network, service: str, node_id: int, overlap: Callable[[Network], Network | None]) -> Network:
    """The subnet of a service on a node: the first usable one from its slot on, around the end of the cluster.

    overlap(candidate) returns a network that overlaps the candidate and makes it unusable, or None.  The search goes on
    behind the end of that network, so a wide one costs one call.  Raises RequestError when no slot is usable.
    """
    count = _slots(cluster)
    subnet_bits = cluster.max_prefixlen - SUBNET_PREFIX[cluster.version]
    base = int(cluster.network_address)
    first = slot(cluster, service, str(node_id))
    seen = 0  # slots from the first one on that are known to be unusable
    while seen < count:
        index = (first + seen) % count
        candidate = _subnet(cluster, base + (index << subnet_bits))
        blocker = overlap(candidate)
        if blocker is None:
            return candidate
        last = min((int(blocker.broadcast_address) - base) >> subnet_bits, count - 1)
        seen += max(last - index, 0) + 1
    raise RequestError(
        f"no free /{SUBNET_PREFIX[cluster.version]} subnet for service {service!r} in cluster {cluster}: "
        "tear a service down, or set the overlay up with a larger cluster CIDR"
    )


def usable_window(network: Network) -> tuple[int, int]:
    """The first and the last offset into the network that a host can have, within its first 65,536 addresses.

    The network address (IPv6: the subnet-router anycast address, RFC 4291 section 2.6.1) and the IPv4 broadcast address
    are no host's, except that every address is where there are only two (RFC 3021, RFC 6164) or one.
    """
    last = network.num_addresses - 1
    if last <= 1:
        return 0, last
    if network.version == 4:
        last -= 1
    return 1, min(last, MOST_ADDRESSES - 1)


def first_usable(network: Network) -> Address:
    """The lowest address of the network that a host can have."""
    return network[usable_window(network)[0]]


def _slots(cluster: Network) -> int:
    bits = SUBNET_PREFIX[cluster.version] - cluster.prefixlen
    if bits < 0:
        raise RequestError(
            f"cluster {cluster} has no room for a /{SUBNET_PREFIX[cluster.version]} subnet: "
            "set the overlay up with a larger cluster CIDR"
        )
    return 1 << bits


def _subnet(cluster: Network, address: int) -> Network:
    if isinstance(cluster, IPv4Network):
        return IPv4Network((address, SUBNET_PREFIX[4]))
    return IPv6Network((address, SUBNET_PREFIX[6]))
