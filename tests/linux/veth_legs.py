"""A bridge, a node, and the legs of containers, as the tests of veths want them."""

import os
import socket
from ipaddress import ip_interface, ip_network

import pytest

from overlayd.errors import MechanismError
from overlayd.linux import bridge, netns, veth
from overlayd.model.objects import Bridge, Veth

BRIDGE = {4: "10.9.0.1/24", 6: "fd09::1/112"}
NODE = {4: "10.200.0.1/16", 6: "fd0a::1/64"}
EVERYTHING = {4: "0.0.0.0/0", 6: "::/0"}
VERSIONS = pytest.mark.parametrize("version", [4, 6])


def make_bridge(version=4):
    bridge.create(Bridge("web", "zl-web-b", ip_interface(BRIDGE[version]), 1340))


def service_leg(box, number=5, version=4):
    """The veth of a container on the bridge of service web."""
    gateway = ip_interface(BRIDGE[version])
    return Veth(
        name=f"veth-{box.pid}-s",
        netns=box.netns,
        interface="eth0",
        service="web",
        bridge="zl-web-b",
        address=ip_interface(f"{gateway.ip + number}/{gateway.network.prefixlen}"),
        gateway=gateway.ip,
        routes=frozenset({ip_network(EVERYTHING[version])}),
        mac=bytes([2, 0, 0, 0, number >> 8, number & 255]),
        mtu=1340,
    )


def global_leg(box, version=4):
    """The veth of a container in the global overlay; the gateway is an address of another link of the host."""
    node = ip_interface(NODE[version])
    return Veth(
        name=f"veth-{box.pid}-g",
        netns=box.netns,
        interface="eth1",
        service=None,
        bridge=None,
        address=ip_interface(node.ip + 9),
        gateway=node.ip,
        routes=frozenset({node.network}),
        mac=bytes([2, 0, 0, 0, 1, 9]),
        mtu=1340,
    )


def make_node(shell, version=4):
    shell(f"ip link add node0 type bridge; ip link set node0 up; ip address add {NODE[version]} dev node0 nodad")


def refusal(wanted):
    with pytest.raises(MechanismError) as raised:
        veth.create(wanted)
    return raised.value


def udp(version, bound):
    found = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    # Less than a second: that is when an unanswered address resolution is tried again.
    found.settimeout(0.5)
    found.bind((str(bound), 5000))
    return found


def udp_inside(box, version, bound):
    descriptor = netns.open_namespace(box.netns)
    try:
        with netns.entered(descriptor):
            return udp(version, bound)
    finally:
        os.close(descriptor)
