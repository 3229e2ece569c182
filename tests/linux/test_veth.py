"""Attach and detach of real processes in real namespaces; after every failure host and container are as before."""

import errno
import json
import subprocess
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest
from veth_legs import BRIDGE, NODE, VERSIONS, global_leg, make_bridge, make_node, refusal, service_leg, udp, udp_inside

from overlayd import fault
from overlayd.linux import bridge, veth, veth_removal
from overlayd.linux.observe import observe, observe_veth
from overlayd.model.objects import GROUP_VETH


@VERSIONS
def test_a_service_leg_is_what_was_wanted(host, container, shell, version):
    make_bridge(version)
    box = container()
    wanted = service_leg(box, version=version)
    veth.create(wanted)
    assert observe_veth(wanted.name, box.netns) == wanted
    inner = {each["ifname"]: each for each in json.loads(box.run("ip -j -d address"))}
    assert inner.keys() == {"lo", "eth0"}
    assert "UP" in inner["lo"]["flags"] and "UP" in inner["eth0"]["flags"]
    assert (inner["eth0"]["mtu"], inner["eth0"]["address"]) == (1340, "02:00:00:00:00:05")
    assert (inner["eth0"]["num_tx_queues"], inner["eth0"]["num_rx_queues"]) == (1, 1)
    own = [each for each in inner["eth0"]["addr_info"] if each["scope"] == "global"]
    assert [(each["local"], each["prefixlen"]) for each in own] == [
        (str(wanted.address.ip), wanted.address.network.prefixlen)
    ]
    default = json.loads(box.run(f"ip -j -{version} route show default"))
    assert [(route["gateway"], route["dev"]) for route in default] == [(str(wanted.gateway), "eth0")]
    (outer,) = json.loads(shell(f"ip -j -d link show {wanted.name}"))
    assert (outer["master"], outer["mtu"], int(outer["group"])) == ("zl-web-b", 1340, GROUP_VETH)
    assert (outer["address"], outer["linkinfo"]["info_slave_data"]["state"]) == ("fe:00:00:00:00:05", "forwarding")


@VERSIONS
def test_the_first_packet_passes_both_ways(host, container, version):
    """To the gateway and back, and between containers, with nothing sent before and nothing sent twice."""
    make_bridge(version)
    boxes = [container() for _ in range(8)]
    gateway = udp(version, ip_interface(BRIDGE[version]).ip)
    sockets = []
    for number, box in enumerate(boxes, 5):
        wanted = service_leg(box, number, version)
        veth.create(wanted)
        mine = udp_inside(box, version, wanted.address.ip)
        mine.sendto(b"ping", (str(wanted.gateway), 5000))
        data, origin = gateway.recvfrom(100)
        assert (data, origin[0]) == (b"ping", str(wanted.address.ip))
        gateway.sendto(b"pong", origin)
        assert mine.recv(100) == b"pong"
        if sockets:
            mine.sendto(b"hello", sockets[-1].getsockname())
            assert sockets[-1].recv(100) == b"hello"
        sockets.append(mine)
    for each in (gateway, *sockets):
        each.close()


@VERSIONS
def test_the_first_container_of_a_new_bridge_is_answered_at_once(host, container, version):
    """The bridge itself has no carrier before its first port."""
    box = container()
    for _ in range(10):
        make_bridge(version)
        wanted = service_leg(box, version=version)
        veth.create(wanted)
        gateway, mine = udp(version, wanted.gateway), udp_inside(box, version, wanted.address.ip)
        gateway.sendto(b"hello", mine.getsockname())
        assert mine.recv(100) == b"hello"
        gateway.close()
        mine.close()
        veth_removal.delete([wanted.name])
        bridge.delete("zl-web-b")


@VERSIONS
def test_the_host_can_send_first(host, container, version):
    make_bridge(version)
    gateway = udp(version, ip_interface(BRIDGE[version]).ip)
    for number in range(5, 10):
        wanted = service_leg(box := container(), number, version)
        veth.create(wanted)
        mine = udp_inside(box, version, wanted.address.ip)
        gateway.sendto(b"hello", mine.getsockname())
        assert mine.recv(100) == b"hello"
        mine.close()
    gateway.close()


@VERSIONS
def test_a_global_leg_works_without_a_bridge(host, container, shell, version):
    make_node(shell, version)
    box = container()
    wanted = global_leg(box, version)
    veth.create(wanted)
    assert observe_veth(wanted.name, box.netns) == wanted
    node, mine = udp(version, wanted.gateway), udp_inside(box, version, wanted.address.ip)
    mine.sendto(b"ping", (str(wanted.gateway), 5000))
    data, origin = node.recvfrom(100)
    assert (data, origin[0]) == (b"ping", str(wanted.address.ip))
    node.sendto(b"pong", origin)
    assert mine.recv(100) == b"pong"
    node.close()
    mine.close()


def test_both_legs_and_both_go(host, container, shell):
    make_bridge()
    make_node(shell)
    before = host()
    box = container()
    legs = [service_leg(box), global_leg(box)]
    for wanted in legs:
        veth.create(wanted)
    assert "eth0" in box.run("ip link") and "eth1" in box.run("ip link")
    veth_removal.delete([wanted.name for wanted in legs])
    assert host() == before
    assert "eth" not in box.run("ip -br link")


@VERSIONS
def test_a_host_end_has_ipv6_where_it_routes_it(host, container, shell, version):
    """Else each of a thousand would have addresses and routes, which the kernel looks at when one link changes."""
    make_bridge(version)
    make_node(shell, version)
    box = container()
    port, routed = service_leg(box, version=version), global_leg(box, version)
    for wanted in (port, routed):
        veth.create(wanted)
    veth.change(replace(port, mtu=1300), port)
    shown = [
        shell(f"ip -6 address show dev {each.name}; ip -6 route show table all dev {each.name}")
        for each in (port, routed)
    ]
    assert [bool(each.strip()) for each in shown] == [False, version == 6]


def test_ipv6_switched_off_inside_is_switched_on_for_our_interface(host, container):
    make_bridge(6)
    box = container()
    box.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1")
    wanted = service_leg(box, version=6)
    veth.create(wanted)
    assert observe_veth(wanted.name, box.netns) == wanted
    assert box.run("sysctl -n net.ipv6.conf.default.disable_ipv6").strip() == "1"


OWN_AFFAIR = [
    "ip link set eth0 down",
    "ip link set eth0 mtu 1300",
    "ip address flush dev eth0",
    "ip -{version} route delete default",
    "ip link set lo down",
    "ip link set eth0 name lan0",
]


@pytest.mark.parametrize(
    ("damage", "version"),
    # An end that goes down loses its IPv6 addresses, and then looks as if it had never been configured.
    [(damage, version) for damage in OWN_AFFAIR for version in (4, 6) if (version, "eth0 down" in damage) != (6, True)],
)
def test_what_a_container_made_of_its_end_stays(host, container, shell, damage, version):
    make_bridge(version)
    wanted = service_leg(box := container(), version=version)
    veth.create(wanted)
    box.run(f"sh -c '{damage.format(version=version)}'")
    before = inside(box)
    assert observe([wanted])[wanted.key] == wanted
    shell(f"ip link set {wanted.name} nomaster")
    seen = observe([wanted])[wanted.key]
    assert seen != wanted
    veth.change(seen, wanted)
    assert observe([wanted])[wanted.key] == wanted
    if "mtu" not in damage:
        assert inside(box) == before


def inside(box):
    return box.run("sh -c 'ip -o -d address; ip route; ip -6 route'")


@VERSIONS
def test_an_inner_end_that_was_never_configured_is_configured_in_place(host, container, shell, version):
    """As after a death between the birth of the pair and its configuration."""
    make_bridge(version)
    wanted = service_leg(box := container(), version=version)
    veth.create(wanted)
    index = json.loads(box.run("ip -j link show eth0"))[0]["ifindex"]
    box.run("sh -c 'ip address flush dev eth0; ip link set eth0 down'")
    seen = observe([wanted])[wanted.key]
    assert seen != wanted
    veth.change(seen, wanted)
    assert observe_veth(wanted.name, box.netns) == wanted
    assert json.loads(box.run("ip -j link show eth0"))[0]["ifindex"] == index


def test_a_route_of_ours_that_leads_elsewhere_is_put_right(host, container):
    make_bridge()
    wanted = service_leg(box := container())
    veth.create(wanted)
    box.run("ip route replace default via 10.9.0.2 proto 111")
    veth.change(observe([wanted])[wanted.key], wanted)
    assert observe_veth(wanted.name, box.netns) == wanted


@VERSIONS
def test_the_routes_of_another_cluster_go_when_it_is_renumbered(host, container, shell, version):
    make_node(shell, version)
    old = global_leg(box := container(), version)
    veth.create(old)
    gateway = old.gateway + 1
    shell(f"ip address add {gateway}/128 dev node0 nodad" if version == 6 else f"ip address add {gateway} dev node0")
    wider = ip_interface(NODE[version]).network.supernet()
    for have, want in ((old, replace(old, routes=frozenset({wider}), gateway=gateway)), (None, old)):
        veth.change(have or observe([want])[want.key], want)
        assert observe_veth(want.name, box.netns) == want
        ours = json.loads(box.run(f"ip -j -{version} route show proto 111"))
        assert {route["dst"] for route in ours} == {str(want.gateway), *map(str, want.routes)}


def test_a_new_mtu_is_set_in_place_on_both_ends(host, container, shell):
    make_bridge()
    have = service_leg(box := container())
    veth.create(have)
    index = json.loads(shell(f"ip -j link show {have.name}"))[0]["ifindex"]
    want = replace(have, mtu=1300)
    veth.change(have, want)
    assert observe_veth(want.name, box.netns) == want
    assert json.loads(shell(f"ip -j link show {have.name}"))[0]["ifindex"] == index


def test_a_pair_that_ends_elsewhere_is_made_anew(host, container):
    make_bridge()
    box, other = container(), container()
    wanted = service_leg(box)
    veth.create(replace(wanted, netns=other.netns))
    veth.change(observe_veth(wanted.name, box.netns), wanted)
    assert observe_veth(wanted.name, box.netns) == wanted
    assert "eth0" not in other.run("ip -br link")


def test_a_dead_process(host, container):
    make_bridge()
    box = container()
    box.kill()
    before = host()
    assert refusal(service_leg(box)).errno == errno.ESRCH
    assert host() == before


def test_a_reused_pid(host, container):
    make_bridge()
    box = container()
    before = host()
    wanted = service_leg(box)
    assert refusal(replace(wanted, netns=replace(box.netns, started=1))).errno == errno.ESRCH
    assert host() == before


def test_a_process_in_the_hosts_own_namespace(host, container):
    make_bridge()
    box = container(own_namespace=False)
    before = host()
    assert refusal(service_leg(box)).errno == errno.EINVAL
    assert host() == before


def at_point(monkeypatch, moment, what):
    """Do something when an attach passes a fault point."""
    monkeypatch.setattr(fault, "ARMED", True)
    monkeypatch.setattr(fault, "point", lambda name: what() if name == moment else None)


@VERSIONS
@pytest.mark.parametrize("moment", ["netlink:create veth", "veth:born", "netlink:set up", "veth:configured"])
def test_a_process_that_exits_in_the_middle(host, container, monkeypatch, moment, version):
    make_bridge(version)
    box = container()
    before = host()
    at_point(monkeypatch, moment, box.kill)
    assert refusal(service_leg(box, version=version)).errno == errno.ESRCH
    assert host() == before


@pytest.mark.parametrize("moment", ["veth:born", "netlink:add forwarding entry"])
def test_a_host_end_deleted_in_the_middle(host, container, shell, monkeypatch, moment):
    make_bridge()
    box = container()
    before = host()
    at_point(monkeypatch, moment, lambda: subprocess.run(["ip", "link", "delete", f"veth-{box.pid}-s"], check=False))
    assert refusal(service_leg(box)).errno == errno.ENODEV
    assert host() == before


def test_a_missing_bridge(host, container):
    box = container()
    before = host()
    refused = refusal(service_leg(box))
    assert (refused.errno, refused.object) == (errno.ENODEV, "zl-web-b")
    assert host() == before


def test_a_master_that_is_no_bridge(host, container, shell):
    shell("ip link add zl-web-b type veth peer name other")
    box = container()
    before, inside = host(), box.run("ip link")
    assert refusal(service_leg(box)).errno == errno.EOPNOTSUPP
    assert (host(), box.run("ip link")) == (before, inside)


def test_a_gateway_that_is_not_on_link(host, container):
    make_bridge()
    box = container()
    before, inside = host(), box.run("ip -br link")
    refused = refusal(replace(service_leg(box), gateway=ip_address("192.0.2.1")))
    assert (refused.operation, refused.object) == ("add route", "0.0.0.0/0")
    assert refused.errno == errno.ENETUNREACH
    assert host() == before
    assert box.run("ip -br link").replace("UNKNOWN", "DOWN   ").split()[0] == inside.split()[0] == "lo"
    assert "eth0" not in box.run("ip link")


def test_an_interface_of_that_name_is_there_already(host, container):
    make_bridge()
    box = container()
    box.run("ip link add eth0 type bridge")
    before = host()
    refused = refusal(service_leg(box))
    assert refused.errno == errno.EEXIST
    assert "already has an interface eth0" in str(refused)
    assert host() == before
    assert "eth0" in box.run("ip link")


def test_a_leftover_of_ours_is_replaced(host, container, shell):
    make_bridge()
    box = container()
    wanted = service_leg(box)
    shell(f"ip link add {wanted.name} group {GROUP_VETH} type veth peer name eth0 netns {box.pid}")
    veth.create(wanted)
    assert observe_veth(wanted.name, box.netns) == wanted


def test_a_leftover_is_not_blamed_for_a_taken_name_inside(host, container, shell):
    make_bridge()
    box = container()
    wanted = service_leg(box)
    box.run("ip link add eth0 type bridge")
    shell(f"ip link add {wanted.name} group {GROUP_VETH} type veth peer name left")
    assert "already has an interface eth0" in str(refusal(wanted))


@pytest.mark.parametrize("kind", ["bridge", "veth peer name left"])
def test_a_link_of_that_name_without_our_mark_is_left_alone(host, container, shell, kind):
    make_bridge()
    box = container()
    wanted = service_leg(box)
    shell(f"ip link add {wanted.name} type {kind}")
    before = host()
    refused = refusal(wanted)
    assert refused.errno == errno.EEXIST
    assert "without our mark" in str(refused)
    assert host() == before


def test_a_full_bridge_names_itself_and_its_limit(host, container, shell):
    make_bridge()
    pairs = "".join(f"link add f{number} type veth peer name g{number}\n" for number in range(512))
    ports = [f"{end}{number}" for number in range(512) for end in "fg"][:1023]
    batch = pairs + "".join(f"link set {port} master zl-web-b\n" for port in ports)
    subprocess.run(["ip", "-batch", "-"], input=batch, text=True, check=True)
    before = host()
    refused = refusal(service_leg(box := container()))
    assert (refused.errno, refused.object) == (errno.EXFULL, "zl-web-b")
    assert "1023 ports" in str(refused)
    assert host() == before
    shell("ip link delete f77")
    veth.create(wanted := service_leg(box))
    assert observe_veth(wanted.name, box.netns) == wanted


def test_no_descriptor_stays_open(host, container):
    make_bridge()
    box = container()
    wanted = service_leg(box)
    before = descriptors()
    veth.create(wanted)
    refusal(replace(wanted, bridge="nope"))
    veth_removal.delete([wanted.name])
    refusal(replace(wanted, gateway=ip_address("192.0.2.1")))
    assert descriptors() <= before


def descriptors():
    return set(Path("/proc/self/fd").iterdir())
