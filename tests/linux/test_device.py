"""The links of devices, their addresses, routes and aliases, as `ip` shows them afterwards."""

import errno
import json
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from links_shown import WEB6, carried, shown, wg

from overlayd.errors import MechanismError
from overlayd.linux import bridge, device
from overlayd.linux import rtnetlink as rt
from overlayd.linux.link import link_index
from overlayd.linux.netlink import Netlink, Request
from overlayd.linux.route_messages import is_local_route, lookup_body
from overlayd.model.objects import Alias, Proxy, Route


def test_a_device_is_dressed_with_exactly_its_addresses(host, shell, tun):
    tun("zl-x-g")
    shell("ip address add 10.1.0.1/16 dev zl-x-g; ip address add 10.1.0.2/32 dev zl-x-g")
    shell("ip -6 address add fe80::7/64 dev zl-x-g")
    device.configure(wg("10.2.0.1/16", "fd02::1/64"))
    assert carried(shell, "zl-x-g") == {"10.2.0.1/16", "fd02::1/64"}
    found = shown(shell, "zl-x-g")
    assert (found["mtu"], found["ifalias"], "UP" in found["flags"]) == (1340, "overlayd device ", True)
    assert "fe80::7" in shell("ip address show dev zl-x-g")
    before = host()
    device.configure(wg("10.2.0.1/16", "fd02::1/64"))
    assert host() == before


def test_an_ipv6_address_is_the_hosts_own_at_once(host, tun):
    """Nobody's packets to it go astray after the answer."""
    tun("zl-x-g")
    have = wg("fd02::1:1/64")
    device.configure(have)
    with Netlink() as netlink:
        for number in range(2, 40):
            want = wg(f"fd02::1:{number}/64")
            device.change(have, want)
            device.create_alias(Alias("zl-x-g", ip_address(f"fd02::2:{number}")))
            for address in (f"fd02::1:{number}", f"fd02::2:{number}"):
                asked = Request("look up", address, rt.RTM_GETROUTE, 0, lookup_body(ip_address(address)))
                (found,) = netlink.transact([asked])
                assert is_local_route(found), address
            have = want


def test_an_address_is_the_hosts_own_on_the_link_that_it_was_given_to(host, tun):
    """Also while another link has it: the route of one link goes with that link, and must not leave a gap."""
    tun("zl-x-g")
    wide, narrow = wg("fd09::1/48"), wg("fd09::1/128")
    device.configure(wide)
    with Netlink() as netlink:

        def own(name, address):
            body = lookup_body(ip_address(address), index=link_index(name))
            (found,) = netlink.transact([Request("look up", address, rt.RTM_GETROUTE, 0, body)])
            return is_local_route(found)

        for _ in range(40):
            bridge.create(WEB6)
            assert own("zl-web-b", "fd09::1")
            assert own("zl-web-b", bridge.LINK_LOCAL.ip.compressed)
            device.change(wide, narrow)
            assert own("zl-x-g", "fd09::1")
            device.change(narrow, wide)
            assert own("zl-x-g", "fd09::1")
            bridge.delete("zl-web-b")
            assert own("zl-x-g", "fd09::1")


def test_a_family_that_the_device_does_not_use_is_left_alone(host, shell, tun):
    tun("zl-x-g")
    shell("ip -6 address add fd07::1/64 dev zl-x-g")
    device.configure(wg("10.2.0.1/16"))
    assert carried(shell, "zl-x-g") == {"10.2.0.1/16", "fd07::1/64"}


def test_changing_keeps_aliases_and_routes(host, shell, tun):
    tun("zl-x-g")
    have, want = wg("10.2.0.1/16"), wg("10.2.0.17/16", mtu=1380)
    device.configure(have)
    device.create_alias(Alias("zl-x-g", ip_address("10.2.0.9")))
    device.create_routes([Route("", "zl-x-g", ip_network("10.3.0.0/16"))])
    device.change(have, want)
    assert carried(shell, "zl-x-g") == {"10.2.0.17/16", "10.2.0.9/32"}
    assert "10.3.0.0/16" in shell("ip route show proto 111")
    assert shown(shell, "zl-x-g")["mtu"] == 1380


def test_changing_without_another_address_keeps_routes(host, shell, tun):
    tun("zl-x-d")
    have, want = wg("10.2.0.1/32", name="zl-x-d", scope="x"), wg("10.2.0.2/32", name="zl-x-d", scope="x")
    device.configure(have)
    device.create_routes([Route("x", "zl-x-d", ip_network("10.3.0.0/16"))])
    device.change(have, want)
    assert carried(shell, "zl-x-d") == {"10.2.0.2/32"}
    assert "10.3.0.0/16" in shell("ip route show proto 111")


def test_changing_renames(host, shell, tun):
    tun("zl-x-g")
    have, want = wg("10.2.0.1/16"), wg("10.2.0.1/16", name="zl-y-g")
    device.configure(have)
    device.change(have, want)
    assert shown(shell, "zl-y-g")["ifname"] == "zl-y-g"


def test_a_missing_device(host):
    for call, argument in [
        (device.configure, wg("10.2.0.1/16")),
        (device.create_alias, Alias("zl-x-g", ip_address("10.2.0.9"))),
        (bridge.create_proxy, Proxy("web", "zl-x-g", ip_address("10.2.0.9"))),
        (device.create_routes, [Route("", "zl-x-g", ip_network("10.3.0.0/16"))]),
    ]:
        with pytest.raises(MechanismError) as raised:
            call(argument)
        assert (raised.value.errno, raised.value.object) == (errno.ENODEV, "zl-x-g")


@pytest.mark.parametrize("form", ["10.{}.{}.0/24", "fd03:{:x}:{:x}::/64"])
def test_a_thousand_routes_come_and_go_beside_one_that_is_not_ours(host, shell, tun, form):
    shell(f"ip link set {tun('zl-a-d')} up")
    wanted = [Route("", "zl-a-d", ip_network(form.format(1 + number // 250, number % 250))) for number in range(1000)]
    foreign = wanted[700].destination
    version = f"-{foreign.version}"
    shell(f"ip {version} route add {foreign} dev lo metric 7")
    with pytest.raises(MechanismError, match="a route of its own") as raised:
        device.create_routes(wanted)
    assert (raised.value.errno, raised.value.object) == (errno.EEXIST, str(foreign))
    others = [route for route in wanted if route.destination != foreign]
    device.create_routes(others[:10])
    device.create_routes(others)
    shown = shell(f"ip {version} route show proto 0x6f").splitlines()
    assert {line.split()[0] for line in shown} == {str(route.destination) for route in others}
    device.delete_routes(wanted)
    assert shell(f"ip {version} route show proto 0x6f") == ""
    assert str(foreign) in shell(f"ip {version} route show")


@pytest.mark.parametrize("destination", ["10.3.0.0/16", "10.3.0.5/32", "fd03::/64", "fd03::5/128"])
def test_routes(host, shell, tun, destination):
    for name in ("zl-a-d", "zl-b-d"):
        device.configure(wg("10.2.0.1/32", "fd02::1/128", name=tun(name), scope="a"))
    before = host()
    have = Route("a", "zl-a-d", ip_network(destination))
    want = replace(have, device="zl-b-d")

    def routes():
        version = have.destination.version
        found = json.loads(shell(f"ip -j -{version} route show proto 111"))
        return [(route["dst"], route["dev"]) for route in found]

    text = str(have.destination).removesuffix("/32").removesuffix("/128")
    device.create_routes([have])
    device.create_routes([have])
    assert routes() == [(text, "zl-a-d")]
    device.change_route(have, want)
    assert routes() == [(text, "zl-b-d")]
    device.delete_routes([want])
    device.delete_routes([want])
    assert host() == before


def test_a_foreign_route_is_not_deleted(host, shell, tun):
    device.configure(wg("10.2.0.1/16", name=tun("zl-a-d")))
    shell("ip route add 10.3.0.0/16 dev zl-a-d")
    before = host()
    device.delete_routes([Route("", "zl-a-d", ip_network("10.3.0.0/16"))])
    assert host() == before


@pytest.mark.parametrize("address", ["10.2.0.9", "fd02::9"])
def test_aliases(host, tun, address):
    device.configure(wg("10.2.0.1/16", "fd02::1/64", name=tun("zl-x-g")))
    before = host()
    alias = Alias("zl-x-g", ip_address(address))
    device.create_alias(alias)
    device.create_alias(alias)
    assert host() != before
    device.delete_alias(alias)
    device.delete_alias(alias)
    assert host() == before
    device.delete_alias(replace(alias, device="nope"))
