"""A node with an overlay, its peers, and the tasks of whoever follows them."""

import asyncio
import contextlib
from collections.abc import Coroutine
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from overlayd import keys
from overlayd.daemon.change.apply import Kernel
from overlayd.daemon.change.journal import Journal
from overlayd.daemon.change.node import Node
from overlayd.linux.nft import Nft
from overlayd.model import overlay, peers
from overlayd.model.layout import Facts
from overlayd.model.objects import GLOBAL
from overlayd.model.rows import Node as Identity
from overlayd.model.state import Draft, State


def set_up_overlay(draft: Draft, port: int = 51820) -> None:
    """A global overlay without a slice."""
    cluster = ip_network("10.200.0.0/16")
    overlay.setup_global(draft, deployment="d", instance_id="1", cluster=cluster, slice=None, wg_port=port, nat=None)


class NodeWithPeers:
    """device: what stands for WireGuard's; None on a node without any."""

    def __init__(self, directory: Path, device: Any = None, port: int = 51820) -> None:
        state = State([Identity(private_key=keys.generate())])
        draft = Draft(state)
        set_up_overlay(draft, port)
        state.apply(draft.rows)
        self.journal = Journal.open(directory)
        self.node = Node(state, self.journal, Kernel(device, Nft()), Facts(mtu=1420, devices=device is not None))
        self.tasks: list[asyncio.Task[None]] = []

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.append(task)
        return task

    def running(self) -> int:
        return sum(not task.done() for task in self.tasks)

    async def add_peer(self, key: bytes, endpoint: str, **more: Any) -> None:
        given = {"own_key": bytes(32), "keepalive": 0, "allowed_ips": (), "candidates": (), **more}
        await self.node.change_together(
            lambda draft: peers.add_peer(draft, GLOBAL, key, endpoint=endpoint, **given), ["peers"]
        )

    async def remove_peer(self, key: bytes) -> None:
        await self.node.change_together(lambda draft: peers.remove_peer(draft, GLOBAL, key), ["peers"])

    async def close(self) -> None:
        """After whoever follows the peers: its tasks must be at their end."""
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self.tasks, return_exceptions=True)
        assert self.running() == 0
        await self.node.close()
        await self.journal.close()
