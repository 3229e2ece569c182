"""Following names: what is asked for, when it stops, and that nothing is left of a peer that went.

On a node without devices, so that nothing but the facts change; what a device hears is tested end to end.  The names
need no server: `localhost` stands in /etc/hosts, and one with an empty label is refused before anybody is asked.
"""

import asyncio
from collections.abc import AsyncIterator
from ipaddress import ip_network
from pathlib import Path

import pytest
from lab.patience import until_async as until
from node_with_peers import NodeWithPeers

from overlayd.daemon.peers.health import Health
from overlayd.daemon.peers.hostnames import Resolver
from overlayd.daemon.peers.lookup import Lookups

KEY, OTHER = b"a" * 32, b"b" * 32


class Following(NodeWithPeers):
    """A node, its resolver, and how to change its peers."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.resolver = Resolver(self.node, Health(self.node), Lookups(), self.spawn, jitter=lambda: 0.0)

    def resolved(self) -> dict[bytes, str]:
        return {
            bytes.fromhex(key.partition("/")[0]): f"{address}:{port}"
            for (key, _), (address, port) in self.node.facts.resolved.items()
        }

    async def add(self, key: bytes, endpoint: str, *networks: str) -> None:
        await self.add_peer(key, endpoint, allowed_ips=tuple(map(ip_network, networks)))


@pytest.fixture
async def following(tmp_path: Path) -> AsyncIterator[Following]:
    made = Following(tmp_path)
    await made.add(OTHER, "localhost:1", "10.1.0.0/16")
    async with made.resolver.running():
        yield made
    await made.close()


async def test_names_of_old_and_new_peers_are_followed(following: Following) -> None:
    await following.add(KEY, "localhost:7")
    await until(lambda: following.resolved().keys() == {KEY, OTHER})
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
        await following.remove_peer(KEY)
        await asyncio.sleep(0)
        assert following.running() == before
    await following.add(b"c" * 32, "localhost:9")
    await until(lambda: following.resolved().keys() == {OTHER, b"c" * 32})


async def test_another_endpoint_is_another_name(following: Following) -> None:
    before = following.running()
    await following.add(KEY, "a..b:7")
    await following.add(KEY, "localhost:8")
    await until(lambda: KEY in following.resolved())
    assert following.resolved()[KEY].endswith(":8")
    await following.add(KEY, "192.0.2.1:8")
    await asyncio.sleep(0)
    assert following.running() == before


async def test_a_change_of_something_else_asks_for_nothing_again(following: Following) -> None:
    await following.add(KEY, "localhost:7")
    started = len(following.tasks)
    await following.add(KEY, "localhost:7", "10.2.0.0/16")
    assert len(following.tasks) == started
