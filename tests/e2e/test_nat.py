"""Nodes behind NATs: found, reached, relayed; with real NATs, a real STUN and TURN server, and real tunnels.

A NAT here keeps the port, as home routers do, so that a hole can be punched; or it is symmetric, so that none can.
"""

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from lab import Lab, Node, Ping, Refused
from lab.cluster import PORT, Member, join_by_candidates
from lab.patience import until
from lab.turn import CREDENTIAL, USERNAME, coturn
from lab.turn import PORT as STUN_PORT

SECRET = "shared by the nodes of the cluster"


def connection(member: Member, other: Member) -> dict[str, str]:
    """How a node reaches another."""
    peers = member.request("nat_status")["peers"]
    return next(peer for peer in peers if peer["node_id"] == other.public_key)


class Server:
    """A STUN and TURN server.  It has two addresses, so that a symmetric NAT shows."""

    def __init__(self, node: Node, second: str) -> None:
        self.address = str(node.address)
        self.stun = [f"{self.address}:{STUN_PORT}", f"{second}:{STUN_PORT}"]
        self.turn = {"addr": self.stun[0], "username": USERNAME, "credential": CREDENTIAL}


def config(server: Server, **more: Any) -> dict[str, Any]:
    return {"enabled": True, "stun_servers": server.stun, "hole_punch_timeout_secs": 6} | more


class Two:
    """alpha and beta with a container each, which know each other by their candidates only."""

    def __init__(self, lab: Lab, alpha: Member, beta: Member) -> None:
        self.members = (alpha, beta)
        self.containers, self.addresses = join_by_candidates(lab, alpha, beta)

    def wait_for(self, *types: str) -> None:
        """Until both reach each other, in a way of these types."""
        for member, other in (self.members, self.members[::-1]):
            until(lambda member=member, other=other: connection(member, other)["connection_type"] in types)

    def ping(self) -> None:
        """Echoes in both directions."""
        for container, address in zip(self.containers, self.addresses[::-1], strict=True):
            passing = Ping(container, address, 0.02)
            try:
                passing.wait_for(5)
            finally:
                lost = passing.stop()
            assert lost == []


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture
def server(lab: Lab) -> Iterator[Server]:
    node, second = lab.node("server"), "172.31.0.200"
    node.run(["ip", "address", "add", f"{second}/24", "dev", "uplink"])
    with coturn(node, lab.directory, "-L", second):
        yield Server(node, second)


def start(member: Member, nat: dict[str, Any], *kinds: str) -> Member:
    """Start a node and wait for its candidates of these types."""
    member.start()
    member.set_up(nat)
    until(lambda: all(member.candidates(kind) for kind in kinds))
    return member


def behind(lab: Lab, *, symmetric: bool = False) -> tuple[Member, Member]:
    """alpha and beta behind a NAT each."""
    left, right = (lab.nat(name, symmetric=symmetric) for name in ("left", "right"))
    return Member(lab, 1, "alpha", behind=left), Member(lab, 2, "beta", behind=right)


def test_a_hole_is_punched_and_outlives_the_daemon(lab: Lab, server: Server) -> None:
    alpha, beta = behind(lab)
    for member in (alpha, beta):
        start(member, config(server), "server-reflexive")
        (seen,) = member.candidates("server-reflexive")
        assert seen["address"] == f"{member.nat.address}:{PORT}"
        assert seen["priority"] < member.candidates("host")[0]["priority"]
    two = Two(lab, alpha, beta)
    two.wait_for("hole-punched")
    two.ping()
    there = {"connection_type": "hole-punched", "remote_endpoint": f"{beta.nat.address}:{PORT}"}
    assert connection(alpha, beta) == {"node_id": beta.public_key} | there

    passing = Ping(two.containers[0], two.addresses[1])
    passing.wait_for(5)
    alpha.node.stop()
    passing.wait_for(5)
    alpha.start()
    passing.wait_for(5)
    assert connection(alpha, beta) == {"node_id": beta.public_key} | there
    alpha.introduce_by_candidates(beta)
    alpha.request("nat_tick")
    passing.wait_for(5)
    assert passing.stop() == []
    assert connection(alpha, beta) == {"node_id": beta.public_key} | there


def test_two_behind_symmetric_nats_are_relayed(lab: Lab, server: Server) -> None:
    alpha, beta = behind(lab, symmetric=True)
    for member in (alpha, beta):
        start(member, config(server, turn_servers=[server.turn]), "server-reflexive", "relay")
        (relayed,) = member.candidates("relay")
        assert relayed["address"].startswith(f"{server.address}:")
        until(lambda member=member: "(a symmetric NAT)" in member.node.log.read_text(), member.node.log_tail)
    two = Two(lab, alpha, beta)
    two.wait_for("relayed")
    two.ping()

    passing = Ping(two.containers[0], two.addresses[1])
    for member, other in ((alpha, beta), (beta, alpha)):  # relayed peers wait for the daemon, and hardly longer
        member.node.stop()
        member.start()
        passing.wait_for(5)
        until(lambda member=member: member.candidates("relay"))
        other.introduce_by_candidates(member)  # which has another address on the relay now
    passing.stop()
    two.wait_for("relayed")


def test_a_node_relays_for_others(lab: Lab) -> None:
    gamma = Member(lab, 3, "gamma")
    relay = {"listen_port": 3478, "external_addr": f"{gamma.node.address}:3478", "max_sessions": 8}
    at = f"{gamma.node.address}:3478"
    start(gamma, {"stun_servers": [], "relay_server": relay | {"auth_credential": SECRET}})
    turn = {"addr": at, "username": "anybody", "credential": SECRET}
    alpha, beta = behind(lab, symmetric=True)
    for member in (alpha, beta):
        nat = {"stun_servers": [at], "turn_servers": [turn], "hole_punch_timeout_secs": 6}
        start(member, nat, "server-reflexive", "relay")
    two = Two(lab, alpha, beta)
    two.wait_for("relayed")
    two.ping()

    alpha.set_up({"stun_servers": [at], "turn_servers": [turn | {"credential": "not it"}]})
    finding = until(alpha.findings)[0]
    assert finding["object"] == "this node" and f"TURN server {at}: 401" in finding["problem"]


def test_who_is_public_is_reached_directly_and_without_a_word_of_ours(lab: Lab, server: Server) -> None:
    alpha, beta = Member(lab, 1, "alpha", behind=lab.nat("left", symmetric=True)), Member(lab, 2, "beta")
    start(alpha, config(server), "server-reflexive")
    start(beta, {"enabled": False})  # it answers no checks: WireGuard does it alone
    two = Two(lab, alpha, beta)
    two.wait_for("direct")
    two.ping()
    assert [candidate["candidate_type"] for candidate in beta.candidates()] == ["host"]
    host, _, port = connection(beta, alpha)["remote_endpoint"].partition(":")
    assert host == str(alpha.nat.address) and int(port) != PORT


def test_without_the_capability_or_a_way_out_all_else_works(lab: Lab) -> None:
    alpha, beta = Member(lab, 1, "alpha"), Member(lab, 2, "beta")
    alpha.node.program = ["setpriv", "--bounding-set=-net_raw", *alpha.node.program]
    for member in (alpha, beta):
        member.start()
        member.set_up()  # with public STUN servers, of which nobody here has heard
    two = Two(lab, alpha, beta)
    two.wait_for("direct")
    two.ping()
    (finding,) = alpha.findings()
    assert finding["object"] == "CAP_NET_RAW"
    assert alpha.node.log.read_text().count("CAP_NET_RAW") == 1
    for _ in range(3):
        beta.request("nat_tick")
    assert beta.findings() == []
    assert until(lambda: beta.node.log.read_text().count("no STUN server answers")) == 1


def test_nothing_leaves_a_node_that_shall_not_traverse(lab: Lab, server: Server) -> None:
    alpha, beta = Member(lab, 1, "alpha"), Member(lab, 2, "beta")
    start(beta, config(server))
    alpha.start()
    nat = config(server, turn_servers=[server.turn])
    with lab.capture(alpha.node) as silent:
        alpha.set_up(nat | {"enabled": False})
        alpha.introduce_by_candidates(beta)
        alpha.request("nat_tick")
        until(alpha.candidates)
    assert [packet for packet in silent.packets() if packet.source == alpha.node.address] == []
    assert connection(alpha, beta) == {"node_id": beta.public_key, "connection_type": "unreachable"}
    with lab.capture(alpha.node) as talking:
        alpha.set_up(nat)
        beta.introduce_by_candidates(alpha)
        until(lambda: connection(alpha, beta)["connection_type"] == "direct")
    assert [packet for packet in talking.packets() if packet.source == alpha.node.address]


def test_a_relay_that_cannot_be_is_refused_by_the_setup(lab: Lab) -> None:
    alpha = Member(lab, 1, "alpha")
    alpha.start()
    relay = {"listen_port": 3478, "external_addr": str(alpha.node.address), "max_sessions": 8, "auth_credential": "x"}

    def listens(port: int) -> bool:
        return f":{port} " in alpha.node.run(["ss", "-Hlun"])

    with alpha.node.open_socket(kind=socket.SOCK_DGRAM) as other:
        other.bind((str(alpha.node.address), 3478))
        with pytest.raises(Refused, match=r"request\.nat\.relay_server\.listen_port.*3478"):
            alpha.set_up({"relay_server": relay})
    with pytest.raises(Refused, match=r"request\.nat\.relay_server\.external_addr"):
        alpha.set_up({"relay_server": relay | {"external_addr": "here"}})
    with pytest.raises(Refused, match=r"request\.nat\.turn_servers\.addr: 'a b' is not a DNS name"):
        alpha.set_up({"turn_servers": [{"addr": "a b", "username": "", "credential": ""}]})
    assert "interface" not in alpha.request("status")

    alpha.set_up({"relay_server": relay})
    assert listens(3478)
    alpha.set_up({"relay_server": relay | {"listen_port": 3479}})
    assert listens(3479) and not listens(3478)
    with pytest.raises(Refused, match=str(PORT)):
        alpha.set_up({"relay_server": relay | {"listen_port": PORT}})
    assert listens(3479)
    alpha.node.stop()
    with alpha.node.open_socket(kind=socket.SOCK_DGRAM) as other:
        other.bind((str(alpha.node.address), 3479))
        alpha.start()
        (finding,) = alpha.findings()
        assert (finding["object"], "3479" in finding["problem"]) == ("the relay", True)
    alpha.request("nat_tick")
    assert listens(3479)

    for none in ({**relay, "auth_credential": None}, {}):  # legal, and no reason to be without a network
        alpha.set_up({"relay_server": none})
        assert not listens(3479) and not listens(3478)
        (finding,) = alpha.findings()
        assert finding["object"] == "the relay" and "auth_credential" in finding["problem"]
    assert alpha.node.log.read_text().count("there is no relay: nat.relay_server.auth_credential") == 1
    alpha.set_up({"relay_server": relay})
    assert listens(3478)
    assert alpha.findings() == []
    alpha.request("teardown_global_overlay")
    assert not listens(3478)


def test_what_is_left_out_or_empty_is_built_in(lab: Lab) -> None:
    """A node of ours is both built-in STUN servers here, and a relay at the address from which it goes out."""
    gamma = Member(lab, 3, "gamma")
    start(gamma, {"stun_servers": ["none"], "relay_server": {"listen_port": 19302, "auth_credential": SECRET}})
    alpha = Member(lab, 1, "alpha", behind=lab.nat("left"))
    alpha.start()
    with alpha.node.hosts.open("a") as hosts:
        hosts.write(f"{gamma.node.address} stun.l.google.com stun1.l.google.com\n")

    def asks() -> list[Any]:
        return [packet for packet in capture.packets() if packet.destination == gamma.node.address]

    with lab.capture(alpha.node) as capture:
        alpha.set_up({"stun_servers": ["none"]})
        alpha.request("nat_tick")
        until(alpha.candidates)
    assert asks() == []
    assert alpha.candidates("server-reflexive") == []
    zeros = ("hole_punch_timeout_secs", "stun_refresh_interval_secs", "max_candidate_pairs")
    turn = {"addr": f"{gamma.node.address}:19302", "credential": SECRET}
    for nat in ({}, {"stun_servers": [], "turn_servers": [], **dict.fromkeys(zeros, 0)}, {"turn_servers": [turn, {}]}):
        alpha.set_up({"stun_servers": ["none"]})
        until(lambda: not alpha.candidates("server-reflexive"))
        alpha.set_up(nat)
        (seen,) = until(lambda: alpha.candidates("server-reflexive"))
        assert seen["address"].startswith(f"{alpha.nat.address}:")
    (relayed,) = until(lambda: alpha.candidates("relay"))
    assert relayed["address"].startswith(f"{gamma.node.address}:")
    assert "nat.turn_servers[1] has no addr, and is left out" in alpha.node.log.read_text()
    with pytest.raises(Refused, match=r"request\.nat\.stun_servers: 'none' means to ask nobody"):
        alpha.set_up({"stun_servers": ["none", "stun.example:3478"]})
