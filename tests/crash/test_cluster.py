"""A sample of the deaths of a node of a cluster; `make crash` has all of them."""

import random
from collections.abc import Iterator

import pytest

from crash import cluster
from crash.cluster import ACTS, Place

SEED, OTHERS = 1, 2  # of the points that are none of the cluster's own, for each act


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with cluster.place() as place:
        yield place


@pytest.mark.parametrize("act", ACTS)
def test_a_node_that_is_killed_is_the_same_afterwards(place: Place, act: str) -> None:
    found = cluster.points(place, act)
    chosen = cluster.sample(found, random.Random(SEED), OTHERS)
    died = [cluster.trial(place, act, point) for point in chosen]
    print(f"{act}: killed at {sum(died)} of {len(chosen)} points, of {len(found)}")
    assert any(died)
