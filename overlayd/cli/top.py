"""What flows, as rates between two looks.

Owns: which rates there are, and their tables.  Must not know: how often it is looked, or where the numbers come from.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from overlayd import wire
from overlayd.cli.columns import Column, Paper, Row, table
from overlayd.cli.lists import state
from overlayd.cli.tables import key, size


class Look(NamedTuple):
    """peers: as listed.  services: bytes to and from the containers of each service, by its name.  at: seconds."""

    peers: Sequence[wire.ListedPeer]
    services: Mapping[str, tuple[int, int]]
    at: float


def text(before: Look, now: Look, filters: Sequence[str], paper: Paper) -> str:
    """The busiest first."""
    seconds = max(now.at - before.at, 0.001)
    old = {(each.service, each.public_key): each for each in before.peers}
    peers = []
    for each in now.peers:
        last = old.get((each.service, each.public_key), each)
        received, sent = max(0, each.rx_bytes - last.rx_bytes), max(0, each.tx_bytes - last.tx_bytes)
        peers.append((received + sent, each.name or key(each.public_key, wide=False), state(each), received, sent))
    services = []
    for name, (into, out) in now.services.items():
        first = before.services.get(name, (into, out))
        services.append((max(0, into - first[0]), max(0, out - first[1]), name))

    def rate(number: float) -> str:
        return f"{size(number / seconds)}/s"

    wanted = [each.lower() for each in filters]
    first_table = [
        Row((name, how, rate(received), rate(sent)), "bad" if how in ("silent", "unreachable") else "")
        for _, name, how, received, sent in sorted(peers, key=lambda each: (-each[0], each[1]))
        if all(text in name.lower() for text in wanted)
    ]
    second_table = [
        (name, rate(into), rate(out))
        for into, out, name in sorted(services, key=lambda each: (-each[0] - each[1], each[2]))
        if all(text in name.lower() for text in wanted)
    ]
    total_in, total_out = sum(each[3] for each in peers), sum(each[4] for each in peers)
    return "\n".join(
        (
            f"{len(peers)} peers: {rate(total_in)} received, {rate(total_out)} sent",
            "",
            table((Column("PEER", 12), "STATE", "RECEIVED", "SENT"), first_table, paper),
            "",
            table((Column("SERVICE", 12), "TO CONTAINERS", "FROM CONTAINERS"), second_table, paper),
        )
    )
