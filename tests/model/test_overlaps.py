"""Which overlaps of the overlay with the host's own networks are refused, and which are told."""

from ipaddress import ip_address, ip_network

import pytest
from decisions import CLUSTER, KEYS, OWN, change, new_state, ready, serve, set_up
from hypothesis import given
from hypothesis import strategies as st

from overlayd.errors import RequestError
from overlayd.model import overlaps, peers
from overlayd.model.objects import GLOBAL
from overlayd.model.overlaps import HostNetwork, cuts_off
from overlayd.model.rows import Service


def lan(network, link="eth0", **options):
    return HostNetwork(ip_network(network), link, "connected", **options)


def gateway(address):
    return HostNetwork(ip_network(address), "eth0", "gateway")


def route(network):
    return HostNetwork(ip_network(network), "eth0", "route", ip_address("192.0.2.1"))


DOCKER = lan("10.200.64.0/18", "docker0", virtual=True)


@pytest.mark.parametrize(
    ("network", "host", "lost"),
    [
        ("10.0.0.0/24", lan("10.0.0.0/24"), True),
        ("10.0.0.0/25", lan("10.0.0.0/24"), True),
        ("10.0.0.0/16", lan("10.0.0.0/24"), True),
        ("10.0.0.0/16", lan("10.0.0.0/24", "docker0", virtual=True), False),
        ("10.0.0.0/25", lan("10.0.0.0/24", "docker0", virtual=True), True),
        ("10.0.0.0/16", gateway("10.0.0.1"), True),
        ("10.0.0.0/16", route("10.0.0.0/16"), True),
        ("10.0.0.0/16", route("10.0.0.0/8"), False),
        ("10.0.0.0/16", route("10.0.5.0/24"), False),
        ("10.0.0.0/16", lan("10.1.0.0/16"), False),
        ("fd00::/48", lan("fd00::/64"), True),
        ("fd00::/64", lan("fd00::/48"), True),
        ("fd00::/48", lan("10.0.0.0/8"), False),
    ],
)
def test_what_cuts_the_host_off(network, host, lost):
    assert cuts_off(ip_network(network), [host]) == (host if lost else None)


SIXTEENTHS = [subnet for length in range(5) for subnet in ip_network("10.0.0.0/8").subnets(prefixlen_diff=length)]
networks = st.sampled_from(SIXTEENTHS)
hosts = st.lists(st.builds(lambda network, virtual: lan(network, virtual=virtual), networks, st.booleans()), max_size=5)


@given(networks, hosts)
def test_what_is_not_refused_leaves_every_address_to_the_host(network, host):
    """Against the longest prefix, address by address: every network here is made of sixteenths of 10.0.0.0/8."""
    lost = cuts_off(network, host)
    for low in range(16):
        address = ip_address((10 << 24) | (low << 20) | 1)
        best = max((each.network.prefixlen for each in host if address in each.network), default=None)
        if best is None or address not in network:
            continue
        if network.prefixlen >= best:
            assert lost is not None, "the overlay would win, or tie"
        elif any(not each.virtual for each in host if address in each.network):
            assert lost is not None, "the host lives by a network that the overlay holds"


def test_a_setup_is_refused_by_name_and_what_is_up_stays_up():
    state = new_state()
    late = [lan("10.200.0.0/20")]
    with pytest.raises(RequestError, match=r"cluster_cidr 10\.200\.0\.0/16 .* the network 10\.200\.0\.0/20 on eth0"):
        set_up(state, host=late)
    set_up(state)
    set_up(state, host=late)
    with pytest.raises(RequestError, match=r"slice_cidr 10\.200\.7\.16/28 .* docker0"):
        set_up(state, slice=ip_network("10.200.7.16/28"), host=[lan("10.200.7.0/24", "docker0", virtual=True)])
    with pytest.raises(RequestError, match=r"the default gateway 10\.200\.0\.1 on eth0"):
        set_up(new_state(), host=[gateway("10.200.0.1")])


def test_a_route_to_nowhere_within_the_cluster_is_told():
    state = ready()
    announce(state, ip_network("10.200.9.0/28"))
    nowhere = HostNetwork(ip_network("10.200.9.0/24"), "", "route")
    (found,) = overlaps.findings(state, [HostNetwork(ip_network("10.200.9.4/32"), "", "route"), nowhere][:1])
    assert found.object == "route 10.200.9.4/32 to nowhere (ip route show 10.200.9.4/32)"
    assert found.symptom.startswith("this host sends and forwards nothing there")
    (found,) = overlaps.findings(state, [nowhere])
    assert (found.severity, "allowed IP 10.200.9.0/28" in found.symptom) == ("error", True)


def test_a_service_takes_no_address_of_a_network_that_is_there():
    state = new_state()
    set_up(state, host=[DOCKER])
    for number in range(40):
        service = serve(state, f"s{number}", host=[DOCKER, lan("10.0.0.0/8"), route("0.0.0.0/1")])
        assert not service.subnet.overlaps(DOCKER.network)
    with pytest.raises(RequestError, match=r"10\.200\.65\.0/28 would cut this host off from the network .* on docker0"):
        serve(state, "exact", subnet=ip_network("10.200.65.0/28"), host=[DOCKER])
    assert state.get(Service, "exact") is None


@pytest.mark.parametrize("scope", [GLOBAL, "own"])
def test_an_allowed_ip_does_not_lead_the_hosts_lan_into_the_tunnel(scope):
    state = ready()
    serve(state, "own", dedicated_key=b"d" * 32)
    announce(state, ip_network("192.168.1.0/24"), scope=scope)
    for network in ("192.168.0.0/16", "192.168.7.0/24", "192.168.7.128/25", "192.168.7.1/32"):
        with pytest.raises(
            RequestError, match=rf"{network} would cut this host off from the network 192\.168\.7\.0/24"
        ):
            announce(state, ip_network(network), scope=scope, host=[lan("192.168.7.0/24")])


def announce(state, network, scope=GLOBAL, **options):
    endpoint = {"endpoint": "", "keepalive": 0, "candidates": (), "own_key": OWN}
    change(state, lambda draft: peers.add_peer(draft, scope, KEYS[0], allowed_ips=(network,), **endpoint, **options))


def test_what_is_told_of_an_overlap():
    state = ready()
    web = state.get(Service, "web").subnet
    announce(state, ip_network("10.200.2.0/24"))

    def told(*host):
        return [(each.severity, each.object, each.symptom) for each in overlaps.findings(state, host)]

    assert told(lan("10.201.0.0/16"), gateway("192.0.2.1"), route("192.168.0.0/16")) == []
    ((severity, about, symptom),) = told(lan("10.200.2.128/25", "late"))
    assert (severity, about) == ("error", "network 10.200.2.128/25 on late")
    assert "allowed IP 10.200.2.0/24 of peer" in symptom
    ((severity, about, symptom),) = told(lan(str(web), "docker0", virtual=True))
    assert (severity, "service web" in symptom) == ("error", True)
    assert [each[0] for each in told(DOCKER, lan("10.0.0.0/8"), route("10.0.0.0/8"), gateway("10.200.9.9"))] == [
        "error",
        "error",
        "hint",
        "error",
    ]
    assert [each[0] for each in told(route("10.200.240.0/24"))] == ["warning"]
    announce(state, ip_network("192.168.77.0/24"))
    ((severity, about, _),) = told(lan("192.168.77.0/25", "late"))
    assert (severity, about) == ("error", "network 192.168.77.0/25 on late")
    assert overlaps.findings(new_state(), [lan(str(CLUSTER))]) == []
