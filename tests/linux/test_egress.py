"""Which default route counts, in a host with several, the MTU that follows, and what leaves the host."""

import subprocess
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest
from lab.patience import until
from throwaway import Namespace

from overlayd.linux import rtnetlink as rt
from overlayd.linux.egress import (
    VIRTUAL_PREFIXES,
    Egress,
    attachment,
    can_be_uplink,
    next_link,
    overlay_mtu,
    physical_addresses,
    physical_egress,
    source_towards,
)
from overlayd.linux.netlink import Netlink
from overlayd.model.objects import GROUP_BRIDGE


@pytest.fixture
def uplink(host, shell):
    """Makes an interface with addresses and a default route for each, by the name of a bridge."""

    def make(name, mtu=1500, metric=100, addresses=("192.0.2.2/24",)):
        shell(f"ip link add {name} type bridge; ip link set {name} mtu {mtu} up")
        for address in addresses:
            gateway = ip_address(address.partition("/")[0]) + 7
            shell(f"ip address add {address} dev {name} {'nodad' if gateway.version == 6 else ''}")
            shell(f"ip -{gateway.version} route add default via {gateway} dev {name} metric {metric}")

    return make


def test_no_default_route(host):
    assert physical_egress() is None


def test_the_lowest_metric_counts(uplink):
    uplink("en0", metric=300)
    uplink("en1", metric=50, mtu=9000, addresses=["198.51.100.2/24"])
    uplink("en2", metric=100, addresses=["203.0.113.2/24"])
    assert physical_egress() == Egress("en1", 9000, ip_address("198.51.100.2"), ipv6=False, alone=False)


@pytest.mark.parametrize("prefix", [prefix for prefix in VIRTUAL_PREFIXES if prefix != "br-"])
def test_virtual_interfaces_do_not_count(uplink, prefix):
    name = f"{prefix}9"
    uplink(name, metric=1)
    assert physical_egress() is None
    uplink("en0", metric=100, addresses=["198.51.100.2/24"])
    assert physical_egress().interface == "en0"


@pytest.mark.parametrize("name", ["br-lan", "br-ex", "bond0", "eth0.100"])
def test_a_bridge_of_the_host_is_the_uplink_if_there_is_no_other(uplink, shell, name):
    uplink(name, metric=1, mtu=1400)
    assert physical_egress().interface == name
    assert physical_addresses() == [ip_address("192.0.2.2")]
    shell("ip link add wg0 type bridge; ip address add 203.0.113.2/24 dev wg0; ip link set wg0 up")
    shell("ip route add default via 203.0.113.9 dev wg0 metric 0")
    assert physical_egress().interface == name, "a tunnel that takes the default route is not the way out of the host"
    uplink("en0", metric=100, addresses=["198.51.100.2/24"])
    assert physical_egress().interface == ("en0" if name.startswith("br-") else name)


@pytest.mark.parametrize(
    ("name", "kind", "can"),
    [
        ("eth0", "", True),
        ("tun.7", "vlan", True),
        ("wgbond", "bond", True),
        ("lom1", "", True),
        ("br-ex", "openvswitch", True),
        ("wg0", "wireguard", False),
        ("tun0", "tun", False),
        ("docker0", "bridge", False),
        ("virbr0", "bridge", False),
        ("cali1", "veth", False),
        ("flannel.1", "vxlan", False),
    ],
)
def test_what_can_be_the_uplink(name, kind, can):
    link = rt.Link(7, 1, name, 1500, 0, 0, 0, kind, "", b"", ())
    assert can_be_uplink(link) == can
    assert not can_be_uplink(link._replace(group=GROUP_BRIDGE))
    assert not can_be_uplink(link._replace(ifindex=rt.LOOPBACK))


def test_our_own_links_are_never_the_uplink(uplink, shell):
    uplink("br-mine")
    shell(f"ip link set br-mine group {GROUP_BRIDGE}")
    assert physical_egress() is None


def test_ipv4_comes_before_ipv6(uplink):
    uplink("en0", metric=1, mtu=1400, addresses=["2001:db8::2/64"])
    assert physical_egress() == Egress("en0", 1400, ip_address("2001:db8::2"), ipv6=True)
    uplink("en1", metric=900, addresses=["192.0.2.2/24"])
    assert physical_egress() == Egress("en1", 1500, ip_address("192.0.2.2"), ipv6=False, alone=False)


def test_the_mtu_of_the_route_and_its_source_win(uplink, shell):
    uplink("en0")
    shell("ip address add 192.0.2.77/24 dev en0")
    shell("ip route replace default via 192.0.2.9 dev en0 metric 100 mtu 1450 src 192.0.2.77")
    assert physical_egress() == Egress("en0", 1450, ip_address("192.0.2.77"), ipv6=False)


def test_one_of_several_next_hops(uplink, shell):
    uplink("veth9", metric=5)
    uplink("en0", metric=9, addresses=["198.51.100.2/24"])
    shell("ip route del default metric 5; ip route del default metric 9")
    shell("ip route add default nexthop via 192.0.2.9 dev veth9 nexthop via 198.51.100.9 dev en0")
    assert physical_egress().interface == "en0"


def test_a_default_route_of_another_table_does_not_count(uplink, shell):
    uplink("en0")
    shell("ip route del default; ip route add default via 192.0.2.9 dev en0 table 100")
    assert physical_egress() is None


def test_a_dead_next_hop_does_not_count(uplink, shell):
    uplink("en0")
    shell("ip link set en0 down")
    assert physical_egress() is None


@pytest.mark.parametrize(
    ("mtu", "ipv6", "expected"),
    [(1500, True, 1420), (1500, False, 1440), (9000, True, 8920), (1340, False, 1280), (1300, True, 1280)],
)
def test_overlay_mtu(mtu, ipv6, expected):
    assert overlay_mtu(Egress("en0", mtu, ip_address("192.0.2.2"), ipv6)) == expected


def test_overlay_mtu_without_an_egress():
    assert overlay_mtu(None) == 1420


@pytest.fixture(scope="module")
def netlink() -> Iterator[Netlink]:
    """A host with one link, and a default route for IPv4."""
    with Namespace() as host:
        host.ip(
            "link add d0 type veth peer name d1",
            "link set d1 up",
            "link set d0 up",
            "address add 10.9.0.1/24 dev d0",
            "address add 10.9.0.7/24 dev d0",
            "address add fd00::1/64 dev d0 nodad",
            "route add default via 10.9.0.2",
            "route add prohibit 192.0.2.128/25",
        )
        with host.entered():
            # The kernel hears of the carrier by itself, and has no route to an own IPv6 address before.
            until(lambda: subprocess.check_output(["ip", "-6", "route", "show", "table", "local", "fd00::1"]))
            netlink = Netlink()
        with netlink:
            yield netlink


@pytest.mark.parametrize(("text", "leaves"), [
    ("10.9.0.2", True),
    ("10.9.0.1", False),
    ("10.9.0.7", False),  # a second address of a network, whose preferred source is the first
    ("10.9.0.255", False),
    ("127.0.0.1", False),
    ("127.9.9.9", False),
    ("224.0.0.1", False),
    ("255.255.255.255", False),
    ("192.0.2.1", True),
    ("192.0.2.129", False),  # a prohibited part of what the default route reaches
    ("fd00::2", True),
    ("fd00::1", False),
    ("::1", False),
    ("ff02::1", False),
    ("2001:db8::1", False),  # no route
])  # fmt: skip
def test_only_other_hosts_are_left_for(netlink: Netlink, text: str, leaves: bool) -> None:
    assert (next_link(netlink, ip_address(text)) is not None) is leaves


def test_the_link_that_has_an_address_and_where_it_is(netlink: Netlink) -> None:
    link, networks = attachment(netlink, ip_address("10.9.0.1"))
    assert link == next_link(netlink, ip_address("10.9.0.2"))
    assert ip_network("10.9.0.0/24") in networks
    assert attachment(netlink, ip_address("10.9.0.2")) is None


@pytest.mark.parametrize(("text", "source"), [
    ("10.9.0.2", "10.9.0.1"),
    ("192.0.2.1", "10.9.0.1"),
    ("fd00::2", "fd00::1"),
    ("10.9.0.7", None),
    ("192.0.2.129", None),
    ("2001:db8::1", None),
])  # fmt: skip
def test_the_address_that_packets_carry(netlink: Netlink, text: str, source: str | None) -> None:
    found = source_towards(netlink, ip_address(text))
    assert (str(found) if found is not None else None) == source
