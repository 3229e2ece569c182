"""Guests bring their own WireGuard; host-shared containers are at home on the node's."""

import json
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from lab import Container, Lab, Node, Refused, ping, roamer
from lab.cluster import CLUSTER, PORT, Member, Pair
from lab.frames import request_frame


def guest(id: str) -> dict[str, Any]:
    return {"platform": "guest_managed", "id": id}


def host(id: str) -> dict[str, Any]:
    return {"platform": "host_shared", "id": id}


def attach(member: Member, handle: dict[str, Any], service: str, **keys: Any) -> dict[str, Any]:
    return member.request("attach_container", handle=handle, service=service, **({"join_global": False} | keys))


def peer_keys(member: Member) -> set[str]:
    return {peer["public_key"] for peer in member.request("status").get("peers", ())}


def unreachable(source: Node | Container, target: str) -> None:
    with pytest.raises(AssertionError):
        ping(source, target, count=1, seconds=1)


@pytest.fixture(scope="module")
def vm(pair: Pair) -> Iterator[Node]:
    """A third machine on the underlay."""
    yield pair.lab.node("vm")


def test_a_guest_reaches_containers_on_both_nodes_from_its_configuration_alone(pair: Pair, vm: Node) -> None:
    alpha = pair.alpha
    before, peers = alpha.node.footprint(), peer_keys(alpha)
    config = attach(alpha, guest("vm1"), "web", dns_server="9.9.9.9", dns_domain="cluster.example")
    assert config == {
        "result": "guest_config",
        "overlay_ip": config["overlay_ip"],
        "prefix_len": 16,
        "private_key": config["private_key"],
        "public_key": config["public_key"],
        "listen_port": PORT,
        "peers": [
            {
                "public_key": alpha.public_key,
                "endpoint": f"{alpha.node.address}:{PORT}",
                "allowed_ips": CLUSTER,
                "persistent_keepalive_secs": 25,
            }
        ],
        "dns_server": "9.9.9.9",
        "dns_domain": "cluster.example",
    }
    assert attach(alpha, guest("vm1"), "web", dns_server="9.9.9.9") == config
    assert peer_keys(alpha) == peers | {config["public_key"]}
    address = config["overlay_ip"]
    assert ip_address(address) in ip_network(f"{pair.web_address}/26", strict=False)

    roamer.bring_up(vm, config)
    try:
        for target in (pair.web_address, pair.db_address, "10.200.1.1", "10.200.2.1"):
            ping(vm, target)
        for source in (pair.web, pair.db, pair.alpha.node, pair.beta.node):
            ping(source, address)
        newcomer = pair.lab.container()
        alpha.attach(newcomer, "web")
        ping(newcomer, address)
        alpha.detach(newcomer)

        alpha.node.kill()
        alpha.start()
        assert attach(alpha, guest("vm1"), "web") == config
        ping(vm, pair.web_address)
        ping(pair.web, address)

        bridge = json.loads(alpha.node.run(["ip", "-j", "route", "get", pair.web_address]))[0]["dev"]
        alpha.node.run(["ip", "link", "delete", bridge])
        alpha.set_up_service("web")
        pair.web.run(["ip", "neigh", "flush", "all"])
        ping(pair.web, address)

        for _ in range(2):
            alpha.request("detach_container", handle=guest("vm1"))
        unreachable(vm, pair.web_address)
        unreachable(pair.web, address)
    finally:
        roamer.shut_down(vm)
    assert peer_keys(alpha) == peers
    left = alpha.node.footprint()
    assert [left[kind] for kind in ("addresses", "routes", "firewall")] == [
        before[kind] for kind in ("addresses", "routes", "firewall")
    ]
    assert alpha.node.run(["ip", "neigh", "show", "proxy"]) == ""


def test_a_guest_of_a_service_that_is_not_here_gets_an_address_of_the_node(pair: Pair, vm: Node) -> None:
    config = attach(pair.alpha, guest("vm2"), "elsewhere")
    assert ip_address(config["overlay_ip"]) in ip_network(pair.alpha.slice)
    gateway = pair.alpha.gateway(pair.web_address)
    assert (config["dns_server"], config["dns_domain"]) == (gateway, "overlay.local"), "of a service that is here"
    roamer.bring_up(vm, config)
    try:
        ping(vm, pair.web_address)
        ping(pair.db, config["overlay_ip"])
        with pytest.raises(Refused, match="already attached to service elsewhere"):
            attach(pair.alpha, guest("vm2"), "web")
    finally:
        roamer.shut_down(vm)
        pair.alpha.request("detach_container", handle=guest("vm2"))


def test_a_host_shared_container_has_an_address_on_the_nodes_device(pair: Pair) -> None:
    alpha = pair.alpha
    before = alpha.node.footprint()
    address = attach(alpha, host("agent"), "web")["ip"]
    assert attach(alpha, host("agent"), "web") == {"result": "attached", "ip": address}
    assert ip_address(address) in ip_network(alpha.slice)
    for source in (pair.db, pair.web, pair.beta.node):
        ping(source, address)
    ping(alpha.node, pair.db_address, options=["-I", address])
    alpha.node.kill()
    alpha.start()
    ping(pair.db, address)

    interface = alpha.request("status")["interface"]
    alpha.node.run(["ip", "link", "delete", interface])
    alpha.set_up()
    ping(alpha.node, pair.db_address, options=["-I", address])
    for _ in range(2):
        alpha.request("detach_container", handle=host("agent"))
    unreachable(pair.db, address)
    assert f"{address}/" not in alpha.node.run(["ip", "-br", "address"])
    assert alpha.node.footprint()["routes"] == before["routes"]


@pytest.mark.parametrize("handle", [guest("early"), host("early")], ids=["guest", "host"])
def test_both_need_the_global_overlay(lab: Lab, handle: dict[str, Any]) -> None:
    member = Member(lab, 9, f"early{len(lab.nodes)}")
    member.start()
    with pytest.raises(Refused, match="global overlay not set up: send setup_global_overlay"):
        attach(member, handle, "web")


def test_a_guest_may_be_asked_for_in_one_go_with_the_overlay_and_taken_back(lab: Lab) -> None:
    member = Member(lab, 10, f"go{len(lab.nodes)}")
    member.start()
    member.set_up()
    overlay = {"deployment": "lab", "instance_id": "a", "cluster_cidr": CLUSTER, "wg_port": PORT}
    member.connection.send(
        request_frame(1, "teardown_global_overlay")
        + request_frame(2, "setup_global_overlay", **overlay, slice_cidr=member.slice)
        + request_frame(3, "attach_container", handle=guest("vm"), service="web", join_global=False)
        + request_frame(4, "detach_container", handle=guest("vm"))
    )
    results = [member.connection.receive()["response"]["result"] for _ in range(4)]
    assert results == ["ok", "bridge_name", "guest_config", "ok"]
    assert peer_keys(member) == set()


def test_what_only_windows_has_is_said_to_be_so(member: Member) -> None:
    handle = {"platform": "windows_container", "container_id": "c"}
    with pytest.raises(Refused, match="only supported on Windows"):
        attach(member, handle, "web")
    assert member.request("detach_container", handle=handle) == {"result": "ok"}


def test_unknown_modes_and_handles_are_refused_and_the_connection_stays(member: Member) -> None:
    with pytest.raises(Refused, match=r"request\.handle.*solaris_zone"):
        attach(member, {"platform": "solaris_zone", "id": "z"}, "web")
    with pytest.raises(Refused, match=r"request\.mode.*quantum"):
        member.request("setup_service_overlay", service="web", mode="quantum")
    with pytest.raises(Refused, match=r"request\.handle\.id"):
        attach(member, guest(""), "web")
    assert member.request("status")["service_count"] == 0
