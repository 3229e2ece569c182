"""Another key for this node, while its tunnels live.

Owns: the course from the next key in our record to its place on the device.  Must not know: how peers follow that
(`model.registry`), how a record is put (`own_record`).

The other nodes have the next key as a peer without allowed IPs before we use it.  Then the record says that it is ours,
and the device gets it: a packet of ours begins a handshake that they answer at once, and what they send by the old
session is read still.  What we send is lost for the some 50 ms only until they have moved our allowed IPs.

Nothing turns while the store is away, for then nobody would follow.
"""

import asyncio
import logging
import random
from contextlib import suppress

from overlayd import fault, keys
from overlayd.daemon.change.node import Node
from overlayd.daemon.change.resources import NODE as NODE_LOCK
from overlayd.daemon.cluster.own_record import OwnRecord
from overlayd.errors import OverlaydError
from overlayd.model import overlay
from overlayd.proto.store_answers import Unavailable

log = logging.getLogger(__name__)

KNOWN_AFTER = 60.0  # seconds until all nodes that are present have heard of a key, from the specification
RETRY, RETRY_SPREAD = 2.0, 8.0  # seconds


class Rotation:
    """stage: what it waits for, in words; empty when nothing is rotated."""

    def __init__(self, node: Node, own: OwnRecord) -> None:
        self.stage = ""
        self._node = node
        self._own = own
        self._after = KNOWN_AFTER
        self._wanted = asyncio.Event()

    async def begin(self, after: float | None) -> None:
        """Prepare a key, unless one waits.  after: seconds until it is used, once it is told; None for the usual."""
        self._after = KNOWN_AFTER if after is None else after
        private_key = keys.generate()
        await self._node.change(lambda draft: overlay.prepare_key(draft, private_key), exclusive=[NODE_LOCK])
        fault.point("cluster:key-prepared")
        log.info("the next key of this node is %s", keys.text(keys.public(self._node.state.node.next_key)))
        self._wanted.set()

    async def run(self) -> None:
        """Rotate when that is wanted, until it is cancelled; what an earlier start began is carried on."""
        while True:
            self._wanted.clear()
            if self._node.state.node.next_key:
                try:
                    await self._rotate()
                except OverlaydError as error:
                    self.stage = f"the next key is not told yet: {error}"
                    log.warning("rotation: %s", self.stage)
                    await asyncio.sleep(RETRY + RETRY_SPREAD * random.random())
            elif self._node.state.node.former_key:
                await self._node.change(overlay.forget_former_key, exclusive=[NODE_LOCK])
            else:
                self.stage = ""
                await self._wanted.wait()

    async def _wait(self) -> None:
        """Until the next key is told for long enough, which a person who asks again may change."""
        loop = asyncio.get_running_loop()
        told = loop.time()
        while loop.time() < told + self._after:
            self.stage = f"the next key is told, and used within {told + self._after - loop.time():.0f} s"
            self._wanted.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(told + self._after):
                    await self._wanted.wait()

    async def _rotate(self) -> None:
        if not self._own.is_turned:
            await self._own.publish()
            fault.point("cluster:key-told")
            await self._wait()
            try:
                await self._own.publish(turned=True)
            except Unavailable:
                await self._own.read()
                if not self._own.is_turned:
                    raise
            fault.point("cluster:key-turned")
        await self._node.change(overlay.turn_key, everything=True)
        log.info("this node has the key %s now", keys.text(keys.public(self._node.state.node.private_key)))
