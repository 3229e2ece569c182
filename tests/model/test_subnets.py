import json
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.errors import RequestError
from overlayd.model.objects import Network
from overlayd.model.subnets import choose, first_usable, slot, usable_window

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "subnets.json").read_text())


def overlaps(one: Network, other: Network) -> bool:
    return int(one[0]) <= int(other[-1]) and int(other[0]) <= int(one[-1])


def vector_id(vector: dict[str, str]) -> str:
    return f"{vector['cluster_cidr']}-{vector['service']}-{vector['node']}"


@pytest.mark.parametrize("vector", VECTORS, ids=vector_id)
def test_the_orchestrator_computes_the_same_slot(vector: dict[str, str]) -> None:
    assert str(slot(ip_network(vector["cluster_cidr"]), vector["service"], vector["node"])) == str(vector["slot"])


@pytest.mark.parametrize("vector", [v for v in VECTORS if v["node"].isdecimal()], ids=vector_id)
def test_the_orchestrator_computes_the_same_subnet(vector: dict[str, str]) -> None:
    cluster = ip_network(vector["cluster_cidr"])
    assert choose(cluster, vector["service"], int(vector["node"]), lambda _: None) == ip_network(vector["subnet"])


@st.composite
def networks_in(draw: st.DrawFn, cluster: Network) -> Network:
    """Networks that overlap the cluster: wider than it, between it and a slot, and narrower than a slot."""
    prefix = draw(st.integers(cluster.prefixlen - 2, cluster.max_prefixlen))
    offset = draw(st.integers(0, cluster.num_addresses - 1))
    return ip_network((int(cluster[offset]), prefix), strict=False)


# Of clusters: the prefix length of the slots that a service is given one of.
PREFIXES = {
    "10.0.0.0/8": 26,
    "10.200.0.0/16": 26,
    "10.200.0.0/22": 26,  # sixteen of them
    "10.200.0.0/23": 27,
    "10.200.0.0/24": 28,
    "10.0.0.192/26": 30,
    "10.0.0.240/28": 30,  # a narrower one has no room for a gateway and a container
    "10.0.0.240/30": 30,
    "fd00:7::/48": 120,
    "fd00:7::/116": 120,
    "fd00:7::/117": 121,
    "fd00:7::f0/124": 126,
    "fd00:7::f0/126": 126,
}


@pytest.mark.parametrize("cidr", PREFIXES)
def test_a_small_cluster_has_narrower_slots(cidr: str) -> None:
    subnet = choose(ip_network(cidr), "web", 1, lambda _: None)
    assert subnet.prefixlen == PREFIXES[cidr]
    first, last = usable_window(subnet)
    assert last > first, "room for a gateway and a container"


SMALL = [cidr for cidr in PREFIXES if ip_network(cidr).num_addresses <= 1 << 12]


@given(st.data(), st.sampled_from(SMALL), st.text(max_size=5))
def test_choose_agrees_with_trying_every_slot(data: st.DataObject, cidr: str, service: str) -> None:
    cluster = ip_network(cidr)
    taken = data.draw(st.lists(networks_in(cluster), max_size=12))
    calls = 0

    def overlap(candidate: Network) -> Network | None:
        nonlocal calls
        calls += 1
        assert candidate.prefixlen == PREFIXES[cidr]
        assert int(cluster[0]) <= int(candidate[0]) <= int(candidate[-1]) <= int(cluster[-1])
        return next((network for network in taken if overlaps(network, candidate)), None)

    slots: list[Network] = list(cluster.subnets(new_prefix=PREFIXES[cidr]))
    first = slot(cluster, service, "3")
    free = [subnet for subnet in slots[first:] + slots[:first] if not any(overlaps(subnet, net) for net in taken)]
    if free:
        assert choose(cluster, service, 3, overlap) == free[0]
        assert calls <= len(taken) + 2  # each network is met once, and once more when the search starts inside it
    else:
        with pytest.raises(RequestError, match=r"tear a service down.*larger cluster CIDR"):
            choose(cluster, service, 3, overlap)


def test_a_wide_slice_costs_one_call() -> None:
    cluster = ip_network("fd00:200::/48")
    first = choose(cluster, "web", 0, lambda _: None)
    wide = ip_network(f"{first.network_address}/64", strict=False)
    asked = []

    def overlap(candidate: Network) -> Network | None:
        asked.append(candidate)
        return wide if overlaps(candidate, wide) else None

    assert choose(cluster, "web", 0, overlap) == ip_network((int(wide[-1]) + 1, 120))
    assert len(asked) == 2


@pytest.mark.parametrize("cidr", ["10.0.0.0/31", "10.0.0.1/32", "fd00::/127", "fd00::1/128"])
def test_a_cluster_without_a_slot_is_refused(cidr: str) -> None:
    with pytest.raises(RequestError, match=r"no room for the subnet of a service.*larger cluster CIDR"):
        choose(ip_network(cidr), "web", 0, lambda _: None)


@pytest.mark.parametrize(
    ("cidr", "window", "first"),
    [
        ("10.0.0.0/24", (1, 254), "10.0.0.1"),
        ("10.0.0.16/28", (1, 14), "10.0.0.17"),
        ("10.0.0.4/30", (1, 2), "10.0.0.5"),
        ("10.0.0.4/31", (0, 1), "10.0.0.4"),
        ("10.0.0.4/32", (0, 0), "10.0.0.4"),
        ("10.9.0.0/16", (1, 65_534), "10.9.0.1"),
        ("10.0.0.0/8", (1, 65_535), "10.0.0.1"),
        ("fd00::/120", (1, 255), "fd00::1"),
        ("fd00::4/126", (1, 3), "fd00::5"),
        ("fd00::4/127", (0, 1), "fd00::4"),
        ("fd00::4/128", (0, 0), "fd00::4"),
        ("fd00::/112", (1, 65_535), "fd00::1"),
        ("fd00::/64", (1, 65_535), "fd00::1"),
    ],
)
def test_usable_addresses(cidr: str, window: tuple[int, int], first: str) -> None:
    assert usable_window(ip_network(cidr)) == window
    assert first_usable(ip_network(cidr)) == ip_address(first)


@given(st.integers(20, 32), st.integers(0, 0xFFFFFFFF))
def test_the_window_is_what_the_standard_library_calls_hosts(prefix: int, address: int) -> None:
    network = ip_network((address, prefix), strict=False)
    first, last = usable_window(network)
    hosts = list(network.hosts())
    assert [network[first], network[last]] == [hosts[0], hosts[-1]]
