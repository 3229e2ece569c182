"""Blocks: the part of the cluster CIDR that a node has for itself.

Owns: which block a node tries to claim, what becomes of a claim, and how a block is carved into the node's slice and
its services' subnets.  Must not know: the store, records of nodes, time.

The register of blocks holds an entry for each that was ever claimed.  A node begins at the block that its name gives,
so that nodes that join at once seldom meet, and goes on from there; one that nobody ever had comes before one that was
freed, and of those the one that was freed longest ago comes first.
"""

from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_network
from typing import Literal, NamedTuple

from overlayd.errors import RequestError
from overlayd.model.objects import Network
from overlayd.model.subnets import fnv1a, subnet_of

# From the specification (cluster.md).
MOST_TRIES = 32  # of one look at the register
DEFAULT_PREFIX = {4: 24, 6: 64}  # by IP version

# Our own constants: a block has room for a slice and for one service at least, and there are not more than can be
# counted.
NARROWEST_BITS = 4
MOST_BLOCKS_BITS = 24

Standing = Literal["ours", "absent", "freed", "others"]

UNREADABLE = "?"  # the instance that holds a block whose entry makes no sense


class Holding(NamedTuple):
    """An entry of the register.  node, instance: who has the block, both empty when it was freed; freed: at which
    revision of the store.  modified: when the entry was last put.
    """

    node: str
    instance: str
    freed: int
    modified: int


Register = Mapping[Network, Holding]


class Carved(NamedTuple):
    """What a block is used for.  services: none when all of it is the slice."""

    slice: Network
    services: Network | None


class Exhausted(RequestError):
    """Every block has a holder."""

    def __init__(self, used: int) -> None:
        super().__init__(
            f"cluster address space exhausted: {used} blocks, {used} used; remove nodes that are gone "
            "(overlayctl cluster remove-node)"
        )


def require_sensible(cluster: Network, prefix: int, service_share: int) -> None:
    """RequestError when a cluster cannot be divided so."""
    if cluster.prefixlen >= cluster.max_prefixlen - NARROWEST_BITS:
        raise RequestError(
            f"{cluster} is too small for a cluster: two nodes need a /{cluster.max_prefixlen - NARROWEST_BITS - 1}"
        )
    if not cluster.prefixlen < prefix <= cluster.max_prefixlen - NARROWEST_BITS:
        raise RequestError(
            f"block_prefix {prefix} does not divide {cluster}: choose one from {cluster.prefixlen + 1} to "
            f"{cluster.max_prefixlen - NARROWEST_BITS}"
        )
    if prefix - cluster.prefixlen > MOST_BLOCKS_BITS:
        raise RequestError(
            f"block_prefix {prefix} makes more than {1 << MOST_BLOCKS_BITS} blocks of {cluster}: choose a smaller one"
        )
    if service_share not in (0, 1):
        raise RequestError(f"service_share {service_share}: 1 (half a block is for services) or 0 (nothing is)")


def is_block(network: Network, cluster: Network, prefix: int) -> bool:
    """Whether a network is a block of the cluster."""
    if network.version != cluster.version or network.prefixlen != prefix:
        return False
    return network.subnet_of(cluster)  # type: ignore[arg-type]


def count(cluster: Network, prefix: int) -> int:
    """How many blocks there are."""
    return 1 << prefix - cluster.prefixlen


def carve(block: Network, service_share: int) -> Carved:
    """The lower half of a block is the slice, the upper one is for services; without a share for these it is all the
    slice.
    """
    if not service_share:
        return Carved(block, None)
    lower, upper = block.subnets()
    return Carved(lower, upper)


def service_ranges(blocks: Sequence[Network], service_share: int) -> list[Network]:
    """Where a node's services get their subnets: a half of its first block, and all of the others, where addresses of
    the node may be as well.  Nowhere without a share.
    """
    first, *further = blocks
    half = carve(first, service_share).services
    return [half, *further] if half is not None else []


def standing(register: Register, block: Network, instance: str) -> Standing:
    """Whose a block is that we take for ours.  Nobody's claim leaves an entry that makes no sense: whatever stood
    there is lost.
    """
    held = register.get(block)
    if held is None or held.instance == UNREADABLE:
        return "absent"
    if not held.instance:
        return "freed"
    return "ours" if held.instance == instance else "others"


def held_by(register: Register, instance: str) -> list[Network]:
    """The blocks of an instance, in the order in which it claimed them."""
    mine = [(held.modified, int(block.network_address), block) for block, held in register.items()]
    return [block for _, _, block in sorted(mine, key=lambda it: it[:2]) if register[block].instance == instance]


def candidates(name: str, cluster: Network, prefix: int, register: Register) -> Iterator[Network]:
    """The blocks that a node of this name may claim, the best first."""
    total = count(cluster, prefix)
    first = fnv1a(name.encode()) % total
    for step in range(total):
        block = subnet_of(cluster, (first + step) % total, prefix)
        if block not in register:
            yield block
    freed = [(held.freed or held.modified, block) for block, held in register.items() if not held.instance]
    for _, block in sorted(freed, key=lambda it: (it[0], int(it[1].network_address))):
        if is_block(block, cluster, prefix):
            yield block


def choose(name: str, cluster: Network, prefix: int, register: Register) -> Network:
    """The block that a node of this name claims next.  Exhausted: there is none."""
    block = next(candidates(name, cluster, prefix, register), None)
    if block is None:
        raise Exhausted(count(cluster, prefix))
    return block


def block_key(block: Network) -> str:
    """`10.200.4.0-24`: a network in a key, where a slash would be a folder."""
    return f"{block.network_address}-{block.prefixlen}"


def block_of(key: str) -> Network | None:
    """The network that `block_key` wrote; None when it is none."""
    address, _, length = key.rpartition("-")
    try:
        return ip_network(f"{address}/{length}")
    except ValueError:
        return None


def node_number(name: str) -> int:
    """The number of a node, 32 bits: of its name, so that it is the same wherever it is asked for."""
    return fnv1a(name.encode()) & 0xFFFFFFFF
