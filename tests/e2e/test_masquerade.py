"""Out of the cluster: masqueraded, whatever the host filters, and forgotten with the address."""

import re
import socket

import pytest
from lab import Container, Lab, ping
from lab.cluster import PORT, Member
from lab.lab import OUTSIDE
from lab.patience import until

DROPPING = "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }"


def logged(member: Member) -> str:
    return member.node.log.read_text()


def connections(member: Member, address: str) -> int:
    """How many tracked connections have the address at an end, before or after NAT."""
    table = member.node.run(["cat", "/proc/net/nf_conntrack"])
    return sum(f"={address} " in line for line in table.splitlines())


def test_a_strict_reverse_path_filter_of_the_host_is_no_obstacle(lab: Lab) -> None:
    member = Member(lab, 2, "strict")
    for which in ("all", "default"):
        member.node.write_sysctl(f"net/ipv4/conf/{which}/rp_filter", "1")
    member.node.write_sysctl("net/ipv4/ip_forward", "0")
    member.start()
    member.set_up()
    member.set_up_service("web")
    container = lab.container()
    address = member.attach(container, "web", join_global=True)
    ping(container, str(OUTSIDE.ip))
    ping(member.node, address)


def test_a_firewall_that_drops_is_reported_with_the_missing_rule(lab: Lab) -> None:
    member = Member(lab, 3, "walled")
    member.node.run(["nft", DROPPING])
    member.start()
    assert "firewall drops" not in logged(member), "nothing is forwarded yet"
    member.set_up()
    member.set_up_service("web")
    until(lambda: "firewall drops" in logged(member), "no warning")
    container = lab.container()
    member.attach(container, "web")
    with pytest.raises(AssertionError):
        ping(container, str(OUTSIDE.ip), count=1, seconds=1)
    (warning,) = (line for line in logged(member).splitlines() if "firewall drops" in line)
    assert "table ip filter chain FORWARD has policy drop" in warning

    member.node.kill()
    member.start()
    until(lambda: logged(member).count("firewall drops") == 2, "a restart does not repeat the warning")
    commands = re.findall(r"nft insert rule [^;)]+", warning)
    assert len(commands) == 2
    for command in commands:
        member.node.run(["nft", command.removeprefix("nft ")])
    ping(container, str(OUTSIDE.ip))
    member.set_up_service("another")
    until(lambda: "no longer in the overlay's way" in logged(member), "the rule was not noticed")


def linger(container: Container, member: Member, address: str) -> None:
    """Leave a tracked connection of the container to the outside behind."""
    with container.open_socket(kind=socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", (str(OUTSIDE.ip), 9))
    until(lambda: connections(member, address) > 0, "nothing is tracked")


def test_no_connection_outlives_the_holder_of_its_address(lab: Lab, member: Member) -> None:
    member.set_up_service("passing")
    container = lab.container()
    address = member.attach(container, "passing")
    linger(container, member, address)
    member.detach(container)
    until(lambda: connections(member, address) == 0, "tracked after a detach")

    dying = lab.container()
    address = member.attach(dying, "passing")
    linger(dying, member, address)
    dying.kill()
    until(lambda: connections(member, address) == 0, "tracked after a death")

    held = member.request("allocate_ip", service="", join_global=True)["ip"]
    member.node.run(["ip", "address", "add", f"{held}/32", "dev", "lo"])
    with member.node.open_socket(kind=socket.SOCK_DGRAM) as sender:
        sender.bind((held, 0))
        sender.sendto(b"x", (str(OUTSIDE.ip), 9))
    until(lambda: connections(member, held) > 0, "nothing is tracked")
    member.request("release_ip", ip=held)
    until(lambda: connections(member, held) == 0, "tracked after a release")
    member.node.run(["ip", "address", "delete", f"{held}/32", "dev", "lo"])
    member.request("teardown_service_overlay", service="passing")


def test_a_container_does_not_take_the_port_of_its_nodes_tunnel_towards_a_peer(lab: Lab) -> None:
    """Whoever is tracked from that port first is sent what the peer sends there: its handshakes, to a container."""
    alpha, beta = Member(lab, 4, "taken"), Member(lab, 5, "beta")
    for member in (alpha, beta):
        member.start()
        member.set_up({"enabled": False})
        member.set_up_service("web")
    thief, far = lab.container(), lab.container()
    address, beyond = alpha.attach(thief, "web"), beta.attach(far, "web")
    assert leaves_from(alpha, thief, beta, 5353) == 5353, "the ports of others are kept"
    assert leaves_from(alpha, thief, beta, PORT) < 32768
    for one, other, at in ((alpha, beta, address), (beta, alpha, beyond)):
        other.introduce(one)
        one.announce(other, at)
    ping(far, address)  # begun by the node that the thief sends to

    alpha.request(
        "setup_global_overlay",
        deployment="lab",
        instance_id=alpha.node.name,
        cluster_cidr=alpha.cluster,
        slice_cidr=alpha.slice,
        wg_port=1030,
    )
    assert leaves_from(alpha, thief, beta, 1030) >= 32768
    assert leaves_from(alpha, thief, beta, PORT + 1) == PORT + 1
    dedicated = alpha.request("setup_service_overlay", service="db", mode="dedicated")["wg_port"]
    assert leaves_from(alpha, thief, beta, dedicated) >= 32768


def leaves_from(member: Member, container: Container, to: Member, port: int) -> int:
    """The port from which what a container sends from `port` to another node's leaves its own node."""
    with container.open_socket(kind=socket.SOCK_DGRAM) as sender:
        sender.bind(("0.0.0.0", port))
        sender.sendto(b"x", (str(to.node.address), PORT))
    way = rf"sport={port} dport={PORT} .*src={to.node.address} dst={member.node.address} sport={PORT} dport=(\d+)"

    def tracked() -> list[str]:
        return re.findall(way, member.node.run(["cat", "/proc/net/nf_conntrack"]))

    until(lambda: len(tracked()) == 1, "nothing is tracked")
    return int(tracked()[0])
