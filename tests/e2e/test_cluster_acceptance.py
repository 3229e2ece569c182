"""What docs/cluster.md promises to somebody who has five nodes: how soon they reach each other, what becomes of one
that ends, and how many changes are read.
"""

import itertools
import time
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest
from lab import Lab, ping
from lab.cluster import CLUSTER
from lab.etcd import Etcd
from lab.patience import FACTOR, until
from lab.registered import Registered
from lab.sites import Site, serve, sites

from overlayd.model import blocks

NEW = Path(__file__).parents[2] / "build" / "clients" / "go" / "etcd"
SOON = 20 * FACTOR  # seconds after the fifth start, on a machine with other work
TTL = 6  # seconds
FOLLOWERS, CHANGES = 50, 400  # of a burst


NEEDS_NEW = pytest.mark.skipif(not NEW.exists(), reason="etcd 3.6 comes through Go's proxy (make etcd-new)")


@pytest.mark.parametrize("program", ["etcd", pytest.param(str(NEW), marks=NEEDS_NEW)], ids=["3.4", "3.6"])
def test_every_container_of_five_nodes_reaches_every_other_soon(program: str) -> None:
    with Lab() as lab, Etcd(lab, 3, program=program) as etcd:
        nodes = sites(lab, etcd, ["alpha", "beta", "gamma", "delta"])
        serve(nodes)
        last = Site(lab, etcd, "epsilon")
        began = time.monotonic()
        last.start()
        last.join()
        last.serve()
        # Each has it, or WireGuard's first words are lost, and the next ones follow after five seconds.
        nodes.append(last)
        for site in nodes:
            site.knows(4)
        for one, other in itertools.permutations(nodes, 2):
            ping(one.container, other.address, count=1)
        assert time.monotonic() - began < SOON
        assert len({site.part["block"] for site in nodes}) == 5


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[Site]]:
    """Four blocks, of which three are taken."""
    with Lab() as lab, Etcd(lab, 3) as etcd:
        made = sites(lab, etcd, ["alpha", "beta", "gamma"], ["--cluster-cidr", CLUSTER, "--block-prefix", "18"])
        serve(made)
        yield made


def test_time_in_which_etcd_was_away_removes_nobody_and_a_removed_node_leaves_its_block_for_last(
    nodes: list[Site],
) -> None:
    alpha, beta, gamma = nodes
    block, address = gamma.part["block"], gamma.address
    alpha.node.overlayctl("cluster", "set", f"node_ttl_secs={TTL}")
    gamma.node.kill()
    gamma.lose_presence()
    alpha.etcd.stop()
    try:
        time.sleep(2 * TTL)
        # Its record and its names are known, and its container, which lives, is reached.
        assert alpha.status["peer_count"] == 2
        assert beta.resolve("gamma-web") == address
        ping(alpha.container, address, count=1)
    finally:
        back = time.monotonic()
        alpha.etcd.go_on()
    alpha.state("connected")
    for site in (alpha, beta):
        site.knows(1)
        until(lambda site=site: not site.resolve("gamma-web"), site.node.log_tail)
    assert time.monotonic() - back > TTL * 0.7, "the time of the outage counted"
    alpha.node.overlayctl("cluster", "set", "node_ttl_secs=0")
    # Whose name begins at the freed block takes the one that nobody ever had, and only the next one takes that.
    late = [Site(alpha.lab, alpha.etcd, name) for name in _beginning_at(block)]
    for site in late:
        site.start()
        site.join()
    assert late[0].part["block"] not in {block, alpha.part["block"], beta.part["block"]}
    assert late[1].part["block"] == block


def _beginning_at(block: str) -> list[str]:
    """Two names whose first choice in an empty register is this block."""
    found = (f"n{number}" for number in itertools.count())
    return list(itertools.islice((n for n in found if str(blocks.choose(n, ip_network(CLUSTER), 18, {})) == block), 2))


def test_a_burst_of_changes_is_read_in_windows_which_are_left_again(lab: Lab) -> None:
    """`bench/bench_cluster.py` has 5,000 nodes, and what windows save of etcd's work."""
    with Etcd(lab, 3) as etcd:
        alpha, beta = sites(lab, etcd, ["alpha", "beta"], ["--cluster-cidr", "10.0.0.0/8"])
        with Registered(etcd.members[0].node, etcd.urls, "prod") as registered:
            registered.ask("register", 100)
            for site in (alpha, beta):
                site.knows(101)
                until(lambda site=site: not site.part.get("windowed"), lambda site=site: site.part)
            registered.ask("follow", FOLLOWERS, 2, 5000)  # a storm also where the burst comes slowly
            before = etcd.told()
            answer = registered.ask("change", CHANGES, 0, 50)
            assert registered.ask("reach", answer["revision"])["windowed"] > 0
            # What etcd has told: each change once to each, and most of them many in a message, which is what saves.
            messages, changes = (now - then for now, then in zip(etcd.told(), before, strict=True))
            assert changes < FOLLOWERS * CHANGES * 1.2
            assert messages < FOLLOWERS * CHANGES / 6
            line = f"{answer['key']}\t{answer['endpoint']}"
            for site in (alpha, beta):
                device = site.status["interface"]
                until(lambda site=site, device=device: line in site.node.run(["wg", "show", device, "endpoints"]))
                until(lambda site=site: not site.part.get("windowed"), lambda site=site: site.part)
            # One change more is not waited with.
            registered.ask("follow", FOLLOWERS, 10, 102)
            answer = registered.ask("change", 1, 7, 1e9)
            assert registered.ask("reach", answer["revision"])["windowed"] == 0
            line = f"{answer['key']}\t{answer['endpoint']}"
            until(lambda: line in alpha.node.run(["wg", "show", alpha.status["interface"], "endpoints"]))
            assert not any(site.part.get("windowed") for site in (alpha, beta))
