"""A cluster without an orchestrator whose addresses, endpoints and etcd are all of IPv6."""

import itertools
import json
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest
from lab import Lab, Ping, ping
from lab.cluster import CLUSTER6
from lab.etcd import Etcd
from lab.patience import until
from lab.sites import Site, serve, sites


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[Site]]:
    with Lab(ipv6=True) as lab, Etcd(lab) as etcd:
        made = sites(lab, etcd, ["alpha", "beta", "gamma"], ["--cluster-cidr", CLUSTER6])
        serve(made)
        yield made


def test_containers_of_all_nodes_reach_each_other_by_address_and_name(nodes: list[Site]) -> None:
    for one, other in itertools.permutations(nodes, 2):
        ping(one.container, other.address, count=2)
        until(lambda one=one, other=other: one.resolve(f"{other.node.name}-web") == other.address, "no name")
    blocks = [ip_network(each.part["block"]) for each in nodes]
    assert len(set(blocks)) == 3
    for each, block in zip(nodes, blocks, strict=True):
        assert block.prefixlen == 64
        assert ip_address(each.address) in block
        assert ip_address(each.status["node_ip"]) in block
        assert json.loads(each.node.overlayctl("cluster", "check", "-o", "json")) == []
        shown = json.loads(each.node.overlayctl("cluster", "nodes", "-o", "json"))
        assert {member["endpoint"] for member in shown} == {other.node.endpoint(51820) for other in nodes}
        assert not [f for f in each.request("doctor")["findings"] if f["code"].startswith("cluster")]


def test_a_restart_without_etcd_keeps_tunnels_and_names(nodes: list[Site]) -> None:
    alpha, beta, _ = nodes
    running = Ping(alpha.container, beta.address)
    running.wait_for(5)
    alpha.etcd.kill()
    beta.node.kill()
    beta.start()
    ping(beta.container, alpha.address, count=2)
    assert beta.resolve("alpha-web") == alpha.address
    beta.attach().kill()
    running.wait_for(10)
    assert running.stop() == []
    alpha.etcd.start()
    beta.state("connected")
