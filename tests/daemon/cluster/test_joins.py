"""Many nodes at once on a real etcd: the room's own code, without a kernel."""

import asyncio
import subprocess
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from lab.patience import until, until_async
from sim.node import Journal, NoNat, SimNode

from overlayd.daemon.cluster import cluster
from overlayd.daemon.cluster.cluster import Cluster
from overlayd.daemon.cluster.connection import read_url
from overlayd.daemon.cluster.etcd import Etcd
from overlayd.daemon.cluster.publishing import Place
from overlayd.daemon.cluster.refusal import Files
from overlayd.daemon.cluster.report import Report
from overlayd.daemon.cluster.settings import Settings
from overlayd.model import joining, membership, services
from overlayd.model.blocks import block_key
from overlayd.model.cluster_records import read_config
from overlayd.model.rows import Change, Membership
from overlayd.model.state import Draft
from overlayd.proto.etcd import Outcome
from overlayd.proto.store_answers import Denied, Page, Unavailable

BLOCKS = 64


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[str]:
    """An etcd of this host, on a socket of its own."""
    client, peer = "unix://client:0", "unix://peer:0"
    argv = ["etcd", "--data-dir", "data", "--listen-client-urls", client, "--advertise-client-urls", client]
    argv += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log, cwd=tmp_path)
    try:
        until((tmp_path / "client:0").exists, (tmp_path / "log").read_text)
        yield f"unix:{tmp_path / 'client:0'}"
    finally:
        process.kill()
        process.wait()


class Joined:
    """A node that is on its way into the cluster."""

    def __init__(self, name: str, url: str) -> None:
        self.node = SimNode(name, Journal(), self._changed, lambda _: False)
        settings = Settings(
            (read_url(url, 2379),), "many", name, "/overlayd/many/", Files(), None, ip_network("10.200.0.0/18"), 24, ""
        )
        self.etcd = Etcd(settings.servers, name, settings.prefix, settings.files, None)
        self.cluster = Cluster(
            self.node,  # type: ignore[arg-type]
            NoNat(),  # type: ignore[arg-type]
            settings,
            etcd=self.etcd,
            place=Place("machine", "boot"),
            stop=lambda: None,
        )

    def _changed(self, now: Change, before: Change) -> None:
        pass


async def test_as_many_nodes_as_there_are_blocks_join_at_once_and_the_next_one_is_told(endpoint: str) -> None:
    nodes = [Joined(f"n{number}", endpoint) for number in range(BLOCKS)]
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(60):
        lives = [loop.create_task(_live(each)) for each in nodes]
        await until_async(lambda: all(each.cluster.joined.is_set() for each in nodes))
        held = Counter(each.node.state.table(Membership)[""].blocks[0] for each in nodes)
        assert len(held) == BLOCKS
        await until_async(lambda: all(len(each.node.state.peers("")) == BLOCKS - 1 for each in nodes))
        late = Joined("late", endpoint)
        lives.append(loop.create_task(_live(late)))
        await until_async(
            lambda: "address space exhausted: 64 blocks, 64 used" in (Report(late.cluster).status().error or "")
        )
    for life in lives:
        life.cancel()
    await asyncio.gather(*lives, return_exceptions=True)


async def test_a_node_that_leaves_does_not_join_again_when_it_hears_that_it_is_gone(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Joined("leaving", endpoint)
    life = asyncio.get_running_loop().create_task(_live(node))
    async with asyncio.timeout(60):
        await until_async(lambda: node.cluster.publishing.lease != 0)
        revoke = node.etcd.revoke

        async def after_the_news(lease: int) -> None:
            await asyncio.sleep(1)  # the watch of this node has told of the removal by now, were it still there
            await revoke(lease)

        monkeypatch.setattr(node.etcd, "revoke", after_the_news)
        await node.cluster.leave()
        assert not (await node.etcd.read("s/node/", prefix=True)).entries
        (block,) = (await node.etcd.read("b/", prefix=True)).entries
        assert b"freed" in block.value
    life.cancel()
    await asyncio.gather(life, return_exceptions=True)


@pytest.mark.parametrize("what", ["removed", "spoilt", "another's"])
async def test_what_hands_do_to_a_block_of_a_node_is_noticed_while_it_runs(
    endpoint: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    monkeypatch.setattr(cluster, "LOOK_AT_BLOCKS", 0.2)
    node = Joined("holding", endpoint)
    life = asyncio.get_running_loop().create_task(_live(node))
    async with asyncio.timeout(60):
        await until_async(lambda: node.cluster.publishing.lease != 0)
        (block,) = (await node.etcd.read("b/", prefix=True)).entries
        if what == "removed":
            await node.etcd.transact((), (), [(block.key, False)])
        elif what == "spoilt":
            await node.etcd.transact((), [(block.key, b"garbage", 0)])
        else:
            await node.etcd.transact((), [(block.key, b'{"node": "thief", "instance": "e"}', 0)])
            await until_async(lambda: node.cluster.state == "conflict")
            assert any("is held by node thief in the store" in each.problem for each in Report(node.cluster).findings())
        if what != "another's":
            await until_async(lambda: "is claimed again, the store had it no longer" in caplog.text)
            assert [each.value for each in (await node.etcd.read("b/", prefix=True)).entries] == [block.value]
    life.cancel()
    await asyncio.gather(life, return_exceptions=True)


async def test_a_node_that_cannot_leave_stays_a_member(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Joined("staying", endpoint)
    life = asyncio.get_running_loop().create_task(_live(node))
    async with asyncio.timeout(60):
        await until_async(lambda: node.cluster.publishing.lease != 0)
        read = node.etcd.read

        async def unanswered(key: str, *, prefix: bool = False) -> Page:
            raise Unavailable("no member of etcd answers")

        monkeypatch.setattr(node.etcd, "read", unanswered)
        with pytest.raises(Unavailable):
            await node.cluster.leave()
        monkeypatch.setattr(node.etcd, "read", read)
        await until_async(lambda: node.cluster.state == "connected")
        (record,) = (await read("s/node/staying")).entries
        assert str(node.node.state.table(Membership)[""].blocks[0]).encode() in record.value
    life.cancel()
    await asyncio.gather(life, return_exceptions=True)


def _fill(draft: Draft) -> None:
    """Two services, for which a block has room."""
    for name in ("web", "db"):
        services.setup_service(draft, name, subnet=None, dedicated_key=None, ranges=membership.service_ranges(draft))


async def test_a_block_that_is_found_while_a_further_one_is_wanted_is_enough(endpoint: str) -> None:
    joined = Joined("full", endpoint)
    node, turn = joined.node, joined.cluster.own.turn
    life = asyncio.get_running_loop().create_task(_live(joined))
    async with asyncio.timeout(60):
        await until_async(lambda: joined.cluster.state == "connected")
        async with turn:  # as of who confirms our place at a start
            await node.change(_fill)
            await until_async(lambda: joined.cluster.growth.lacking)
            held = node.state.table(Membership)[""].blocks
            await node.change(lambda draft: joining.hold(draft, [*held, ip_network("10.200.63.0/24")]))
        async with turn:  # after whoever has waited for it
            pass
        assert [each.key for each in (await joined.etcd.read("b/", prefix=True)).entries] == [f"b/{block_key(held[0])}"]
        assert not joined.cluster.growth.failure
    life.cancel()
    await asyncio.gather(life, return_exceptions=True)


async def test_a_node_that_was_in_doubt_claims_what_it_lacks_when_it_is_confirmed(endpoint: str) -> None:
    joined = Joined("doubtful", endpoint)
    life = asyncio.get_running_loop().create_task(_live(joined))
    async with asyncio.timeout(60):
        await until_async(lambda: joined.cluster.state == "connected")
        joined.cluster.conflict = "block 10.200.1.0/24 is held by another node"
        await joined.node.change(_fill)
        await until_async(lambda: joined.cluster.growth.lacking)
        joined.cluster.look_again()
        await until_async(lambda: len(Report(joined.cluster).status().blocks) == 1)
    life.cancel()
    await asyncio.gather(life, return_exceptions=True)


async def test_a_store_that_went_back_gets_another_mark_once_from_whoever_may_write_it(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Joined("marking", endpoint)
    life = asyncio.get_running_loop().create_task(_live(node))

    async def history() -> str:
        (entry,) = (await node.etcd.read("s/config")).entries
        return read_config(entry.value).history

    async with asyncio.timeout(60):
        await until_async(lambda: node.cluster.publishing.lease != 0)
        joins, ours, before = node.cluster.joining, node.cluster.configuration, await history()
        ours.unmarked = before
        await joins.confirm()
        after = await history()
        assert after != before
        ours.unmarked = before  # another node has marked it since this one listed it
        await joins.confirm()
        assert await history() == after
        transact = node.etcd.transact

        async def denied(*arguments: Any) -> Outcome:
            if arguments[1][0][0] == "s/config":
                raise Denied("permission denied")
            return await transact(*arguments)

        monkeypatch.setattr(node.etcd, "transact", denied)
        ours.unmarked = after
        await joins.confirm()
        assert (await history(), ours.unmarked) == (after, None)
    life.cancel()
    await asyncio.gather(life, return_exceptions=True)


async def _live(joined: Joined) -> None:
    loop = asyncio.get_running_loop()
    async with joined.cluster.running(joined.node.answer, lambda work: loop.create_task(work())):
        await asyncio.Event().wait()
