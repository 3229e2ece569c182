"""What flows, as rates between two looks.

Owns: which rates there are, their tables, and their JSON.  Must not know: how often it is looked, or where the numbers
come from.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from overlayd import wire
from overlayd.cli.columns import Column, Paper, Row, table
from overlayd.cli.lists import state
from overlayd.cli.tables import key, line_json, size


class Look(NamedTuple):
    """peers: as listed.  services: bytes to and from the containers of each service, by its name.  at: seconds."""

    peers: Sequence[wire.ListedPeer]
    services: Mapping[str, tuple[int, int]]
    at: float


class PeerRate(NamedTuple):
    """service: empty of the node's own device.  Bytes a second."""

    name: str
    public_key: str
    service: str
    state: str
    received: float
    sent: float


class ServiceRate(NamedTuple):
    """Bytes a second, to and from its containers."""

    service: str
    to_containers: float
    from_containers: float


class Rates(NamedTuple):
    """The busiest first.  received, sent: by all peers, also those that a filter leaves out."""

    received: float
    sent: float
    number: int
    peers: list[PeerRate]
    services: list[ServiceRate]


def rates(before: Look, now: Look, filters: Sequence[str]) -> Rates:
    """filters: texts that a name has to have, in any case.  What counted backwards started over, and shows nothing."""
    seconds = max(now.at - before.at, 0.001)
    old = {(each.service, each.public_key): each for each in before.peers}

    def rate(later: int, earlier: int) -> float:
        return max(0, later - earlier) / seconds

    peers = []
    for each in now.peers:
        last = old.get((each.service, each.public_key), each)
        received, sent = rate(each.rx_bytes, last.rx_bytes), rate(each.tx_bytes, last.tx_bytes)
        name = each.name or key(each.public_key, wide=False)
        peers.append(PeerRate(name, each.public_key, each.service or "", state(each), received, sent))
    services = []
    for name, (into, out) in now.services.items():
        first = before.services.get(name, (into, out))
        services.append(ServiceRate(name, rate(into, first[0]), rate(out, first[1])))
    wanted = [each.lower() for each in filters]

    def shown(name: str) -> bool:
        return all(text in name.lower() for text in wanted)

    return Rates(
        sum(each.received for each in peers),
        sum(each.sent for each in peers),
        len(peers),
        [each for each in sorted(peers, key=lambda each: (-each.received - each.sent, each.name)) if shown(each.name)],
        [
            each
            for each in sorted(services, key=lambda each: (-each.to_containers - each.from_containers, each.service))
            if shown(each.service)
        ],
    )


def text(rates: Rates, paper: Paper) -> str:
    """A line for all of them, and a table each of peers and services."""

    def rate(number: float) -> str:
        return f"{size(number)}/s"

    peers = [
        Row(
            (each.name, each.state, rate(each.received), rate(each.sent)),
            "bad" if each.state in ("silent", "unreachable") else "",
        )
        for each in rates.peers
    ]
    services = [(each.service, rate(each.to_containers), rate(each.from_containers)) for each in rates.services]
    return "\n".join(
        (
            f"{rates.number} peers: {rate(rates.received)} received, {rate(rates.sent)} sent",
            "",
            table((Column("PEER", 12), "STATE", "RECEIVED", "SENT"), peers, paper),
            "",
            table((Column("SERVICE", 12), "TO CONTAINERS", "FROM CONTAINERS"), services, paper),
        )
    )


def as_json(rates: Rates) -> str:
    """One object on one line; rates in bytes a second."""
    return line_json(
        {
            "received": rates.received,
            "sent": rates.sent,
            "peers": [each._asdict() for each in rates.peers],
            "services": [each._asdict() for each in rates.services],
        }
    )
