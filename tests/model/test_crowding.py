"""A neighbour table is told before it is full."""

import pytest

from overlayd.model.crowding import crowded, tracked


@pytest.mark.parametrize(
    ("entries", "severity"),
    [(0, None), (819, None), (820, "warning"), (1023, "warning"), (1024, "error"), (5000, "error")],
)
@pytest.mark.parametrize("version", [4, 6])
def test_it_names_the_limit_and_what_to_set(version: int, entries: int, severity: str | None) -> None:
    found = crowded([(version, entries, 1024)])
    assert [each.severity for each in found] == ([severity] if severity else [])
    for each in found:
        assert each.object == f"net/ipv{version}/neigh/default/gc_thresh3"
        assert f"{entries} IPv{version} neighbours" in each.problem
        assert each.remedy.endswith(f"sysctl -w net.ipv{version}.neigh.default.gc_thresh3=4096")


@pytest.mark.parametrize(
    ("connections", "severity"), [(0, None), (799, None), (800, "warning"), (979, "warning"), (980, "error")]
)
def test_connection_tracking_is_told_before_it_is_full(connections: int, severity: str | None) -> None:
    found = tracked(connections, 1000)
    assert [each.severity for each in found] == ([severity] if severity else [])
    for each in found:
        assert each.object == "net/netfilter/nf_conntrack_max"
        assert each.problem == f"is 1000, and this host tracks {connections} connections"
        assert each.remedy.endswith("sysctl -w net.netfilter.nf_conntrack_max=4000")


def test_without_a_limit_connection_tracking_is_never_full() -> None:
    assert tracked(10**6, 0) == []
