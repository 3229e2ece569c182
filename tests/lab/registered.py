"""Nodes of a cluster that are only records in its etcd, and followers of it that are only streams.

Owns: what stands in the store of such nodes, and how soon all followers have heard of a change.  Must not know: real
nodes.  `Registered` runs the program below in a node's namespace; what it says is JSON, a line each.
"""

import asyncio
import json
import os
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from lab.node import Node
from lab.processes import environment
from overlayd.daemon.cluster.connection import read_url
from overlayd.daemon.cluster.etcd import Etcd
from overlayd.daemon.cluster.following import Following
from overlayd.daemon.cluster.following import News as Message
from overlayd.daemon.cluster.refusal import Files
from overlayd.model.blocks import block_of
from overlayd.proto.store import Delta, Session

TOGETHER = 50  # keys of a transaction: etcd takes 128 operations
AT_ONCE = 20  # transactions, or streams that are opened


class Registered:
    """A context manager: the program, in a node's namespace.  urls: of the etcd; cluster: by its name."""

    def __init__(self, node: Node, urls: str, cluster: str) -> None:
        argv = node.command([sys.executable, "-m", "lab.registered", urls, f"/overlayd/{cluster}/"])
        root = Path(__file__).resolve().parents[2]
        path = {"PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")])}
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(node.prefix) | path
        )

    def __enter__(self) -> "Registered":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def ask(self, what: str, *numbers: float) -> dict[str, Any]:
        """`register COUNT`, `change COUNT FROM A_SECOND`, `follow COUNT RATE NODES [JSON]` or `reach REVISION`: its
        answer.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        print(what, *numbers, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the program of registered nodes ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Program:
    """rate: changes a second from which on followers read in windows."""

    def __init__(self, etcd: Callable[[str], Etcd]) -> None:
        self._client = etcd
        self._etcd = etcd("registered")
        self._sessions: list[Session] = []
        self._records: list[tuple[str, dict[str, Any]]] = []
        self._followers: list[asyncio.Task[None]] = []
        self._behind: set[int] = set()
        self._goal = 0
        self._caught_up = asyncio.Event()
        self._revision = 0
        self._windowed = 0

    async def register(self, count: int) -> dict[str, Any]:
        """Put the records and blocks of so many nodes, and tell how long that took."""
        register = (await self._etcd.read("b/", prefix=True)).entries
        taken = {str(block_of(entry.key.removeprefix("b/"))) for entry in register}
        free = (f"10.{high}.{low}.0/24" for high in range(256) for low in range(256))
        blocks = (block for block in free if block not in taken)
        puts: list[tuple[str, bytes, int]] = []
        for number, block in zip(range(count), blocks, strict=False):
            name = f"registered-{number}"
            record = {"instance": f"i{number}", "id": number, "key": b64encode(os.urandom(32)).decode()}
            record |= {"endpoint": f"198.18.{number // 250}.{number % 250}:51820", "block": block, "version": "1"}
            self._records.append((f"s/node/{name}", record))
            holding = json.dumps({"node": name, "instance": f"i{number}"}).encode()
            puts += [(f"s/node/{name}", json.dumps(record).encode(), 0), (f"b/{block.replace('/', '-')}", holding, 0)]
        began = asyncio.get_running_loop().time()
        await self._put(puts)
        return {"seconds": asyncio.get_running_loop().time() - began, "revision": self._revision}

    async def follow(self, count: int, rate: float, nodes: int, json: float = 0) -> dict[str, Any]:
        """So many followers, in the place of those before, of a cluster of so many nodes.  json: by etcd's gateway, as
        those follow whom no gRPC reaches.
        """
        for task in self._followers:
            task.cancel()
        await asyncio.gather(*self._followers, return_exceptions=True)
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._revision = (await self._etcd.read("s/pulse")).revision
        self._followers, self._sessions, self._windowed = [], [], 0
        opening = asyncio.Semaphore(AT_ONCE)
        followings: list[Following] = []
        for number in range(count):
            client = self._client(f"follower-{number}")
            if json:
                client.without_grpc.update(range(len(client.servers)))
            following = Following(client, "s/", self._revision, None, partial(self._told, number))
            following.session.rate, following.session.nodes = rate, nodes
            followings.append(following)
            self._followers.append(asyncio.create_task(self._run(following, opening)))
        while any(each.session.state != "connected" for each in followings):  # noqa: ASYNC110 nobody tells of it
            await asyncio.sleep(0.05)
        self._sessions = [each.session for each in followings]
        return {"seconds": loop.time() - began}

    async def change(self, count: int, first: int, pace: float) -> dict[str, Any]:
        """So many records have another endpoint, so many a second; tell what the last one is, and its revision."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        at_once = asyncio.Semaphore(AT_ONCE)
        puts, key, record = set[asyncio.Task[None]](), "", dict[str, Any]()

        async def put(key: str, value: bytes) -> None:
            async with at_once:
                self._revision = max(self._revision, (await self._etcd.transact((), [(key, value, 0)])).revision)

        for number in range(count):
            key, record = self._records[(first + number) % len(self._records)]
            host, _, port = record["endpoint"].partition(":")
            record["endpoint"] = f"{host}:{int(port) % 60000 + 1}"
            puts.add(asyncio.create_task(put(key, json.dumps(record).encode())))
            await asyncio.sleep(max(0.0, began + (number + 1) / pace - loop.time()))
        await asyncio.gather(*puts)
        told = {"revision": self._revision, "key": record["key"], "endpoint": record["endpoint"]}
        return {"seconds": loop.time() - began, **told}

    async def reach(self, revision: int) -> dict[str, Any]:
        """Wait until all followers know of a revision; tell how many messages were read in windows by then."""
        self._goal = revision
        self._behind = {number for number, each in enumerate(self._sessions) if each.revision < revision}
        while self._behind:
            self._caught_up.clear()
            await self._caught_up.wait()
        return {"windowed": self._windowed}

    async def _run(self, following: Following, opening: asyncio.Semaphore) -> None:
        async with opening:
            running = asyncio.create_task(following.run())
            while following.session.state != "connected":  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        try:
            await running
        finally:
            running.cancel()

    def _told(self, number: int, message: Message) -> None:
        if isinstance(message, Delta):
            self._windowed += self._sessions[number].windowed
            if message.revision >= self._goal:
                self._behind.discard(number)
                self._caught_up.set()

    async def _put(self, puts: Sequence[tuple[str, bytes, int]]) -> None:
        """Some of them in each transaction."""
        at_once = asyncio.Semaphore(AT_ONCE)

        async def put(part: Sequence[tuple[str, bytes, int]]) -> None:
            async with at_once:
                self._revision = max(self._revision, (await self._etcd.transact((), part)).revision)

        await asyncio.gather(*(put(puts[start : start + TOGETHER]) for start in range(0, len(puts), TOGETHER)))


async def main() -> None:
    urls, prefix = sys.argv[1:]
    servers = tuple(read_url(url, 2379) for url in urls.split(","))
    program = Program(lambda name: Etcd(servers, name, prefix, Files(), None))
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        what, *numbers = line.split()
        count = int(numbers[0])
        if what == "register":
            answer = await program.register(count)
        elif what == "follow":
            answer = await program.follow(count, float(numbers[1]), int(numbers[2]), *map(float, numbers[3:]))
        elif what == "change":
            answer = await program.change(count, int(numbers[1]), float(numbers[2]))
        else:
            answer = await program.reach(count)
        print(json.dumps(answer), flush=True)
    os._exit(0)  # thousands of streams need no ceremony


if __name__ == "__main__":
    asyncio.run(main())
