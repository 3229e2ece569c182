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
    chance = random.Random(SEED)
    found = cluster.points(place, act)
    died = [cluster.trial(place, act, point) for point in cluster.sample(found, chance, OTHERS)]
    others = iter(chance.sample(found, len(found)))
    while not any(died):  # how often a point is passed before the act is a matter of luck
        died.append(cluster.trial(place, act, next(others)))
    print(f"{act}: killed at {sum(died)} of {len(died)} points, of {len(found)}")
