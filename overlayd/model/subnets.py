"""Which subnet of the cluster a service gets on this node, and which of its addresses can be used.

Owns: the slot rule, which the orchestrator computes too.  Must not know: who holds which subnet or address.
"""

from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network

from overlayd.errors import RequestError
from overlayd.model.objects import Address, Network

# From the contract: the prefix length of a service's subnet by IP version, and the least number of slots: a smaller
# cluster is cut into narrower ones.  Nodes that run another daemon choose by the same numbers.
SUBNET_PREFIX = {4: 26, 6: 120}
FEWEST_SLOTS_BITS = 4  # 16 slots

# Our own constant: a subnet of fewer than four addresses has no room for a gateway and a container.
NARROWEST_BITS = 2

# Our own constant: the most addresses of a network that are handed out; a network can hold more than anybody counts.
MOST_ADDRESSES = 65_536

# FNV-1a, 64 bits (RFC 9923).
_FNV_BASIS = 0xCBF29CE484222325
_FNV_PRIME = 0x100000001B3

_SEPARATOR = b"\x1f"  # between service and node, so that ("web1", "1") and ("web", "11") differ


def subnet_prefix(cluster: Network) -> int:
    """The prefix length of the slots that a cluster is cut into.  RequestError when not even one fits into it."""
    narrowest = cluster.max_prefixlen - NARROWEST_BITS
    if cluster.prefixlen > narrowest:
        raise RequestError(
            f"cluster {cluster} has no room for the subnet of a service: set the overlay up with a larger cluster CIDR"
        )
    return min(max(SUBNET_PREFIX[cluster.version], cluster.prefixlen + FEWEST_SLOTS_BITS), narrowest)


def service_prefix(within: Network) -> int:
    """The prefix length of the slots that a node's own part of a cluster is cut into; a narrower part is one slot."""
    return max(SUBNET_PREFIX[within.version], within.prefixlen)


def slot(cluster: Network, service: str, node: str) -> int:
    """The slot where the search for a service's subnet starts; node is the decimal node id.

    Raises RequestError when the cluster has no slot at all.
    """
    return spread(service, node) % (1 << subnet_prefix(cluster) - cluster.prefixlen)


def spread(service: str, node: str) -> int:
    """The number, 64 bits, that tells apart where services on nodes begin to search."""
    return fnv1a(service.encode() + _SEPARATOR + node.encode())


def fnv1a(data: bytes) -> int:
    """The 64-bit FNV-1a hash."""
    value = _FNV_BASIS
    for byte in data:
        value = (value ^ byte) * _FNV_PRIME & 0xFFFFFFFFFFFFFFFF
    return value


def choose(cluster: Network, service: str, node_id: int, overlap: Callable[[Network], Network | None]) -> Network:
    """The subnet of a service on a node: the first usable one from its slot on, around the end of the cluster.

    overlap(candidate) returns a network that overlaps the candidate and makes it unusable, or None.  The search goes on
    behind the end of that network, so a wide one costs one call.  Raises RequestError when no slot is usable.
    """
    prefix = subnet_prefix(cluster)
    first = slot(cluster, service, str(node_id))
    found = first_free(cluster, prefix, first, overlap)
    if found is not None:
        return found
    raise RequestError(
        f"no free /{prefix} subnet for service {service!r} in cluster {cluster}: "
        "tear a service down, or set the overlay up with a larger cluster CIDR"
    )


def first_free(
    around: Network, prefix: int, first: int, overlap: Callable[[Network], Network | None]
) -> Network | None:
    """The first usable one of the subnets that a network is cut into, from number `first` on and around its end; None
    when there is none.  overlap: as of `choose`.
    """
    count = 1 << prefix - around.prefixlen
    subnet_bits = around.max_prefixlen - prefix
    base = int(around.network_address)
    seen = 0  # subnets from the first one on that are known to be unusable
    while seen < count:
        index = (first + seen) % count
        candidate = subnet_of(around, index, prefix)
        blocker = overlap(candidate)
        if blocker is None:
            return candidate
        last = min((int(blocker.broadcast_address) - base) >> subnet_bits, count - 1)
        seen += max(last - index, 0) + 1
    return None


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


def node_in(slice: Network) -> Address:
    """The address of the node whose slice this is, or that alone."""
    return slice.network_address if slice.prefixlen == slice.max_prefixlen else first_usable(slice)


def first_usable(network: Network) -> Address:
    """The lowest address of the network that a host can have."""
    return network[0] if network.prefixlen >= network.max_prefixlen - 1 else network.network_address + 1


def subnet_of(around: Network, index: int, prefix: int) -> Network:
    """Subnet number `index` of a network, from 0 on."""
    address = int(around.network_address) + (index << around.max_prefixlen - prefix)
    if isinstance(around, IPv4Network):
        return IPv4Network((address, prefix))
    return IPv6Network((address, prefix))
