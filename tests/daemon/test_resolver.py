"""Following names: what is asked for, when it stops, and that nothing is left of a peer that went.

On a node without devices, so that nothing but the facts change; what a device hears is tested end to end.  The names
need no server: `localhost` stands in /etc/hosts, and one with an empty label is refused before anybody is asked.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from overlayd.daemon.apply import Kernel
from overlayd.daemon.health import Health
from overlayd.daemon.journal import Journal
from overlayd.daemon.lookup import Lookups
from overlayd.daemon.node import Node
from overlayd.daemon.resolver import Resolver
from overlayd.linux.nft import Nft
from overlayd.model import overlay, peers
from overlayd.model.layout import Facts
from overlayd.model.objects import GLOBAL
from overlayd.model.rows import Node as Identity
from overlayd.model.state import Draft, State

KEY, OTHER = b"a" * 32, b"b" * 32


class Following:
    """A node, its resolver, and how to change its peers."""

    def __init__(self, directory: Path) -> None:
        state = State([Identity(private_key=b"k" * 32)])
        draft = Draft(state)
        overlay.setup_global(
            draft,
            deployment="d",
            instance_id="1",
            cluster=ip_network("10.200.0.0/16"),
            slice=None,
            wg_port=51820,
            nat=None,
        )
        state.apply(draft.rows)
        self.journal = Journal.open(directory)
        self.node = Node(state, self.journal, Kernel(None, Nft()), Facts(mtu=1420, devices=False))
        self.tasks: list[asyncio.Task[None]] = []
        self.resolver = Resolver(self.node, Health(self.node), Lookups(), self.spawn, jitter=lambda: 0.0)

    def spawn(self, work):
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.append(task)
        return task

    def running(self) -> int:
        return sum(not task.done() for task in self.tasks)

    def resolved(self) -> dict[bytes, str]:
        return {
            bytes.fromhex(key.partition("/")[0]): f"{address}:{port}"
            for (key, _), (address, port) in self.node.facts.resolved.items()
        }

    async def add(self, key: bytes, endpoint: str, *networks: str) -> None:
        await self.node.change_together(
            lambda draft: peers.add_peer(
                draft,
                GLOBAL,
                key,
                own_key=bytes(32),
                endpoint=endpoint,
                keepalive=0,
                allowed_ips=tuple(map(ip_network, networks)),
                candidates=(),
            ),
            ["peers"],
        )

    async def remove(self, key: bytes) -> None:
        await self.node.change_together(lambda draft: peers.remove_peer(draft, GLOBAL, key), ["peers"])

    async def until(self, condition) -> None:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110  what is waited for has no event
                await asyncio.sleep(0.01)


@pytest.fixture
async def following(tmp_path: Path) -> AsyncIterator[Following]:
    made = Following(tmp_path)
    await made.add(OTHER, "localhost:1", "10.1.0.0/16")
    made.resolver.resume()
    made.node.observers.append(made.resolver.follow)
    yield made
    made.resolver.close()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*made.tasks, return_exceptions=True)
    assert made.running() == 0
    await made.node.close()
    await made.journal.close()


async def test_names_of_old_and_new_peers_are_followed(following: Following) -> None:
    await following.add(KEY, "localhost:7")
    await following.until(lambda: following.resolved().keys() == {KEY, OTHER})
    assert following.resolved()[KEY] in ("127.0.0.1:7", "::1:7")


async def test_a_number_is_not_asked_for(following: Following) -> None:
    before = following.running()
    await following.add(KEY, "192.0.2.1:7")
    await following.add(KEY, "[2001:db8::1]:7")
    await following.add(KEY, "")
    assert following.running() == before


async def test_a_peer_that_went_is_forgotten(following: Following) -> None:
    before = following.running()
    for endpoint in ("localhost:7", "a..b:7"):
        await following.add(KEY, endpoint)
        assert following.running() == before + 1
        await following.remove(KEY)
        await asyncio.sleep(0)
        assert following.running() == before
    await following.add(b"c" * 32, "localhost:9")
    await following.until(lambda: following.resolved().keys() == {OTHER, b"c" * 32})


async def test_another_endpoint_is_another_name(following: Following) -> None:
    before = following.running()
    await following.add(KEY, "a..b:7")
    await following.add(KEY, "localhost:8")
    await following.until(lambda: KEY in following.resolved())
    assert following.resolved()[KEY].endswith(":8")
    await following.add(KEY, "192.0.2.1:8")
    await asyncio.sleep(0)
    assert following.running() == before


async def test_a_change_of_something_else_asks_for_nothing_again(following: Following) -> None:
    await following.add(KEY, "localhost:7")
    started = len(following.tasks)
    await following.add(KEY, "localhost:7", "10.2.0.0/16")
    assert len(following.tasks) == started
