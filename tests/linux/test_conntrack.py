"""Forgetting an address: entries that real datagrams made, in namespaces of their own."""

import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from lab.patience import until
from throwaway import Namespace

from overlayd.linux import conntrack
from overlayd.model import set_members
from overlayd.model.connections import Rules


@pytest.fixture
def space() -> Iterator[Namespace]:
    """A namespace with many local addresses, that tracks connections and rewrites those to port 99 of 10.9.0.99."""
    with Namespace() as namespace:
        namespace.ip(
            *(f"address add 10.9.0.{last}/32 dev lo" for last in range(1, 10)),
            *(f"address add fd09::{last}/128 dev lo nodad" for last in range(1, 10)),
            "route add 10.9.0.99/32 dev lo",
        )
        await_local(namespace, {f"fd09::{last}" for last in range(1, 10)})
        namespace.nft(
            """
            table inet test {
                chain track { type filter hook output priority 0; ct state new accept; }
                chain rewrite { type nat hook output priority -100; ip daddr 10.9.0.99 dnat ip to 10.9.0.8; }
            }
            """
        )
        yield namespace


def await_local(space: Namespace, addresses: set[str]) -> None:
    """Wait until IPv6 addresses can be talked to: a kernel worker makes their local routes after they were added, on a
    busy machine much later, and until then what is sent to them is lost without a word, and not tracked.
    """
    command = ["ip", "-json", "-n", space.name, "-6", "route", "show", "table", "local"]

    def are_local() -> bool:
        routes = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        return addresses <= {route["dst"] for route in routes if route["type"] == "local"}

    until(are_local)


def talk(space: Namespace, source: str, target: str, count: int = 1) -> None:
    """Make `count` UDP entries from `source` to `target`."""
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    with ExitStack() as stack, space.entered():
        for _ in range(count):
            here = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            here.bind((source, 0))
            here.sendto(b"?", (target, 9))


def table(space: Namespace) -> set[tuple[str, str]]:
    """Source and destination, as first sent, of every entry."""
    with space.entered():
        lines = Path("/proc/thread-self/net/nf_conntrack").read_text().splitlines()
    entries = [[word.partition("=")[2] for word in line.split() if word.startswith(("src=", "dst="))] for line in lines]
    return {(str(ip_address(entry[0])), str(ip_address(entry[1]))) for entry in entries}


def forget(space: Namespace, *addresses: str) -> int:
    with space.entered():
        return conntrack.forget([ip_address(address) for address in addresses])


@pytest.mark.parametrize("prefix", ["10.9.0.", "fd09::"])
def test_entries_at_either_end_go_and_others_stay(space: Namespace, prefix: str) -> None:
    for source, target in (("1", "2"), ("2", "3"), ("3", "4"), ("4", "1")):
        talk(space, prefix + source, prefix + target)
    assert forget(space, prefix + "1") == 2
    assert table(space) == {(prefix + "2", prefix + "3"), (prefix + "3", prefix + "4")}
    assert forget(space, prefix + "1") == 0


def test_an_address_that_only_nat_shows_counts(space: Namespace) -> None:
    talk(space, "10.9.0.1", "10.9.0.99")
    talk(space, "10.9.0.1", "10.9.0.2")
    assert forget(space, "10.9.0.8") == 1
    assert table(space) == {("10.9.0.1", "10.9.0.2")}
    talk(space, "10.9.0.1", "10.9.0.99")
    assert forget(space, "10.9.0.99") == 1


def test_many_addresses_at_once(space: Namespace) -> None:
    for source, target in (("10.9.0.1", "10.9.0.2"), ("10.9.0.3", "10.9.0.4"), ("fd09::1", "fd09::2")):
        talk(space, source, target)
    assert forget(space) == 0
    assert forget(space, "10.9.0.2", "fd09::1", "10.9.0.7") == 2
    assert table(space) == {("10.9.0.3", "10.9.0.4")}


def test_more_than_one_batch(space: Namespace) -> None:
    talk(space, "10.9.0.1", "10.9.0.2", 300)
    talk(space, "10.9.0.3", "10.9.0.4", 5)
    assert forget(space, "10.9.0.2") == 300
    assert table(space) == {("10.9.0.3", "10.9.0.4")}


def test_only_the_namespace_of_the_caller(space: Namespace) -> None:
    talk(space, "10.9.0.1", "10.9.0.2")
    with Namespace() as other:
        assert forget(other, "10.9.0.1") == 0
    assert table(space) == {("10.9.0.1", "10.9.0.2")}


def test_what_breaks_the_rules_is_forgotten_and_nothing_else(space: Namespace) -> None:
    members = [
        *set_members.cluster(ip_network("10.9.0.0/24")),
        *set_members.cluster(ip_network("fd09::/64")),
        *(element for last in (1, 2) for element in set_members.member(ip_address(f"10.9.0.{last}"), 1)),
        *(element for last in (1, 2) for element in set_members.member(ip_address(f"fd09::{last}"), 1)),
    ]
    for prefix in ("10.9.0.", "fd09::"):
        talk(space, f"{prefix}1", f"{prefix}2")
        talk(space, f"{prefix}3", f"{prefix}4")
        talk(space, f"{prefix}3", f"{prefix}1", 5)
    with space.entered():
        assert conntrack.forget_what_breaks(Rules(members)) == 10
        assert conntrack.forget_what_breaks(Rules(members)) == 0
        assert (
            conntrack.forget([ip_address(f"{prefix}{last}") for prefix in ("10.9.0.", "fd09::") for last in (1, 3)])
            == 4
        )
