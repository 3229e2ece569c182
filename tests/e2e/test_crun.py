"""Containers that a real runtime starts, attached by their pid."""

from collections.abc import Iterator

import pytest
from lab import CrunContainer, ping, transfer
from lab.cluster import Pair
from lab.lab import OUTSIDE
from lab.patience import until


@pytest.fixture(scope="module")
def containers(pair: Pair) -> Iterator[tuple[CrunContainer, CrunContainer]]:
    yield pair.lab.crun_container(), pair.lab.crun_container()


def test_containers_of_a_runtime_serve_each_other_across_nodes(
    pair: Pair, containers: tuple[CrunContainer, CrunContainer]
) -> None:
    first, second = containers
    address = pair.alpha.attach(first, "web", join_global=True)
    other = pair.beta.attach(second, "db")
    inside = first.execute("ip", "address")
    assert f"inet {address}/26" in inside
    assert "eth1" in inside
    assert second.fetch(address) == first.name
    assert first.fetch(other) == second.name
    transfer(first, second, other, megabytes=5)
    ping(first, str(OUTSIDE.ip))
    ping(first, pair.web_address)

    pair.alpha.node.kill()
    pair.alpha.start()
    ping(second, address)
    assert pair.alpha.attach(first, "web", join_global=True) == address
    pair.alpha.detach(first)
    assert "eth0" not in first.execute("ip", "address")


def test_one_that_dies_gives_everything_back(pair: Pair, containers: tuple[CrunContainer, CrunContainer]) -> None:
    _, second = containers
    address = pair.beta.attach(second, "db")
    assert f"veth-{second.pid}-s" in pair.beta.node.run(["ip", "-br", "link"])
    second.kill()
    until(lambda: "died" in pair.beta.node.log_tail(), "nobody noticed")
    until(lambda: f"veth-{second.pid}-s" not in pair.beta.node.run(["ip", "-br", "link"]), pair.beta.node.log_tail)
    until(lambda: f"{address} is free again" in pair.beta.node.log_tail(), pair.beta.node.log_tail)
