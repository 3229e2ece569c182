"""What the end-to-end tests share: a pair of nodes, and a node alone, with the real daemon on each."""

from collections.abc import Iterator

import pytest
from lab import Lab
from lab.cluster import Member, Pair
from lab.container import Container


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Two nodes with a container each, over an underlay whose MTU is nobody's default."""
    with Lab(mtu=1400) as lab:
        yield Pair(lab)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A laboratory for nodes alone."""
    with Lab() as lab:
        yield lab


@pytest.fixture
def container(lab: Lab) -> Iterator[Container]:
    """A container that nobody has attached."""
    with lab.container() as made:
        yield made


@pytest.fixture(scope="module")
def member(lab: Lab) -> Member:
    """A node alone, with its device up."""
    member = Member(lab, 1, "alpha")
    member.start()
    member.set_up()
    return member
