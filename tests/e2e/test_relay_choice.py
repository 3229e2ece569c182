"""Which relay a node gets, over which IP version, and what a node's relay is no way to."""

import socket
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from lab import Lab
from lab.cluster import Member
from lab.patience import until
from lab.turn import TurnSocket

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
