"""Whether the neighbours answer by which this host reaches peers, and the outside.

Owns: which of them are looked at, and how long one that is being asked may take.  Must not know: what is said of them
(`model.next_hops`), or who asks.
"""

import asyncio
from typing import NamedTuple

from overlayd.daemon.change.node import Node
from overlayd.daemon.peers.health import Health
from overlayd.linux import neighbours
from overlayd.model.diversions import OUTSIDE
from overlayd.model.findings import Finding
from overlayd.model.health import UNANSWERED
from overlayd.model.next_hops import Sent, next_hop_findings
from overlayd.model.objects import Address
from overlayd.model.peers import called

# Our own constants.
WAITING, ANSWERING = 64, 16  # so many peers that owe an answer are looked at, and that do answer
ASKED, AGAIN = 4.0, 0.2  # seconds: the kernel asks three times, once a second; between two looks at it


class _Peer(NamedTuple):
    """A peer that was sent something.  waits: that has had no answer for long."""

    address: Address
    scope: str
    key: bytes
    waits: bool
    answers: bool


async def faulty_next_hops(node: Node, health: Health) -> list[Finding]:
    """What is wrong with them.  Who did not answer is asked anew, for that may have been long ago, and waited for."""
    overlay = node.state.overlay
    if overlay is None:
        return []
    peers = await node.run(_some_peers, health)
    outside = OUTSIDE[overlay.cluster.version]
    addresses = {outside, *(peer.address for peer in peers)}
    for look in range(round(ASKED / AGAIN)):
        hops = await node.run(neighbours.next_hops, addresses)
        if not look and (silent := {hop for hop in hops.values() if hop.entry == "silent"}):
            await node.run(neighbours.ask, silent)
            hops = await node.run(neighbours.next_hops, addresses)
        if all(hop.entry != "asked" for hop in hops.values()):
            break
        await asyncio.sleep(AGAIN)
    hops = {address: hop._replace(entry="silent") if hop.entry == "asked" else hop for address, hop in hops.items()}
    sent = [
        Sent(hops[peer.address], f"peer {called(node.state, peer.scope, peer.key)}", peer.waits, peer.answers)
        for peer in peers
        if peer.address in hops
    ]
    if outside in hops:
        sent.append(Sent(hops[outside], "the outside", waits=False, answers=False))
    return next_hop_findings(sent)


def _some_peers(health: Health) -> list[_Peer]:
    """In a worker thread: of 10,000 that takes milliseconds."""
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
