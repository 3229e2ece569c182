"""Allowed IPs lead somewhere, and to nobody else's: routes outside of the cluster, and what is this node's own."""

import json
from collections.abc import Iterator
from ipaddress import ip_network

import pytest
from lab import Lab, Refused, ping
from lab.cluster import CLUSTER, CLUSTER6, PORT, Member, Pair, besides_version
from lab.patience import until

SITE = {4: ("192.168.77.0/24", "192.168.77.1"), 6: ("fd77::/64", "fd77::1")}
FREE = {4: "10.200.250.0/24", 6: "fd00:200:0:250::/64"}


@pytest.fixture(scope="module", params=[CLUSTER, CLUSTER6], ids=["IPv4", "IPv6"])
def nodes(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with Lab() as lab:
        yield Pair(lab, cluster=request.param)


def version(nodes: Pair) -> int:
    return ip_network(nodes.alpha.cluster).version


def installed(member: Member, public_key: str) -> set[str]:
    lines = member.node.run(["wg", "show", "all", "allowed-ips"]).splitlines()
    return {cidr for line in lines if line.split()[1] == public_key for cidr in line.split()[2:]}


def findings(member: Member) -> list[dict[str, str]]:
    return besides_version(json.loads(member.node.try_overlayctl("doctor", "-o", "json")[1]))


def test_a_network_behind_a_peer_is_reached_through_the_tunnel_alone(nodes: Pair) -> None:
    alpha, beta = nodes.alpha, nodes.beta
    network, address = SITE[version(nodes)]
    beta.node.run(["ip", "address", "add", f"{address}/128" if ":" in address else address, "dev", "lo"])
    before = alpha.node.footprint()["routes"]
    alpha.request("add_allowed_ip", pubkey=beta.public_key, cidr=network)
    with nodes.lab.capture(alpha.node) as capture:
        ping(alpha.node, address)
        ping(nodes.web, address)
    assert any(packet.is_wireguard(PORT) for packet in capture.packets()), "the tunnel was used"
    assert all(address not in (str(packet.source), str(packet.destination)) for packet in capture.packets())
    for number in ("kill", "restart"):
        _ = alpha.node.kill() if number == "kill" else alpha.node.stop()
        alpha.start()
        ping(alpha.node, address)
    alpha.request("remove_allowed_ip", pubkey=beta.public_key, cidr=network)
    assert alpha.node.footprint()["routes"] == before


def test_a_route_of_the_hosts_own_is_left_alone(nodes: Pair) -> None:
    alpha, beta = nodes.alpha, nodes.beta
    network, _ = SITE[version(nodes)]
    alpha.node.run(["ip", "route", "add", network, "dev", "lo", "metric", "7"])
    before = alpha.node.footprint()["routes"]
    with pytest.raises(Refused, match=rf"{network}.*dev lo"):
        alpha.request("add_allowed_ip", pubkey=beta.public_key, cidr=network)
    assert alpha.node.footprint()["routes"] == before
    alpha.node.run(["ip", "route", "del", network, "dev", "lo", "metric", "7"])
    alpha.request("add_allowed_ip", pubkey=beta.public_key, cidr=network)
    alpha.request("remove_allowed_ip", pubkey=beta.public_key, cidr=network)


@pytest.mark.parametrize("ending", ["live", "restart", "kill"])
def test_a_conflict_lasts_as_long_as_this_node_has_the_network(nodes: Pair, ending: str) -> None:
    alpha, beta = nodes.alpha, nodes.beta
    service = f"short-{ending}"
    alpha.set_up_service(service)
    container = nodes.lab.container()
    address = alpha.attach(container, service)
    links = json.loads(alpha.node.run(["ip", "-j", "address", "show", "type", "bridge"]))
    (subnet,) = {
        str(ip_network(f"{one['local']}/{one['prefixlen']}", strict=False))
        for link in links
        for one in link["addr_info"]
        if link["ifname"] == alpha.set_up_service(service) and not one["local"].startswith("fe80")
    }
    free = FREE[version(nodes)]
    with pytest.raises(Refused, match=f"{subnet} is the subnet of service {service}"):
        alpha.request("add_allowed_ip", pubkey=beta.public_key, cidr=subnet)
    key = "x" * 42 + "0="
    alpha.request(
        "add_peer",
        public_key=key,
        endpoint="192.0.2.77:5",
        allowed_ips=f"{free},{subnet},{alpha.slice}",
        persistent_keepalive_secs=0,
    )
    assert installed(alpha, key) == {free}
    assert f"allowed IP {subnet} of peer {key} is not installed: it is the subnet of" in alpha.node.log.read_text()
    if ending != "live":
        _ = alpha.node.kill() if ending == "kill" else alpha.node.stop()
        alpha.start()
    assert installed(alpha, key) == {free}
    found = [each for each in findings(alpha) if each["code"] == "allowed-ip-conflict"]
    assert {each["object"].split()[2] for each in found} == {subnet, alpha.slice}
    ping(alpha.node, address)
    alpha.request("teardown_service_overlay", service=service)
    until(lambda: installed(alpha, key) == {free, subnet})
    alpha.request("remove_peer", pubkey=key)
    assert findings(alpha) == []


def test_a_guest_and_an_edge_peer_keep_their_addresses(nodes: Pair) -> None:
    alpha = nodes.alpha
    handle = {"platform": "guest_managed", "id": "vm1"}
    guest = alpha.request("attach_container", handle=handle, service="web", join_global=False)
    host = f"{guest['overlay_ip']}/{128 if version(nodes) == 6 else 32}"
    key, free = "y" * 42 + "0=", FREE[version(nodes)]
    with pytest.raises(Refused, match="is guest vm1"):
        alpha.request("add_peer", public_key=key, endpoint="", allowed_ips=host, persistent_keepalive_secs=0)
    alpha.request("add_peer", public_key=key, endpoint="", allowed_ips=f"{host},{free}", persistent_keepalive_secs=0)
    assert installed(alpha, guest["public_key"]) == {host}
    assert installed(alpha, key) == {free}
    alpha.request("remove_peer", pubkey=key)
    assert installed(alpha, guest["public_key"]) == {host}
    edge = alpha.request("mint_edge_peer", name="laptop", ttl_secs=600, allow=[free])
    host = f"{edge['overlay_ip']}/{128 if version(nodes) == 6 else 32}"
    with pytest.raises(Refused, match="is edge peer laptop"):
        alpha.request("add_allowed_ip", pubkey=nodes.beta.public_key, cidr=host)
    alpha.request("revoke_edge_peer", name="laptop")
    alpha.request("detach_container", handle=handle)
