"""Which relay a node gets, over which IP version, and what a node's relay is no way to."""

import re
import socket
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from lab import Lab, Node
from lab.cluster import Member
from lab.patience import until
from lab.turn import CREDENTIAL, USERNAME, TurnSocket, coturn

from overlayd.proto.turn import Refused

SECRET = "shared by the nodes of the cluster"
PORT = 3478


@pytest.fixture(params=[False, True], ids=["IPv4", "IPv6"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with Lab(ipv6=request.param) as lab:
        yield lab


def relaying(lab: Lab, **more: object) -> tuple[Member, str]:
    """A node that relays, and where."""
    gamma = Member(lab, 3, "gamma")
    at = gamma.node.endpoint(PORT)
    gamma.start()
    relay = {"listen_port": PORT, "external_addr": at, "max_sessions": 8, "auth_credential": SECRET}
    gamma.set_up({"stun_servers": ["none"], "relay_server": relay | more})
    return gamma, at


def test_a_dead_first_server_is_not_waited_for(lab: Lab) -> None:
    gamma, at = relaying(lab)
    dead = at.replace(str(gamma.node.address), str(gamma.node.address + 90))
    alpha = Member(lab, 1, "alpha")
    alpha.start()
    servers = [{"addr": addr, "username": "n1", "credential": SECRET} for addr in (dead, at)]
    alpha.set_up({"stun_servers": ["none"], "turn_servers": servers})
    (relayed,) = until(lambda: alpha.candidates("relay"), seconds=9)  # before the dead one has had its 10 s
    assert str(gamma.node.address) in relayed["address"]
    assert alpha.findings() == []


def test_both_ip_versions_come_of_one_allocation() -> None:
    with Lab() as lab:
        gamma = Member(lab, 3, "gamma")
        add_ipv6(gamma.node)
        gamma.start()
        both = {"external_addr": f"{gamma.node.address}, fd31::3", "auth_credential": SECRET}
        gamma.set_up({"stun_servers": ["none"], "relay_server": {"listen_port": PORT, "max_sessions": 8} | both})
        asks_for_both(lab, gamma.node, "n1", SECRET)
        given = re.findall(r"IPv([46]) port .* is relayed for (.*)", gamma.node.log.read_text())
        assert {version for version, _ in given} == {"4", "6"} and len({client for _, client in given}) == 1


def test_where_one_allocation_is_of_one_ip_version_there_are_two(tmp_path: Path) -> None:
    """As with coturn, which knows the attribute by a number of a draft."""
    with Lab() as lab:
        server = lab.node("relay")
        add_ipv6(server)
        with coturn(server, tmp_path, "-L", "fd31::3", "-E", "fd31::3"):
            asks_for_both(lab, server, USERNAME, CREDENTIAL)


def add_ipv6(node: Node) -> None:
    node.run(["sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/uplink/disable_ipv6"])
    node.run(["ip", "address", "add", "fd31::3/64", "dev", "uplink", "nodad"])


def asks_for_both(lab: Lab, server: Node, username: str, credential: str) -> None:
    """A node that has only IPv4 is reached at addresses of both."""
    alpha = Member(lab, 1, "alpha")
    alpha.start()
    asked = {"addr": f"{server.address}:{PORT}", "username": username, "credential": credential}
    alpha.set_up({"stun_servers": ["none"], "turn_servers": [asked]})
    relayed = until(lambda: found if len(found := alpha.candidates("relay")) == 2 else None)
    assert {each["address"].rpartition(":")[0] for each in relayed} == {str(server.address), "[fd31::3]"}


@pytest.mark.parametrize(("rules", "passes"), [
    ({}, False),
    ({"allowed_peers": ["172.17.0.0/16", "fd17::/64"]}, True),
    ({"allowed_peers": ["172.17.0.0/16", "fd17::/64"], "denied_peers": ["172.17.0.2/32", "fd17::2/128"]}, False),
])  # fmt: skip
def test_a_container_on_another_bridge_of_the_relays_host(lab: Lab, rules: dict[str, list[str]], passes: bool) -> None:
    gamma, _ = relaying(lab, **rules)
    ipv6 = gamma.node.address.version == 6
    bridge, there = ("fd17::1/64", "fd17::2") if ipv6 else ("172.17.0.1/16", "172.17.0.2")
    gamma.node.run(["ip", "link", "add", "docker0", "type", "bridge"])
    gamma.node.run(["ip", "address", "add", bridge, "dev", "docker0", *(["nodad"] if ipv6 else [])])
    gamma.node.run(["ip", "link", "set", "docker0", "up"])
    client = lab.node("client")
    opened = client.open_socket(socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_DGRAM)
    with TurnSocket(opened, (str(gamma.node.address), PORT), SECRET) as one:
        one.allocate()
        peer = (ip_address(there), 53)
        one.send(peer, b"from outside")
        one.run(lambda: one.client._peers[peer].permitted if passes else isinstance(one.events[-1], Refused))
