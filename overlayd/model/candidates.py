"""Candidates: where a node may be reached, and which of its peers' addresses is of what kind.

Owns: the types and priorities of RFC 8445, and what an endpoint says about the connection.  Must not know: where
addresses come from, servers, or when what is tried (`traversal`).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple, TypeVar

from overlayd.model.endpoints import nobodys
from overlayd.model.objects import Address
from overlayd.model.rows import numeric_endpoint

_Item = TypeVar("_Item")
Endpoint = tuple[Address, int]
ConnectionType = Literal["direct", "hole-punched", "relayed"]

HOST, SERVER_REFLEXIVE, PEER_REFLEXIVE, RELAY = "host", "server-reflexive", "peer-reflexive", "relay"

# RFC 8445, section 5.1.2.2
PREFERENCES = {HOST: 126, PEER_REFLEXIVE: 110, SERVER_REFLEXIVE: 100, RELAY: 0}
COMPONENT = 1  # WireGuard has one UDP port for everything

# Our own constants: addresses that a node tells of.  A host may have hundreds, and those by which it is reached from
# behind its NAT are the last of them.
MOST_TOLD = 16  # in all, as many as a record of a cluster may have
MOST_MAPPED = 3  # of what STUN servers say, of an IP version


class Candidate(NamedTuple):
    """kind: "host", "server-reflexive", "relay", or "peer-reflexive", which is never told to others."""

    kind: str
    address: Address
    port: int
    priority: int


def priority(type_preference: int, local_preference: int, component: int = COMPONENT) -> int:
    """RFC 8445, section 5.1.2.1.  type_preference: 0 to 126; local_preference: 0 to 65535; component: 1 to 256."""
    return (type_preference << 24) + (local_preference << 8) + (256 - component)


def host_candidates(addresses: Iterable[Address], port: int) -> list[Candidate]:
    """One for each of this host's addresses, which come in order of preference."""
    return _candidates(HOST, ((address, port) for address in addresses))


def node_candidates(
    addresses: Iterable[Address],
    port: int,
    mapped: Iterable[Endpoint],
    relayed: Iterable[Endpoint],
    opened: Iterable[Endpoint] = (),
) -> list[Candidate]:
    """All of a node's candidates.

    opened: where a router sends to the port because it was asked to.  mapped: where STUN servers see the port, in order
    of preference; one of each address counts, that which most of them see first, and none that is the host's own
    (RFC 8445, section 5.1.3): of a NAT that gives each server another port none of them is any use to a peer but for
    its address, and of several uplinks, or when a server lies, one is right.  relayed: what TURN servers gave.
    """
    addresses = list(addresses)
    own = {(address, port) for address in addresses}
    outside = dict.fromkeys((*opened, *_seen(mapped)))
    reflexive = _candidates(SERVER_REFLEXIVE, (endpoint for endpoint in outside if endpoint not in own))
    others = reflexive + _candidates(RELAY, relayed)
    hosts = fewer(addresses, MOST_TOLD - len(others), lambda address: address.version)
    return host_candidates(hosts, port) + others


def peer_candidates(given: Iterable[tuple[str, str, int]]) -> list[Candidate]:
    """A peer's candidates as a row holds them, the best first.  What is not ip:port of a host, or of no known type, is
    left out: it may come from a newer node.
    """
    known = []
    for kind, address, rank in given:
        endpoint = numeric_endpoint(address)
        if endpoint is not None and kind in PREFERENCES and 0 < endpoint[1] < 65536 and not nobodys(endpoint[0]):
            known.append(Candidate(kind, *endpoint, rank))
    return sorted(known, key=lambda candidate: -candidate.priority)


def fewer(items: Sequence[_Item], most: int, version: Callable[[_Item], int]) -> list[_Item]:
    """The first ones, in their order, and as many of one IP version as of the other while there are any."""
    before: Counter[int] = Counter()
    ranks = []
    for place, item in enumerate(items):
        ranks.append((before[version(item)], place))
        before[version(item)] += 1
    return [items[place] for place in sorted(place for _, place in sorted(ranks)[: max(most, 0)])]


def is_symmetric(mapped: Iterable[Endpoint]) -> bool:
    """Whether a NAT gives each destination another mapping of one port (endpoint-dependent, RFC 4787, section 4.1).

    mapped: what several servers saw of it.
    """
    seen = set(mapped)
    return len(seen) != len({address.version for address, _ in seen})


def connection_type(at: Endpoint, configured: Endpoint | None, candidates: Iterable[Candidate]) -> ConnectionType:
    """How a peer is reached whose packets come from `at`, which is no relay of our own.

    configured: what add_peer gave.  Nothing tells whether a peer without candidates is behind a NAT: it may have moved.
    """
    kinds = {(candidate.address, candidate.port): candidate.kind for candidate in candidates}
    if kinds.get(at) == RELAY:
        return "relayed"
    return "direct" if at == configured or not kinds or kinds.get(at) == HOST else "hole-punched"


def _seen(mapped: Iterable[Endpoint]) -> list[Endpoint]:
    first: dict[Address, Endpoint] = {}
    count: Counter[Address] = Counter()
    for endpoint in mapped:
        first.setdefault(endpoint[0], endpoint)
        count[endpoint[0]] += 1
    likeliest = sorted(first, key=lambda address: -count[address])
    of_each = ([each for each in likeliest if each.version == version][:MOST_MAPPED] for version in (4, 6))
    return [first[address] for some in of_each for address in some]


def _candidates(kind: str, endpoints: Iterable[Endpoint]) -> list[Candidate]:
    return [
        Candidate(kind, address, port, priority(PREFERENCES[kind], 65535 - place))
        for place, (address, port) in enumerate(endpoints)
    ]
