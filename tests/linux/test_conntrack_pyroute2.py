"""Forgetting connections, with pyroute2 looking at the kernel's table before and after."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address

import pytest
from pyroute2.conntrack import Conntrack
from test_conntrack import space, talk  # noqa: F401
from throwaway import Namespace

from overlayd.linux import conntrack


@pytest.fixture
def oracles(space: Namespace) -> Iterator[list[Conntrack]]:  # noqa: F811
    """One a family, for each asks about its own."""
    with ExitStack() as stack:
        families = (socket.AF_INET, socket.AF_INET6)
        yield [stack.enter_context(Conntrack(nfgen_family=each, netns=space.name, flags=0)) for each in families]


def ends(oracles: list[Conntrack]) -> list[frozenset[str]]:
    """The addresses of each entry, of both directions."""
    return [
        frozenset(
            str(ip_address(each)) for side in (entry.tuple_orig, entry.tuple_reply) for each in (side.saddr, side.daddr)
        )
        for oracle in oracles
        for entry in oracle.dump_entries()
    ]


@pytest.mark.parametrize(
    "gone",
    [["10.9.0.1"], ["10.9.0.8"], ["10.9.0.99"], ["fd09::2"], ["10.9.0.3", "fd09::1"], ["10.9.0.77"], []],
)
def test_what_goes_is_what_pyroute2_finds_with_the_address(
    space: Namespace,  # noqa: F811
    oracles: list[Conntrack],
    gone: list[str],
) -> None:
    for source, target in (
        ("10.9.0.1", "10.9.0.2"),
        ("10.9.0.2", "10.9.0.3"),
        ("10.9.0.4", "10.9.0.99"),  # rewritten to 10.9.0.8
        ("fd09::1", "fd09::2"),
        ("fd09::3", "fd09::4"),
    ):
        talk(space, source, target)
    before = ends(oracles)
    assert len(before) == 5
    doomed = [entry for entry in before if entry & set(gone)]
    with space.entered():
        assert conntrack.forget([ip_address(each) for each in gone]) == len(doomed)
    assert sorted(map(sorted, ends(oracles))) == sorted(sorted(entry) for entry in before if entry not in doomed)
