"""etcd is away for a while, under ping and attaches: nothing is lost, and no attach is refused.

OVERLAYD_OUTAGE: seconds of the outage; `make cluster-outage` has five minutes.
"""

import os
import time
from collections.abc import Iterator

import pytest
from lab import Lab, ping
from lab.etcd import Etcd
from lab.sites import Site, pinging, serve, sites

OUTAGE = float(os.environ.get("OVERLAYD_OUTAGE", "6"))


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[Site]]:
    with Lab() as lab, Etcd(lab, 3) as etcd:
        made = sites(lab, etcd, ["alpha", "beta", "gamma"])
        serve(made)
        yield made


def test_an_outage_under_ping_and_attaches(nodes: list[Site]) -> None:
    alpha, beta, gamma = nodes
    peers, addresses = alpha.device_peers(), [each.address for each in nodes]
    pings = pinging(nodes, 0.1)
    for member in alpha.etcd.members:
        member.kill()
        for each in pings:
            each.wait_for(5)
    over, rounds = time.monotonic() + OUTAGE, 0
    while time.monotonic() < over:
        container = alpha.attach()
        ping(container, beta.address, count=1)
        alpha.request("detach_container", handle=container.handle)
        container.kill()
        if rounds % 10 == 0:
            gamma.node.stop()
            gamma.start()  # ready by what the journal knows
            assert gamma.status["peer_count"] == 2
            assert gamma.resolve("alpha-web") == alpha.address
        rounds += 1
    assert [each.resolve(f"{each.node.name}-web") for each in nodes] == addresses
    for each in pings:
        each.wait_for(5)
        assert each.stop() == []
    assert alpha.device_peers() == peers
    alpha.etcd.start()
    for site in nodes:
        site.state("connected")
    ping(gamma.container, alpha.address, count=1)
    print(f"{rounds} attaches in {OUTAGE:g} s")
