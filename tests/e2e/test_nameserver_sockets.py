"""Where a node serves names, and when: by what is set up, by its options, and by who has the port already."""

import re
import socket

import pytest
from lab import Lab
from lab.cluster import CLUSTER, CLUSTER6, Member
from lab.dig import dig, listening
from lab.dnsmasq import Outside
from lab.patience import LIMIT, until
from lab.processes import run

NODE = "10.200.1.1"  # the node address of the first node


def test_teardown_closes_what_setup_opened(lab: Lab) -> None:
    member = Member(lab, 1, "closing")
    member.start()
    assert listening(member.node) == set()
    member.set_up()
    assert listening(member.node) == set()
    member.set_up_service("web")
    assert len(listening(member.node)) == 2
    member.request("teardown_service_overlay", service="web")
    assert listening(member.node) == set()
    member.set_up_service("web")
    assert member.node.stop() == 0
    assert listening(member.node) == set()


def test_the_node_address_is_served_as_long_as_it_is_asked_for(lab: Lab) -> None:
    member = Member(lab, 1, "asked")
    member.start("--dns-node-address")
    member.set_up()
    at_node = {f"udp {NODE}:53", f"tcp {NODE}:53"}
    assert listening(member.node) == at_node
    member.set_up_service("web")
    container, isolated = lab.container(), lab.container()
    address = member.attach(container, "web")
    member.attach(isolated, "web", isolation_network="blue")
    member.request("register_dns", name="web", ip=address)
    assert len(listening(member.node)) == 4
    for place in (container, isolated, member.node):
        for protocol in ("+notcp", "+tcp"):
            assert dig(place, NODE, "web", "A", protocol).records == [address]
    member.request("teardown_global_overlay")
    assert at_node.isdisjoint(listening(member.node))
    member.set_up()
    assert at_node <= listening(member.node)
    member.node.stop()
    member.start()
    assert len(listening(member.node)) == 2 and at_node.isdisjoint(listening(member.node))
    member.node.kill()
    member.start("--dns-node-address")
    assert at_node <= listening(member.node)
    member.request("teardown_service_overlay", service="web")
    assert listening(member.node) == at_node


@pytest.mark.parametrize("cluster", [CLUSTER, CLUSTER6], ids=["IPv4", "IPv6"])
def test_the_orchestrators_own_resolver_has_the_node_address(cluster: str) -> None:
    """It opens it after the set-up, plainly, as an orchestrator does; overlayd neither had it nor takes it later."""
    with Lab(ipv6=":" in cluster) as lab:
        member = Member(lab, 1, "alpha", cluster)
        member.start()
        address = member.set_up()["node_ip"]
        member.set_up_service("web")
        container = lab.container()
        web = member.attach(container, "web")
        member.request("register_dns", name="web", ip=web)
        gateway = member.gateway(web)
        family = socket.AF_INET6 if ":" in cluster else socket.AF_INET
        with (
            member.node.open_socket(family, socket.SOCK_DGRAM) as udp,
            member.node.open_socket(family, socket.SOCK_STREAM) as tcp,
        ):
            for each in (udp, tcp):
                each.bind((address, 53))
            tcp.listen()
            query = "AAAA" if ":" in cluster else "A"
            for restart in (None, member.node.stop, member.node.kill):
                if restart is not None:
                    restart()
                    member.start()
                assert dig(container, gateway, "web", query).records == [web]
                assert dig(container, gateway, "web", query, "+tcp").records == [web]
            udp.settimeout(LIMIT)
            container.run(["sh", "-c", f"dig +tries=1 +time=1 @{address} hello.example >/dev/null; true"])
            assert b"hello" in udp.recv(512), "queries to the node address are the orchestrator's"
        assert "is not served" not in member.node.log.read_text()
        assert "is as it should be" in doctor(member)


def doctor(member: Member) -> str:
    return member.node.try_overlayctl("doctor")[1]


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM], ids=["udp", "tcp"])
def test_a_port_that_is_taken(lab: Lab, kind: socket.SocketKind) -> None:
    member = Member(lab, 1, f"taken{kind}")
    with member.node.open_socket(socket.AF_INET, kind) as other:
        other.bind(("0.0.0.0", 53))
        if kind == socket.SOCK_STREAM:
            other.listen()
        member.start("--dns-node-address")
        member.set_up()
        assert f"DNS at {NODE}:53 is not served: another program has the port" in doctor(member)
        assert len(listening(member.node)) == 1, "the other program's; none of ours is left half open"
    until(lambda: f"udp {NODE}:53" in listening(member.node))
    assert dig(member.node, NODE, "nope").status == "NXDOMAIN"
    assert "is as it should be" in doctor(member)
    assert member.node.log.read_text().count("is not served") == 1, "logged once"


def test_options(lab: Lab) -> None:
    member = Member(lab, 1, "options")
    member.start("--dns-port", "0")
    member.set_up()
    assert listening(member.node) == set()
    member.node.stop()
    outside = Outside(lab)
    try:
        options = [
            "--dns-node-address",
            "--dns-port",
            "5353",
            "--dns-zone",
            "Svc.Example.",
            "--dns-upstream",
            f"192.0.2.1,{outside.address}:53",
        ]
        member.start(*options)
        assert listening(member.node) == set()
        member.request("register_dns", name="web", ip="10.200.1.9")
        answer = dig(member.node, NODE, "web.svc.example", "A", "-p", "5353")
        assert answer.records == ["10.200.1.9"]
        assert dig(member.node, NODE, "www.example.org", "A", "-p", "5353").records == ["192.0.2.80"]
    finally:
        outside.stop()


def test_ipv6() -> None:
    with Lab(ipv6=True) as lab:
        member = Member(lab, 1, "alpha", CLUSTER6)
        outside = Outside(lab)
        try:
            member.node.resolv_conf.write_text(f"nameserver {outside.address}\n")
            member.start("--dns-node-address")
            member.set_up()
            member.set_up_service("web")
            container = lab.container()
            address = member.attach(container, "web", isolation_network="blue")
            member.request("register_dns", name="web", ip=address)
            gateway = run(["ip", "netns", "exec", member.node.netns, "ss", "-Hlnu", "sport = :53"])
            servers = re.findall(r"\[(fd00:200:[0-9a-f:]+)\]:53", gateway)
            assert len(servers) == 2
            for server in servers:
                for protocol in ("+notcp", "+tcp"):
                    assert dig(container, server, "web", "AAAA", protocol).records == [address]
            assert dig(container, servers[0], "-x", address).records == ["web.overlay.local."]
            assert dig(container, servers[0], "www.example.org", "A").records == ["192.0.2.80"]
        finally:
            outside.stop()
