"""What was made is what is seen, and what was damaged afterwards is seen to differ."""

import subprocess
import time
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest
from veth_legs import BRIDGE, VERSIONS, global_leg, make_bridge, make_node, service_leg

from overlayd.linux import bridge, device, netns, veth, veth_removal
from overlayd.linux.observe import (
    DeviceLink,
    bridges_named,
    observe,
    observe_bridge,
    observe_host,
    observe_service,
    observe_veth,
)
from overlayd.model.objects import (
    GROUP_BRIDGE,
    GROUP_DEVICE,
    GROUP_DOOMED,
    LONGEST_SCOPE,
    Alias,
    Bridge,
    Device,
    Proxy,
    Route,
)


def wg(name, scope, *addresses):
    return Device(scope, name, bytes(32), 51820, 1340, frozenset(map(ip_interface, addresses)))


@VERSIONS
def test_everything_comes_back_as_it_was_made(host, container, shell, version):
    """Beside much that is not ours: links, addresses and routes without our mark."""
    shell("ip link add zl-foreign-b type bridge; ip link add veth-1-x type veth peer name p; ip link set p up")
    shell("ip link set zl-foreign-b up; ip address add 10.77.0.1/24 dev zl-foreign-b; ip route add 10.78.0.0/16 dev p")
    make_bridge(version)
    make_node(shell, version)
    shell("ip tuntap add dev zl-x-g mode tun; ip tuntap add dev zl-a-d mode tun")
    device.configure(wg("zl-x-g", "", "10.2.0.1/16", "fd02::1/64"))
    device.configure(wg("zl-a-d", "a", "10.4.0.1/32"))
    aliases = [Alias("zl-x-g", ip_address(address)) for address in ("10.2.0.9", "fd02::9")]
    for alias in aliases:
        device.create_alias(alias)
    routes = [Route("a", "zl-a-d", ip_network(destination)) for destination in ("10.5.0.0/16", "fd05::/64")]
    for route in routes:
        device.create_routes([route])
    shell("ip neigh add proxy 10.9.9.9 dev zl-foreign-b; ip neigh add proxy 10.9.9.8 dev zl-web-b")
    proxies = [Proxy("web", "zl-web-b", ip_address(address)) for address in ("10.1.0.77", "fd01::77")]
    for proxy in proxies:
        bridge.create_proxy(proxy)
    boxes = [container(), container()]
    legs = [service_leg(boxes[0], 5, version), service_leg(boxes[1], 6, version), global_leg(boxes[1], version)]
    for leg in legs:
        veth.create(leg)
    wanted = [
        Bridge("web", "zl-web-b", ip_interface(BRIDGE[version]), 1340),
        DeviceLink("", "zl-x-g", 1340, frozenset(map(ip_interface, ("10.2.0.1/16", "fd02::1/64")))),
        DeviceLink("a", "zl-a-d", 1340, frozenset({ip_interface("10.4.0.1/32")})),
        *aliases,
        *routes,
        *proxies,
        *legs,
    ]
    assert observe(legs) == {each.key: each for each in wanted}
    assert observe_bridge("zl-foreign-b") is None
    assert observe_bridge("nope") is None
    assert observe_veth("veth-1-x", boxes[0].netns) is None


@VERSIONS
@pytest.mark.parametrize(
    "damage",
    [
        "true",
        "ip link set {name} nomaster",
        "ip link set {name} master zl-other-b",
        "ip link set {name} down mtu 1300",
        "ip link delete {name}",
        "bridge link set dev {name} learning on; bridge fdb del {mac} dev {name} master",
        "ip link set zl-web-b alias other",
        "ip address flush dev zl-web-b",
        "ip route flush dev zl-web-b; ip -6 route flush dev zl-web-b",
        "ip route flush proto 111; ip -6 route flush proto 111",
        "ip address flush dev {leg}",
        "ip neigh flush proxy; ip -6 neigh flush proxy",
    ],
)
def test_a_service_by_itself_shows_what_it_shows_among_all(host, container, shell, version, damage):
    make_bridge(version)
    make_node(shell, version)
    shell(f"ip link add zl-other-b type bridge; ip link set zl-other-b up group {GROUP_BRIDGE}")
    shell("ip link set zl-other-b alias 'overlayd bridge other'; ip link add p type veth peer name q master zl-other-b")
    proxy = Proxy("web", "zl-web-b", ip_address({4: "10.1.0.77", 6: "fd01::77"}[version]))
    bridge.create_proxy(proxy)
    boxes = [container(), container()]
    legs = [service_leg(boxes[0], 5, version), service_leg(boxes[1], 6, version), global_leg(boxes[1], version)]
    for leg in legs:
        veth.create(leg)
    shell(damage.format(name=legs[0].name, leg=legs[2].name, mac=legs[0].mac.hex(":")))
    among = observe_host(legs)
    alone = observe_service("zl-web-b", legs)
    wanted = [("bridge", "web"), proxy.key, *(leg.key for leg in legs)]
    assert {key: among[key] for key in wanted if key in among} == {key: alone[key] for key in wanted if key in alone}
    assert damage != "true" or all(among[leg.key] == leg for leg in legs)
    assert alone.keys() <= {*wanted, ("bridge", "other")}  # which an end of it may have been moved to
    assert observe_service("zl-nope-b", legs) is None


def test_nothing_is_nothing(host):
    assert observe([]) == {}
    assert bridges_named("zl-", "-b") == []


@pytest.mark.parametrize(
    "damage",
    [
        "ip link delete zl-web-b",
        "ip link set {name} nomaster",
        "ip link set {name} down",
        "ip link set {name} mtu 1300",
        "ip link set {name} address 02:00:00:00:00:99",
        f"ip link set {{name}} group {GROUP_DOOMED}",
        "ip link set zl-web-b alias other",
        "nsenter -n -t {pid} sh -c 'ip link set eth0 down; ip address flush dev eth0'",
        "nsenter -n -t {pid} ip route add 10.44.0.0/16 via 10.9.0.1 proto 111",
        "nsenter -n -t {pid} ip route replace default via 10.9.0.2 proto 111",
        "kill {pid}",
    ],
)
def test_a_damaged_veth_differs(host, container, shell, damage):
    make_bridge()
    box = container()
    wanted = service_leg(box)
    veth.create(wanted)
    shell(damage.format(name=wanted.name, pid=box.pid))
    if damage.startswith("kill"):
        box.process.wait()
        assert observe_veth(wanted.name, box.netns) != wanted
        assert observe([wanted]).get(wanted.key) != wanted
        return
    assert observe_veth(wanted.name, box.netns) != wanted
    seen = observe([wanted])[wanted.key]
    assert seen != wanted
    assert seen.name == wanted.name
    veth_removal.delete([wanted.name])
    bridge.create(Bridge("web", "zl-web-b", ip_interface(BRIDGE[4]), 1340))
    veth.create(wanted)
    assert observe_veth(wanted.name, box.netns) == wanted


HOST_DAMAGE = [
    "ip link set {name} nomaster",
    "ip link set {name} down",
    "ip link set {name} mtu 1300",
    "ip link set {name} address 02:00:00:00:00:99",
    f"ip link set {{name}} group {GROUP_DOOMED}",
    "ip link set {name} group 0",
    "ip link add br7 type bridge; ip link set {name} master br7",
]


@pytest.mark.parametrize("damage", HOST_DAMAGE)
def test_damage_to_the_host_end_is_seen_from_the_host_alone(host, container, shell, damage):
    make_bridge()
    wanted = service_leg(box := container())
    veth.create(wanted)
    assert observe_host([wanted])[wanted.key] == wanted
    shell(damage.format(name=wanted.name, pid=box.pid))
    seen = observe_host([wanted])[wanted.key]
    assert seen != wanted
    veth.change(seen, wanted)
    assert observe_veth(wanted.name, box.netns) == wanted == observe_host([wanted])[wanted.key]


def test_from_the_host_alone_the_inner_end_is_believed_and_a_stray_veth_is_seen(host, container, shell):
    make_bridge()
    box, other = container(), container()
    wanted, stray = service_leg(box), service_leg(other, 6)
    for each in (wanted, stray):
        veth.create(each)
    box.run("ip route delete default")
    seen = observe_host([wanted])
    assert seen[wanted.key] == wanted
    assert seen[stray.key].fault == "its other end cannot be seen"
    shell(f"ip link delete {wanted.name}")
    assert wanted.key not in observe_host([wanted])


@VERSIONS
def test_a_global_leg_is_put_right_in_place(host, container, shell, version):
    make_node(shell, version)
    wanted = global_leg(container(), version)
    veth.create(wanted)
    for damage in ("ip link set {name} down", f"ip -{version} route delete {wanted.address.ip}"):
        shell(damage.format(name=wanted.name))
        seen = observe_host([wanted])[wanted.key]
        assert seen != wanted
        veth.change(seen, wanted)
        assert observe_host([wanted])[wanted.key] == wanted


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        ("ip link set zl-web-b down", "it is down, its route to 10.9.0.0/24 is gone"),
        ("ip route del 10.9.0.0/24", "its route to 10.9.0.0/24 is gone"),
        ("ip link set zl-web-b address 02:00:00:00:00:99", "its MAC is 02:00:00:00:00:99, not {mac}"),
        (
            "echo 1 > /proc/sys/net/ipv4/conf/zl-web-b/rp_filter",
            "net/ipv4/conf/zl-web-b/rp_filter is 1, it must be 2",
        ),
    ],
)
def test_a_bridge_says_what_is_wrong_with_it(host, shell, damage, fault):
    wanted = Bridge("web", "zl-web-b", ip_interface(BRIDGE[4]), 1340)
    bridge.create(wanted)
    shell(damage)
    seen = observe([])[wanted.key]
    assert seen.fault == fault.format(mac=bridge.mac(wanted.address.ip).hex(":"))
    assert replace(seen, fault="") == wanted, "the rest is told by the fields"


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        ("ip link set {name} down", "it is down"),
        ("nsenter -n -t {pid} ip link set lo down", "the container's lo is down"),
        ("nsenter -n -t {pid} ip link set eth0 down", "eth0 is down"),
        ("nsenter -n -t {pid} ip link set eth0 mtu 1300", "its ends have MTU 1340 and 1300"),
        ("ip link set {name} group 7", "it is in link group 0x7"),
        ("ip link add br7 type bridge; ip link set {name} master br7", "it is on br7, which is no bridge of ours"),
        ("nsenter -n -t {pid} ip link delete eth0", None),
    ],
)
def test_a_veth_says_what_is_wrong_with_it(host, container, shell, damage, fault):
    make_bridge()
    wanted = service_leg(box := container())
    veth.create(wanted)
    shell(damage.format(name=wanted.name, pid=box.pid))
    seen = observe_veth(wanted.name, box.netns)
    if fault is None:
        assert seen is None, "one end goes with the other"
        return
    assert fault in seen.fault.split(", ") or seen.fault == fault


@VERSIONS
def test_a_global_leg_on_a_foreign_bridge_is_seen_and_put_right(host, container, shell, version):
    make_node(shell, version)
    wanted = global_leg(box := container(), version)
    veth.create(wanted)
    shell(f"ip link add br7 type bridge; ip link set {wanted.name} master br7")
    seen = observe_host([wanted])[wanted.key]
    assert "it is on br7, which is no bridge of ours" in seen.fault
    veth.change(seen, wanted)
    assert observe_host([wanted])[wanted.key] == wanted == observe_veth(wanted.name, box.netns)


def test_a_global_leg_without_its_host_route_differs(host, container, shell):
    make_node(shell)
    wanted = global_leg(box := container())
    veth.create(wanted)
    shell(f"ip route delete {wanted.address.ip}")
    assert observe_veth(wanted.name, box.netns) != wanted


def test_a_veth_whose_namespace_is_not_known_or_not_to_be_had_differs(host, container):
    make_bridge()
    box, other = container(), container()
    wanted = service_leg(box)
    veth.create(wanted)
    reused = netns.Netns(box.pid, 1, box.netns.inode)
    for veths in ([], [replace(wanted, netns=other.netns)], [replace(wanted, netns=reused)]):
        seen = observe(veths)
        assert seen[wanted.key] != wanted
        assert seen[wanted.key].fault in ("its other end cannot be seen", "its other end is not in the container")
        assert seen[("bridge", "web")].fault == ""


@pytest.mark.parametrize(
    "damage",
    [
        "ip link set zl-web-b down",
        "ip link set zl-web-b mtu 1300",
        "ip link set zl-web-b address 02:00:00:00:00:99",
        "ip address flush dev zl-web-b",
        "ip address add 10.9.0.2/24 dev zl-web-b",
        "ip link delete zl-web-b",
        "ip link set zl-web-b group 0",
    ],
)
def test_a_damaged_bridge_differs_and_is_put_right(host, shell, damage):
    wanted = Bridge("web", "zl-web-b", ip_interface(BRIDGE[4]), 1340)
    bridge.create(wanted)
    shell(damage)
    assert observe_bridge("zl-web-b") != wanted
    assert observe([]).get(wanted.key) != wanted
    bridge.create(wanted)
    assert observe_bridge("zl-web-b") == wanted == observe([])[wanted.key]


@pytest.mark.parametrize(
    ("version", "damage"),
    [
        (4, "ip route del 10.9.0.0/24"),
        (4, "ip route replace 10.9.0.0/24 dev lo"),
        (6, "ip -6 route del fd09::/112 dev zl-web-b"),
        (6, "ip -6 route del fe80::/64 dev zl-web-b"),
    ],
)
def test_a_bridge_without_its_connected_route_differs_and_is_put_right(host, shell, version, damage):
    wanted = Bridge("web", "zl-web-b", ip_interface(BRIDGE[version]), 1340)
    bridge.create(wanted)
    before = routes(shell)
    shell(damage)
    seen = observe([])[wanted.key]
    assert seen != wanted
    bridge.change(seen, wanted)
    assert observe([])[wanted.key] == wanted
    foreign = ["10.9.0.0/24 dev lo scope link"] if "replace" in damage else []
    assert [route for route in routes(shell) if route not in foreign] == before
    assert foreign == [route for route in routes(shell) if route not in before], "what is not ours stays"


@pytest.mark.parametrize("damage", ["ip route del 10.2.0.0/16", "ip -6 route del fd02::/64 dev zl-x-g"])
def test_a_device_without_its_connected_route_differs_and_is_put_right(host, shell, damage):
    shell("ip tuntap add dev zl-x-g mode tun")
    wanted = wg("zl-x-g", "", "10.2.0.1/16", "fd02::1/64")
    device.configure(wanted)
    device.create_alias(Alias("zl-x-g", ip_address("10.2.0.9")))
    before = routes(shell)
    shell(damage)
    lost = "fd02::/64" if "fd02" in damage else "10.2.0.0/16"
    assert observe([])[wanted.key].fault == f"its route to {lost} is gone"
    device.change(wanted, wanted)
    assert observe([])[wanted.key].fault == ""
    assert routes(shell) == before
    wanted = wg("zl-x-g", "", "10.2.0.17/16", "fd02::1/64")
    device.change(wg("zl-x-g", "", "10.2.0.1/16", "fd02::1/64"), wanted)
    assert routes(shell) == [route.replace("src 10.2.0.1", "src 10.2.0.17") for route in before]


def routes(shell):
    shown = shell("ip -4 route; ip -6 route").splitlines()
    return sorted(route.replace(" linkdown", "").strip() for route in shown)


def test_a_device_that_is_down_differs(host, shell):
    shell("ip tuntap add dev zl-x-g mode tun")
    device.configure(wg("zl-x-g", "", "10.2.0.1/16"))
    shell("ip link set zl-x-g down")
    assert observe([])[("device", "")].fault == "it is down, its route to 10.2.0.0/16 is gone"
    shell(f"ip link set zl-x-g group {GROUP_DEVICE} alias other")
    assert observe([]) == {}


def test_bridges_by_name(host, shell):
    make_bridge()
    shell(
        "ip link add zl-old-b type bridge; ip link add br7 type bridge; ip link property add dev br7 altname zl-alt-b"
    )
    shell("ip link add zl-not-b type veth peer name p0; ip link add docker0 type bridge")
    shell("ip link add veth-2-s type veth peer name p2; ip link add veth-1-s type veth peer name p1")
    shell("ip link set veth-2-s master zl-old-b; ip link set veth-1-s master zl-old-b; ip link set p0 master docker0")
    found = {bridge.names: bridge.ports for bridge in bridges_named("zl-", "-b")}
    assert found == {
        ("zl-web-b",): (),
        ("zl-old-b",): ("veth-1-s", "veth-2-s"),
        ("br7", "zl-alt-b"): (),
    }


def test_a_bridge_is_lived_on_while_a_process_is_behind_a_port_of_it(host, shell, container):
    inside, gone, _elsewhere = container(), container(), container()
    shell("ip link add zl-a-b type bridge; ip link add zl-b-b type bridge; ip link add zl-c-b type bridge")
    for name, master, where in (("v1", "zl-a-b", f"netns {inside.pid}"), ("v2", "zl-b-b", f"netns {gone.pid}")):
        shell(f"ip link add {name} master {master} type veth peer name eth0 {where}")
    shell("ip link add v3 master zl-c-b type veth peer name here")  # the other end has not been moved anywhere
    with Path(f"/proc/{gone.pid}/ns/net").open():
        gone.kill()
        found = {each.names[0]: each.namespaces for each in bridges_named("zl-", "-b")}
        assert {name: len(namespaces) for name, namespaces in found.items()} == {"zl-a-b": 1, "zl-b-b": 1, "zl-c-b": 0}
        everywhere = frozenset().union(*found.values())
        assert netns.inhabited(everywhere) == found["zl-a-b"]
        assert netns.inhabited(found["zl-b-b"]) == frozenset()
        fellow = subprocess.Popen(["nsenter", "-t", str(inside.pid), "-n", "sleep", "60"])
        try:
            while Path(f"/proc/{fellow.pid}/ns/net").stat().st_ino != inside.netns.inode:
                time.sleep(0.01)
            inside.kill()
            assert netns.inhabited(everywhere) == found["zl-a-b"], "another process of the same container"
        finally:
            fellow.kill()
            fellow.wait()


@pytest.mark.parametrize("service", ["x" * LONGEST_SCOPE, "ü" * (LONGEST_SCOPE // 2), "a b\n/:c"])
def test_the_longest_and_oddest_names_of_services_come_back(host, service):
    wanted = Bridge(service, "zl-x-b", ip_interface("10.1.0.1/28"), 1340)
    bridge.create(wanted)
    assert observe_bridge("zl-x-b") == wanted
