"""Bridges, devices, names, routes, aliases and forwarding, as `ip` and /proc show them afterwards."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from overlayd.errors import MechanismError
from overlayd.linux import link, sysctl
from overlayd.linux.observe import bridges_named, observe_bridge
from overlayd.model.objects import LONGEST_SCOPE, Alias, Bridge, Device, Proxy, Route

WEB = Bridge("web", "zl-web-b", ip_interface("10.9.0.1/24"), 1340)
WEB6 = Bridge("web", "zl-web-b", ip_interface("fd09::1/112"), 1340)
BOTH = pytest.mark.parametrize("bridge", [WEB, WEB6], ids=["ipv4", "ipv6"])


def device(*addresses, name="zl-x-g", scope="", mtu=1340):
    return Device(scope, name, bytes(32), 51820, mtu, frozenset(map(ip_interface, addresses)))


@pytest.fixture
def tun(host, shell):
    """Makes a point-to-point link without link-layer addresses, which is what a WireGuard device is to the kernel."""

    def make(name):
        shell(f"ip tuntap add dev {name} mode tun")
        return name

    return make


def shown(shell, name):
    (found,) = json.loads(shell(f"ip -j -d address show dev {name}"))
    return found


def carried(shell, name):
    return {
        f"{each['local']}/{each['prefixlen']}" for each in shown(shell, name)["addr_info"] if each["scope"] != "link"
    }


@BOTH
def test_a_new_bridge_is_what_was_wanted(host, shell, bridge):
    link.create_bridge(bridge)
    assert observe_bridge(bridge.name) == bridge
    found = shown(shell, bridge.name)
    data = found["linkinfo"]["info_data"]
    assert (data["stp_state"], data["forward_delay"], data["mcast_snooping"]) == (0, 0, 0)
    assert (found["mtu"], found["ifalias"], "UP" in found["flags"]) == (1340, "overlayd bridge web", True)
    assert not any(each.get("tentative") for each in found["addr_info"])
    before = host()
    link.create_bridge(bridge)
    assert host() == before


def test_the_mac_depends_on_the_gateway_alone_and_not_on_the_ports(host, shell):
    link.create_bridge(WEB)
    mac = shown(shell, "zl-web-b")["address"]
    shell("ip link add low0 address 02:00:00:00:00:01 type veth peer name low1; ip link set low0 master zl-web-b")
    assert shown(shell, "zl-web-b")["address"] == mac
    link.delete_bridge("zl-web-b")
    link.create_bridge(WEB)
    assert shown(shell, "zl-web-b")["address"] == mac
    assert int(mac[:2], 16) & 3 == 2
    assert link.bridge_mac(ip_address("10.9.0.1")) != link.bridge_mac(ip_address("10.9.0.17"))


def test_a_bridge_of_that_name_is_adopted_and_put_right(host, shell):
    shell("ip link add zl-web-b type bridge stp_state 1; ip address add 10.8.0.1/24 dev zl-web-b")
    shell("ip link add p0 type veth peer name p1; ip link set p0 master zl-web-b")
    index = shown(shell, "zl-web-b")["ifindex"]
    link.create_bridge(WEB)
    assert observe_bridge("zl-web-b") == WEB
    found = shown(shell, "zl-web-b")
    assert (found["ifindex"], found["linkinfo"]["info_data"]["stp_state"]) == (index, 0)
    assert carried(shell, "zl-web-b") == {"10.9.0.1/24"}
    assert shown(shell, "p0")["master"] == "zl-web-b"


def test_a_foreign_link_of_that_name_is_left_alone(host, shell):
    shell("ip link add zl-web-b type veth peer name other")
    before = host()
    with pytest.raises(MechanismError) as raised:
        link.create_bridge(WEB)
    assert raised.value.errno == errno.EEXIST
    assert host() == before


def test_a_bridge_that_cannot_be_configured_is_not_left_behind(host):
    before = host()
    with pytest.raises(MechanismError) as raised:
        link.create_bridge(replace(WEB, mtu=1))
    assert raised.value.errno == errno.EINVAL
    assert host() == before


def test_the_longest_name_of_a_service_fits_its_bridge(host):
    bridge = replace(WEB, service="s" * LONGEST_SCOPE)
    link.create_bridge(bridge)
    assert observe_bridge(bridge.name) == bridge
    with pytest.raises(MechanismError):
        link.create_bridge(replace(bridge, service="s" * (LONGEST_SCOPE + 1), name="zl-longer-b"))


def test_a_bridge_changes_in_place(host, shell):
    link.create_bridge(WEB)
    shell("ip link add p0 type veth peer name p1; ip link set p0 master zl-web-b")
    index = shown(shell, "zl-web-b")["ifindex"]
    want = Bridge("web", "zl-new-b", ip_interface("10.9.1.1/25"), 1380)
    link.change_bridge(WEB, want)
    found = observe_bridge("zl-new-b")
    assert (found, found.name) == (want, "zl-new-b")
    assert carried(shell, "zl-new-b") == {"10.9.1.1/25"}
    assert shown(shell, "zl-new-b")["ifindex"] == index
    assert shown(shell, "p0")["master"] == "zl-new-b"
    assert [each.names for each in bridges_named("zl-", "-b")] == [("zl-new-b", "zl-web-b")]


def test_deleting_is_idempotent(host):
    before = host()
    link.create_bridge(WEB)
    link.delete_bridge("zl-web-b")
    link.delete_bridge("zl-web-b")
    link.delete_link("zl-web-b")
    assert host() == before


def test_a_device_is_dressed_with_exactly_its_addresses(host, shell, tun):
    tun("zl-x-g")
    shell("ip address add 10.1.0.1/16 dev zl-x-g; ip address add 10.1.0.2/32 dev zl-x-g")
    shell("ip -6 address add fe80::7/64 dev zl-x-g")
    link.dress_device(device("10.2.0.1/16", "fd02::1/64"))
    assert carried(shell, "zl-x-g") == {"10.2.0.1/16", "fd02::1/64"}
    found = shown(shell, "zl-x-g")
    assert (found["mtu"], found["ifalias"], "UP" in found["flags"]) == (1340, "overlayd device ", True)
    assert "fe80::7" in shell("ip address show dev zl-x-g")
    before = host()
    link.dress_device(device("10.2.0.1/16", "fd02::1/64"))
    assert host() == before


def test_a_family_that_the_device_does_not_use_is_left_alone(host, shell, tun):
    tun("zl-x-g")
    shell("ip -6 address add fd07::1/64 dev zl-x-g")
    link.dress_device(device("10.2.0.1/16"))
    assert carried(shell, "zl-x-g") == {"10.2.0.1/16", "fd07::1/64"}


def test_redressing_keeps_aliases_and_routes(host, shell, tun):
    tun("zl-x-g")
    have, want = device("10.2.0.1/16"), device("10.2.0.17/16", mtu=1380)
    link.dress_device(have)
    link.create_alias(Alias("zl-x-g", ip_address("10.2.0.9")))
    link.create_route(Route("", "zl-x-g", ip_network("10.3.0.0/16")))
    link.redress_device(have, want)
    assert carried(shell, "zl-x-g") == {"10.2.0.17/16", "10.2.0.9/32"}
    assert "10.3.0.0/16" in shell("ip route show proto 111")
    assert shown(shell, "zl-x-g")["mtu"] == 1380


def test_redressing_without_another_address_keeps_routes(host, shell, tun):
    tun("zl-x-d")
    have, want = device("10.2.0.1/32", name="zl-x-d", scope="x"), device("10.2.0.2/32", name="zl-x-d", scope="x")
    link.dress_device(have)
    link.create_route(Route("x", "zl-x-d", ip_network("10.3.0.0/16")))
    link.redress_device(have, want)
    assert carried(shell, "zl-x-d") == {"10.2.0.2/32"}
    assert "10.3.0.0/16" in shell("ip route show proto 111")


def test_redressing_renames(host, shell, tun):
    tun("zl-x-g")
    have, want = device("10.2.0.1/16"), device("10.2.0.1/16", name="zl-y-g")
    link.dress_device(have)
    link.redress_device(have, want)
    assert shown(shell, "zl-y-g")["ifname"] == "zl-y-g"


def test_a_missing_device(host):
    for call, argument in [
        (link.dress_device, device("10.2.0.1/16")),
        (link.create_alias, Alias("zl-x-g", ip_address("10.2.0.9"))),
        (link.create_proxy, Proxy("web", "zl-x-g", ip_address("10.2.0.9"))),
        (link.create_route, Route("", "zl-x-g", ip_network("10.3.0.0/16"))),
    ]:
        with pytest.raises(MechanismError) as raised:
            call(argument)
        assert (raised.value.errno, raised.value.object) == (errno.ENODEV, "zl-x-g")


def test_rename_in_place_keeps_the_old_name_as_the_alternative_one(host, shell):
    link.create_bridge(WEB)
    shell("ip link add p0 type veth peer name p1; ip link set p0 up; ip link set p1 up; ip link set p0 master zl-web-b")
    assert link.rename("zl-web-b", "zl-b2-b") == "zl-b2-b"
    assert link.rename("zl-web-b", "zl-b2-b") == "zl-b2-b"
    assert link.link_index("zl-web-b") == link.link_index("zl-b2-b")
    assert link.rename("zl-b2-b", "zl-b3-b") == "zl-b3-b"
    assert shown(shell, "zl-b3-b")["altnames"] == ["zl-b2-b"]
    assert link.rename("zl-b3-b", "zl-b2-b") == "zl-b2-b"
    assert shown(shell, "zl-b2-b")["altnames"] == ["zl-b3-b"]
    assert "UP" in shown(shell, "zl-b2-b")["flags"]


@BOTH
def test_where_a_running_link_cannot_be_renamed_the_new_name_is_the_alternative_one(host, shell, monkeypatch, bridge):
    """This kernel can: the refusal of an older one (EBUSY) is put in its place."""
    link.create_bridge(bridge)
    genuine = link.Netlink.transact

    def refuse(self, requests):
        if any(request.operation == "rename" for request in requests):
            raise MechanismError("rename", requests[0].object, errno.EBUSY)
        return genuine(self, requests)

    monkeypatch.setattr(link.Netlink, "transact", refuse)
    for _ in range(2):
        assert link.rename("zl-web-b", "zl-new-b") == "zl-web-b"
        assert shown(shell, "zl-new-b")["ifname"] == "zl-web-b"
        assert shown(shell, "zl-new-b")["altnames"] == ["zl-new-b"]
    want = replace(bridge, name="zl-new-b", mtu=1300)
    link.change_bridge(bridge, want)
    assert observe_bridge("zl-new-b") == replace(want, name="zl-web-b")
    link.enable_forwarding(["zl-new-b"])


def test_renaming_nothing_or_onto_a_taken_name(host, shell):
    with pytest.raises(MechanismError) as raised:
        link.rename("nope", "also-nope")
    assert raised.value.errno == errno.ENODEV
    shell("ip link add a0 type bridge; ip link add b0 type bridge")
    before = host()
    with pytest.raises(MechanismError) as raised:
        link.rename("a0", "b0")
    assert raised.value.errno == errno.EEXIST
    assert host() == before


@pytest.mark.parametrize("destination", ["10.3.0.0/16", "10.3.0.5/32", "fd03::/64", "fd03::5/128"])
def test_routes(host, shell, tun, destination):
    for name in ("zl-a-d", "zl-b-d"):
        link.dress_device(device("10.2.0.1/32", "fd02::1/128", name=tun(name), scope="a"))
    before = host()
    have = Route("a", "zl-a-d", ip_network(destination))
    want = replace(have, device="zl-b-d")

    def routes():
        version = have.destination.version
        found = json.loads(shell(f"ip -j -{version} route show proto 111"))
        return [(route["dst"], route["dev"]) for route in found]

    text = str(have.destination).removesuffix("/32").removesuffix("/128")
    link.create_route(have)
    link.create_route(have)
    assert routes() == [(text, "zl-a-d")]
    link.change_route(have, want)
    assert routes() == [(text, "zl-b-d")]
    link.delete_route(want)
    link.delete_route(want)
    assert host() == before


def test_a_foreign_route_is_not_deleted(host, shell, tun):
    link.dress_device(device("10.2.0.1/16", name=tun("zl-a-d")))
    shell("ip route add 10.3.0.0/16 dev zl-a-d")
    before = host()
    link.delete_route(Route("", "zl-a-d", ip_network("10.3.0.0/16")))
    assert host() == before


@pytest.mark.parametrize("address", ["10.2.0.9", "fd02::9"])
def test_aliases(host, tun, address):
    link.dress_device(device("10.2.0.1/16", "fd02::1/64", name=tun("zl-x-g")))
    before = host()
    alias = Alias("zl-x-g", ip_address(address))
    link.create_alias(alias)
    link.create_alias(alias)
    assert host() != before
    link.delete_alias(alias)
    link.delete_alias(alias)
    assert host() == before
    link.delete_alias(replace(alias, device="nope"))


def test_forwarding_and_router_advertisements(host, shell):
    shell("ip link add up0 type veth peer name up1; ip link add zl.0 type bridge; ip link add off0 type bridge")
    shell("sysctl -qw net.ipv6.conf.off0.accept_ra=0 net.ipv4.conf.all.rp_filter=1")
    assert sysctl.read("ipv6/conf/up0/accept_ra") == "1"
    link.enable_forwarding(["zl.0"])
    assert sysctl.read("ipv4/ip_forward") == "1"
    assert sysctl.read("ipv6/conf/all/forwarding") == "1"
    assert (sysctl.read("ipv6/conf/up0/accept_ra"), sysctl.read("ipv6/conf/off0/accept_ra")) == ("2", "0")
    assert (sysctl.read("ipv4/conf/zl.0/rp_filter"), sysctl.read("ipv4/conf/zl.0/forwarding")) == ("2", "1")
    sysctl.write("ipv6/conf/up0/accept_ra", "1")
    link.enable_forwarding([])
    assert sysctl.read("ipv6/conf/up0/accept_ra") == "1", "once forwarding is on, it is the operator's"


def test_read_only_parameters(host):
    """In a mount namespace of its own, whose /proc/sys cannot be written, as in a container."""
    script = """
from overlayd.errors import MechanismError
from overlayd.linux import link
try:
    link.enable_forwarding([])
    print("done")
except MechanismError as error:
    print(error)
"""
    program = [sys.executable, "-c", script]
    command = 'mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec "$@"'

    def run():
        return subprocess.run(
            ["unshare", "-m", "sh", "-c", command, "sh", *program],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        ).stdout

    sysctl.write("ipv4/ip_forward", "0")
    assert "net/ipv4/ip_forward" in run() and "Read-only file system" in run()
    link.enable_forwarding([])
    assert run() == "done\n"


def test_a_parameter_that_is_not_there(host):
    with pytest.raises(MechanismError) as raised:
        sysctl.read("ipv4/nonesuch")
    assert (raised.value.errno, raised.value.object) == (errno.ENOENT, "net/ipv4/nonesuch")


@pytest.mark.parametrize("address", ["10.1.0.9", "fd01::9"])
def test_a_bridge_answers_at_once_for_an_address_behind_another_link(host, container, shell, address):
    """`address` is on-link for the container, and the host reaches it elsewhere."""
    version = ip_address(address).version
    gateway, inside = ("10.1.0.1/24", "10.1.0.5/24") if version == 4 else ("fd01::1/64", "fd01::5/64")
    link.create_bridge(Bridge("web", "zl-web-b", ip_interface(gateway), 1340))
    link.enable_forwarding(["zl-web-b"])
    box = container()
    shell(f"ip link add v type veth peer name eth0 netns {box.pid}; ip link set v master zl-web-b up")
    box.run("ip link set eth0 up")
    box.run(f"ip address add {inside} dev eth0 {'nodad' if version == 6 else ''}")
    shell("ip link add elsewhere type bridge; ip link set elsewhere up")
    shell(f"ip route add {address} dev elsewhere")
    proxy = Proxy("web", "zl-web-b", ip_address(address))
    link.create_proxy(proxy)
    link.create_proxy(proxy)
    box.run(f"ping -c 1 -W 0.3 {address} || true")
    mac = link.bridge_mac(ip_interface(gateway).ip).hex(":")
    assert f"lladdr {mac}" in box.run(f"ip neigh show {address}")

    link.delete_proxy(proxy)
    link.delete_proxy(proxy)
    assert shell("ip neigh show proxy; ip -6 neigh show proxy") == ""
    link.delete_bridge("zl-web-b")
    link.delete_proxy(proxy)
