"""Bridges and the addresses that they answer for, as `ip` shows them afterwards."""

import errno
from dataclasses import replace
from ipaddress import ip_address, ip_interface

import pytest
from links_shown import BOTH, WEB, carried, shown

from overlayd.errors import MechanismError
from overlayd.linux import bridge, forwarding, link
from overlayd.linux.observe import bridges_named, observe_bridge
from overlayd.model.objects import LONGEST_SCOPE, Bridge, Proxy


@BOTH
def test_a_new_bridge_is_what_was_wanted(host, shell, wanted):
    bridge.create(wanted)
    assert observe_bridge(wanted.name) == wanted
    found = shown(shell, wanted.name)
    data = found["linkinfo"]["info_data"]
    assert (data["stp_state"], data["forward_delay"], data["mcast_snooping"]) == (0, 0, 0)
    assert (found["mtu"], found["ifalias"], "UP" in found["flags"]) == (1340, "overlayd bridge web", True)
    assert not any(each.get("tentative") for each in found["addr_info"])
    before = host()
    bridge.create(wanted)
    assert host() == before


def test_the_mac_depends_on_the_gateway_alone_and_not_on_the_ports(host, shell):
    bridge.create(WEB)
    mac = shown(shell, "zl-web-b")["address"]
    shell("ip link add low0 address 02:00:00:00:00:01 type veth peer name low1; ip link set low0 master zl-web-b")
    assert shown(shell, "zl-web-b")["address"] == mac
    bridge.delete("zl-web-b")
    bridge.create(WEB)
    assert shown(shell, "zl-web-b")["address"] == mac
    assert int(mac[:2], 16) & 3 == 2
    assert bridge.mac(ip_address("10.9.0.1")) != bridge.mac(ip_address("10.9.0.17"))


def test_a_bridge_of_that_name_is_adopted_and_put_right(host, shell):
    shell("ip link add zl-web-b type bridge stp_state 1; ip address add 10.8.0.1/24 dev zl-web-b")
    shell("ip link add p0 type veth peer name p1; ip link set p0 master zl-web-b")
    index = shown(shell, "zl-web-b")["ifindex"]
    bridge.create(WEB)
    assert observe_bridge("zl-web-b") == WEB
    found = shown(shell, "zl-web-b")
    assert (found["ifindex"], found["linkinfo"]["info_data"]["stp_state"]) == (index, 0)
    assert carried(shell, "zl-web-b") == {"10.9.0.1/24"}
    assert shown(shell, "p0")["master"] == "zl-web-b"


def test_a_foreign_link_of_that_name_is_left_alone(host, shell):
    shell("ip link add zl-web-b type veth peer name other")
    before = host()
    with pytest.raises(MechanismError) as raised:
        bridge.create(WEB)
    assert raised.value.errno == errno.EEXIST
    assert host() == before


def test_a_bridge_that_cannot_be_configured_is_not_left_behind(host):
    before = host()
    with pytest.raises(MechanismError) as raised:
        bridge.create(replace(WEB, mtu=1))
    assert raised.value.errno == errno.EINVAL
    assert host() == before


def test_the_longest_name_of_a_service_fits_its_bridge(host):
    wanted = replace(WEB, service="s" * LONGEST_SCOPE)
    bridge.create(wanted)
    assert observe_bridge(wanted.name) == wanted
    with pytest.raises(MechanismError):
        bridge.create(replace(wanted, service="s" * (LONGEST_SCOPE + 1), name="zl-longer-b"))


def test_a_bridge_changes_in_place(host, shell):
    bridge.create(WEB)
    shell("ip link add p0 type veth peer name p1; ip link set p0 master zl-web-b")
    index = shown(shell, "zl-web-b")["ifindex"]
    want = Bridge("web", "zl-new-b", ip_interface("10.9.1.1/25"), 1380)
    bridge.change(WEB, want)
    found = observe_bridge("zl-new-b")
    assert (found, found.name) == (want, "zl-new-b")
    assert carried(shell, "zl-new-b") == {"10.9.1.1/25"}
    assert shown(shell, "zl-new-b")["ifindex"] == index
    assert shown(shell, "p0")["master"] == "zl-new-b"
    assert [each.names for each in bridges_named("zl-", "-b")] == [("zl-new-b", "zl-web-b")]


def test_deleting_is_idempotent(host):
    before = host()
    bridge.create(WEB)
    bridge.delete("zl-web-b")
    bridge.delete("zl-web-b")
    link.delete("zl-web-b")
    assert host() == before


@pytest.mark.parametrize("address", ["10.1.0.9", "fd01::9"])
def test_a_bridge_answers_at_once_for_an_address_behind_another_link(host, container, shell, address):
    """`address` is on-link for the container, and the host reaches it elsewhere."""
    version = ip_address(address).version
    gateway, inside = ("10.1.0.1/24", "10.1.0.5/24") if version == 4 else ("fd01::1/64", "fd01::5/64")
    bridge.create(Bridge("web", "zl-web-b", ip_interface(gateway), 1340))
    forwarding.enable()
    forwarding.settle(["zl-web-b"])
    box = container()
    shell(f"ip link add v type veth peer name eth0 netns {box.pid}; ip link set v master zl-web-b up")
    box.run("ip link set eth0 up")
    box.run(f"ip address add {inside} dev eth0 {'nodad' if version == 6 else ''}")
    shell("ip link add elsewhere type bridge; ip link set elsewhere up")
    shell(f"ip route add {address} dev elsewhere")
    proxy = Proxy("web", "zl-web-b", ip_address(address))
    bridge.create_proxy(proxy)
    bridge.create_proxy(proxy)
    box.run(f"ping -c 1 -W 0.3 {address} || true")
    mac = bridge.mac(ip_interface(gateway).ip).hex(":")
    assert f"lladdr {mac}" in box.run(f"ip neigh show {address}")

    bridge.delete_proxy(proxy)
    bridge.delete_proxy(proxy)
    assert shell("ip neigh show proxy; ip -6 neigh show proxy") == ""
    bridge.delete("zl-web-b")
    bridge.delete_proxy(proxy)
