"""What this host reaches without us is read from links, addresses and routes; what is ours is not among it."""

import socket
from ipaddress import ip_interface

from veth_legs import make_bridge, service_leg

from overlayd.linux import device, neighbours, veth
from overlayd.linux.surroundings import host_networks
from overlayd.model.objects import Device


def told():
    return {str(each) for each in host_networks()}


def test_nothing_but_the_loopback_is_nothing(host):
    assert told() == set()


def test_networks_routes_and_gateways_that_are_not_ours(host, container, shell):
    make_bridge()
    veth.create(service_leg(container()))
    shell("ip tuntap add dev zl-x-g mode tun")
    device.configure(Device("", "zl-x-g", bytes(32), 51820, 1340, frozenset({ip_interface("10.2.0.1/16")})))
    assert told() == set(), "ours"
    shell("ip link add lan type veth peer name far; ip link set lan up; ip link set far up")
    shell("ip link add docker0 type bridge; ip link set docker0 up; ip address add 172.17.0.1/16 dev docker0")
    shell(
        "ip address add 192.0.2.7/24 dev lan; ip address add fd77::7/64 dev lan nodad; ip address add 10.9.9.9 dev lo"
    )
    shell("ip address add 198.51.100.1/32 dev lan noprefixroute")
    shell("ip route add default via 192.0.2.1; ip -6 route add default via fd77::1")
    shell("ip route add 10.50.0.0/16 via 192.0.2.2; ip route add 10.51.0.0/16 via 192.0.2.2 proto bgp")
    shell("ip route add 10.52.0.0/16 dev lan proto static metric 9; ip route add 10.53.0.0/16 via 192.0.2.2 table 9")
    assert told() == {
        "network 172.17.0.0/16 on docker0",
        "network 192.0.2.0/24 on lan",
        "network fd77::/64 on lan",
        "network 10.9.9.9/32 on lo",
        "network 198.51.100.1/32 on lan",
        "network 10.52.0.0/16 on lan",
        "the default gateway 192.0.2.1 on lan",
        "the default gateway fd77::1 on lan",
        "route 10.50.0.0/16 via 192.0.2.2 on lan",
    }
    assert {each.link for each in host_networks() if each.virtual} == {"docker0", "lo"}


def test_links_of_ours_are_looked_at_once(host, shell):
    make_bridge()
    shell("ip link add lan type veth peer name far; ip link set lan up; ip address add 192.0.2.7/24 dev lan")
    ours: set[int] = set()
    first = host_networks(ours)
    assert ours == {socket.if_nametoindex("zl-web-b")}
    shell("ip address add 192.0.3.7/24 dev lan; ip route add 10.50.0.0/16 dev lan")
    assert len(host_networks(ours)) == len(first) + 2
    assert host_networks(ours) == host_networks()
    shell("ip link delete zl-web-b")
    host_networks(ours)
    assert ours == set()


def test_routes_that_lead_nowhere_are_routes(host, shell):
    shell("ip route add blackhole 10.60.0.0/16; ip route add unreachable 10.61.0.0/16; ip route add prohibit 10.62.0.1")
    shell("ip -6 route add blackhole fd60::/48; ip route add unreachable default metric 4278198272")
    shell("ip route add unreachable 10.63.0.0/16 proto 111")  # of a fence
    networks = {str(each.network) for each in host_networks()}
    assert networks == {"10.60.0.0/16", "10.61.0.0/16", "10.62.0.1/32", "fd60::/48"}
    assert "route 10.60.0.0/16 to nowhere (ip route show 10.60.0.0/16)" in told()


def test_neighbour_tables_fill_and_tell_their_limit(host, shell):
    before = {table.version: table for table in neighbours.tables()}
    assert before.keys() == {4, 6}
    assert all(table.limit > 0 for table in before.values())
    shell("ip link add lan type veth peer name far; ip link set lan up")
    for number in range(200):
        shell(f"ip neigh add 10.7.0.{number + 1} lladdr 02:00:00:00:00:01 dev lan nud permanent")
    after = {table.version: table for table in neighbours.tables()}
    # All namespaces share the tables, and others may forget some meanwhile.
    assert after[4].entries > before[4].entries + 100
