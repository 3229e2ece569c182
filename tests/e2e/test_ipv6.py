"""IPv6 inside and outside of the tunnel: a cluster of IPv6 addresses, and nodes that know each other by IPv6 only."""

import json
import threading
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from socket import AF_INET6
from typing import Any

import pytest
from lab import Lab, Refused, ping, roamer, transfer
from lab.cluster import CLUSTER6, PORT, Pair
from lab.lab import OUTSIDE6
from lab.patience import LIMIT, until
from lab.traffic import MARKER

NEIGHBOURHOOD = (58, 0)  # ICMPv6, and the hop-by-hop options that go before multicast listener reports
OVERHEAD = 80  # outer IPv6 40, UDP 8, WireGuard 32


@pytest.fixture(scope="module", params=["10.200.0.0/16", CLUSTER6], ids=["ipv4-inside", "ipv6-inside"])
def nodes(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Two nodes on an underlay that has IPv6 only."""
    with Lab(mtu=1400, ipv6=True) as lab:
        yield Pair(lab, request.param)


@pytest.fixture(scope="module")
def pair6() -> Iterator[Pair]:
    """Two nodes of an IPv6 cluster on an IPv6 underlay, with a way outside."""
    with Lab(mtu=1400, ipv6=True) as lab:
        yield Pair(lab, CLUSTER6)


def first(member_slice: str) -> str:
    return str(ip_network(member_slice)[1])


def test_traffic_goes_through_an_ipv6_tunnel_of_the_right_size(nodes: Pair) -> None:
    assert json.loads(nodes.web.run(["ip", "-j", "link", "show", "eth0"]))[0]["mtu"] == 1400 - OVERHEAD
    underlay = nodes.lab.capture(nodes.alpha.node)
    with underlay:
        ping(nodes.web, nodes.db_address)
        ping(nodes.db, nodes.web_address)
        ping(nodes.alpha.node, first(nodes.beta.slice))
        transfer(nodes.web, nodes.db, nodes.db_address, megabytes=1)
    packets = underlay.packets()
    tunnel = [packet for packet in packets if packet.is_wireguard(PORT)]
    assert {packet.source for packet in tunnel} == {nodes.alpha.node.address, nodes.beta.node.address}
    assert max(packet.size for packet in tunnel) == 1400
    assert all(packet.is_wireguard(PORT) or packet.protocol in NEIGHBOURHOOD for packet in packets)
    assert not underlay.holds(MARKER)
    assert nodes.alpha.request("status")["peers"][0]["endpoint"] == nodes.beta.node.endpoint(PORT)


def test_a_restart_changes_nothing(nodes: Pair) -> None:
    alpha = nodes.alpha
    kernel = alpha.node.footprint()
    alpha.node.kill()
    alpha.start()
    assert alpha.node.footprint() == kernel
    ping(nodes.web, nodes.db_address)


def test_a_deleted_connected_route_is_put_back(nodes: Pair) -> None:
    alpha = nodes.alpha
    bridge = alpha.subnet_of(nodes.web_address)
    before = alpha.node.footprint()
    for network, interface in ((alpha.cluster, alpha.request("status")["interface"]), (bridge, nodes.bridges[0])):
        alpha.node.run(["ip", "route", "del", network, "dev", interface])
        until(lambda: alpha.node.footprint() == before, alpha.node.log_tail)
    ping(nodes.web, nodes.db_address)


def test_a_roaming_guest_is_pointed_at_the_ipv6_address(nodes: Pair) -> None:
    alpha, machine = nodes.alpha, nodes.lab.node("vm")
    handle = {"platform": "guest_managed", "id": "vm"}
    config = alpha.request("attach_container", handle=handle, service="web", join_global=False)
    assert config["peers"][0]["endpoint"] == alpha.node.endpoint(PORT)
    roamer.bring_up(machine, config)
    for target in (nodes.web_address, nodes.db_address, first(alpha.slice)):
        ping(machine, target)
    for source in (nodes.web, nodes.db):
        ping(source, config["overlay_ip"])
    roamer.shut_down(machine)
    alpha.request("detach_container", handle=handle)

    edge = alpha.request("mint_edge_peer", name="phone", ttl_secs=60, allow=[nodes.web_address])
    roamer.bring_up(machine, edge)
    machine.run(["ip", "route", "add", nodes.web_address, "dev", roamer.INTERFACE])
    ping(machine, nodes.web_address)
    roamer.shut_down(machine)
    alpha.request("revoke_edge_peer", name="phone")


def test_a_container_reaches_the_outside_as_its_node(pair6: Pair) -> None:
    ping(pair6.web, str(OUTSIDE6.ip))
    with pair6.lab.open_outside(AF_INET6) as listener, pair6.web.open_socket(AF_INET6) as sender:
        listener.bind((str(OUTSIDE6.ip), 0))
        listener.listen(1)
        listener.settimeout(LIMIT)
        sender.settimeout(LIMIT)
        connecting = threading.Thread(target=sender.connect, args=(listener.getsockname(),))
        connecting.start()
        receiver, client = listener.accept()
        receiver.close()
        connecting.join()
    assert client[0] == str(pair6.alpha.node.address)


def test_addresses_come_from_the_slice_and_the_subnet(pair6: Pair) -> None:
    alpha = pair6.alpha
    container = pair6.lab.container()
    address = alpha.attach(container, "web", join_global=True)
    shown: list[dict[str, Any]] = json.loads(container.run(["ip", "-j", "-6", "address", "show", "scope", "global"]))
    inside = {link["ifname"]: link["addr_info"][0] for link in shown}
    assert (inside["eth0"]["local"], inside["eth0"]["prefixlen"]) == (address, 120)
    assert inside["eth1"]["prefixlen"] == 128
    global_address = inside["eth1"]["local"]
    assert ip_address(global_address) in ip_network(alpha.slice)
    for source in (pair6.web, pair6.db, pair6.beta.node):
        ping(source, address)
        ping(source, global_address)
    ping(container, pair6.db_address)
    ping(container, str(OUTSIDE6.ip))
    shared = alpha.request(
        "attach_container", handle={"platform": "host_shared", "id": "h"}, service="web", join_global=False
    )["ip"]
    ping(pair6.db, shared)
    alpha.request("detach_container", handle={"platform": "host_shared", "id": "h"})
    alpha.detach(container)


def test_a_dedicated_service(pair6: Pair) -> None:
    scope = {"scope": "service", "service": "vault"}
    members = (pair6.alpha, pair6.beta)
    infos = [member.request("setup_service_overlay", service="vault", mode="dedicated") for member in members]
    for member, other, info in zip(members, reversed(members), reversed(infos), strict=True):
        member.request(
            "add_peer",
            public_key=info["wg_public_key"],
            endpoint=other.node.endpoint(info["wg_port"]),
            allowed_ips=info["subnet"],
            persistent_keepalive_secs=0,
            scope=scope,
        )
    containers = [pair6.lab.container() for _ in members]
    addresses = [member.attach(each, "vault") for member, each in zip(members, containers, strict=True)]
    ping(containers[0], addresses[1])
    ping(containers[1], addresses[0])
    for member in members:
        member.request("teardown_service_overlay", service="vault")


def test_an_address_of_the_other_family_is_refused(pair6: Pair) -> None:
    with pytest.raises(Refused, match=r"request\.subnet"):
        pair6.alpha.request("setup_service_overlay", service="odd", mode="shared", subnet="10.200.0.0/28")
