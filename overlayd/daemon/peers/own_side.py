"""What this node says of its side of a way, when another one asks.

Owns: what is looked at for that: the container, its bridge, our device as a link, and what is known of the peer.  Must
not know: who may ask, or how (`inquiries`); what a hop needs (`model.path`).  Changes nothing, and costs the same
whatever else is on the node.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from overlayd import keys
from overlayd.daemon.change.node import Node
from overlayd.daemon.peers.health import Health
from overlayd.linux import sysctl, way
from overlayd.model import own_side
from overlayd.model.ends import Hop, Known
from overlayd.model.findings import Finding
from overlayd.model.own_side import Asked
from overlayd.model.rows import Attachment
from overlayd.model.seen import Device, DevicePeer, Seen

READING = 0.6  # seconds that one is waited for; who asks waits a little longer
_FORWARDING = {4: "ipv4/ip_forward", 6: "ipv6/conf/all/forwarding"}


class OwnSide:
    """findings: what is known to be in the overlay's way on this host."""

    def __init__(self, node: Node, health: Health, findings: Callable[[], Iterable[Finding]]) -> None:
        self._node = node
        self._health = health
        self._findings = findings

    async def hops(self, asked: Asked, *, direct: bool) -> list[Hop]:
        """Our side, up to the first broken hop; empty without an overlay.  direct: the question came through the tunnel
        that it asks about, so that this one works.
        """
        node = self._node
        errors = (each for each in self._findings() if each.severity == "error")
        findings = tuple((each.code, each.object, each.problem, each.remedy) for each in errors)
        known = own_side.rows_of(node.state, asked, node.facts.mtu, findings)
        if known is None:
            return []
        if not all(self._health.is_fresh(asked.scope, keys.parse(peer.key)) for peer in known.peers):
            with suppress(TimeoutError):  # what was read last may be from before the handshake
                async with asyncio.timeout(READING):
                    await self._health.read_soon()
        device = self._device(known, asked, direct=direct)
        seen = await node.run(_look, known, asked, own_side.attached(node.state, asked.far), device)
        return own_side.explain(asked, known, seen, time.time())

    def _device(self, known: Known, asked: Asked, *, direct: bool) -> Device:
        """Our device with the peers that matter, as it was read last; it is believed to have what it was given, for
        `upkeep` finds out who changes that.
        """
        peers = {}
        for peer in known.peers:
            key = keys.parse(peer.key)
            activity = self._health.activity(asked.scope, key)
            last = activity.last_handshake if activity is not None else 0
            if direct and key == asked.asker:
                last = int(time.time())
            endpoint = activity.endpoint if activity is not None else None
            peers[peer.key] = DevicePeer(endpoint, last, peer.allowed_ips)
        overlay = self._node.state.overlay
        _, own = known.devices.get(asked.scope, ("", ""))
        return Device(own, overlay.wg_port if overlay is not None else 0, peers)


def _look(known: Known, asked: Asked, row: Attachment | None, device: Device) -> Seen:
    names = {name for name, _ in known.devices.values()}
    names |= {each.bridge for each in known.services.values()} | {each.link for each in known.members if each.link}
    namespace = row.namespace if row is not None else None
    return Seen(
        host=way.host(names, asked.near),
        source=way.inside(namespace, asked.near) if namespace is not None else None,
        device=device,
        forwards=sysctl.read_if_there(_FORWARDING[known.cluster.version]) != "0",
    )
