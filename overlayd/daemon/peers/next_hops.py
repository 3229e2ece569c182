"""Whether the neighbours answer by which this host reaches peers, and the outside.

Owns: which of them are looked at, and how long one that is being asked may take.  Must not know: what is said of them
(`model.next_hops`), or who asks.
"""

import asyncio
from collections.abc import Collection
from itertools import chain
from typing import NamedTuple

from overlayd.daemon.change.node import Node
from overlayd.daemon.peers.health import Health
from overlayd.linux import neighbours
from overlayd.model.diversions import OUTSIDE
from overlayd.model.findings import Finding
from overlayd.model.health import UNANSWERED
from overlayd.model.next_hops import NextHop, Sent, next_hop_findings
from overlayd.model.objects import Address
from overlayd.model.peers import called

# Our own constants.
WAITING, ANSWERING = 64, 16  # so many peers that owe an answer are looked at, and that do answer
ASKED, AGAIN = 1.4, 0.1  # seconds: the kernel asks once a second, so twice; between two looks at it


class _Peer(NamedTuple):
    """A peer that was sent something.  waits: that has had no answer for long."""

    address: Address
    scope: str
    key: bytes
    waits: bool
    answers: bool


async def faulty_next_hops(node: Node, health: Health) -> list[Finding]:
    """What is wrong with the neighbours.  One that did not answer is asked again, for that may have been long ago, and
    waited for.
    """
    overlay = node.state.overlay
    if overlay is None:
        return []
    peers = await node.run(_some_peers, health)
    outside = OUTSIDE[overlay.cluster.version]
    addresses = {outside, *(peer.address for peer in peers)}
    for look in range(round(ASKED / AGAIN)):
        hops = await node.run(neighbours.next_hops, addresses)
        if not look and (silent := {hop for hop in chain(*hops.values()) if hop.entry == "silent"}):
            await node.run(neighbours.ask, silent)
            hops = await node.run(neighbours.next_hops, addresses)
        if all(hop.entry != "asked" for hop in chain(*hops.values())):
            break
        await asyncio.sleep(AGAIN)
    sent = []
    for peer in peers:
        name = f"peer {called(node.state, peer.scope, peer.key)}"
        sent += _sent(hops.get(peer.address, ()), name, waits=peer.waits, answers=peer.answers)
    return next_hop_findings(sent + _sent(hops.get(outside, ()), "the outside", waits=False, answers=False))


def _sent(hops: Collection[NextHop], to: str, *, waits: bool, answers: bool) -> list[Sent]:
    """What is sent by neighbours; one that has not answered by now counts as silent."""
    hops = [hop._replace(entry="silent") if hop.entry == "asked" else hop for hop in hops]
    others = any(hop.entry == "fine" for hop in hops)
    return [Sent(hop, to, waits, answers, others) for hop in hops]


def _some_peers(health: Health) -> list[_Peer]:
    """Choose those to look at; in a worker thread, for with 10,000 that takes milliseconds."""
    waiting: list[_Peer] = []
    answering: list[_Peer] = []
    for scope, key, activity in health.peers():
        if activity.endpoint is None:
            continue
        if waited := health.waited(scope, key):
            waiting.append(_Peer(activity.endpoint[0], scope, key, waited >= UNANSWERED, answers=False))
        elif len(answering) < ANSWERING and health.condition(scope, key) == "answers":
            answering.append(_Peer(activity.endpoint[0], scope, key, waits=False, answers=True))
        if len(waiting) == WAITING:
            break
    return waiting + answering
