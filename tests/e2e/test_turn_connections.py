"""A network that lets no UDP out is passed through a relay that is reached by TCP or TLS.

coturn listens for both, with a certificate that the test makes; the NAT in front of a node drops every datagram.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from lab import Lab, Node, Ping
from lab.cluster import Member, join_by_candidates
from lab.nat_kinds import forget, pass_no_datagrams
from lab.patience import until
from lab.turn import CREDENTIAL, PORT, TLS_PORT, USERNAME, Certificate, coturn, make_certificate

NAME = "turn.example"


class Server:
    """A coturn.  turn: as it is configured, by transport."""

    def __init__(self, node: Node, certificate: Certificate) -> None:
        self.node = node
        self.certificate = certificate
        self.turn = {
            "udp": self.login(f"{node.address}:{PORT}"),
            "tcp": self.login(f"turn:{node.endpoint(PORT)}?transport=tcp"),
            "tls": self.login(f"turns:{NAME}", ca_file=str(certificate.file)),
        }

    def login(self, addr: str, **more: str) -> dict[str, str]:
        return {"addr": addr, "username": USERNAME, "credential": CREDENTIAL} | more

    def connected(self) -> int:
        """How many connections it has."""
        ports = f"( sport = :{PORT} or sport = :{TLS_PORT} )"
        return len(self.node.run(["ss", "-Htn", "state", "established", ports]).splitlines())


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture
def server(lab: Lab) -> Iterator[Server]:
    node = lab.node("server")
    certificate = make_certificate(lab.directory, NAME, str(node.address))
    with coturn(node, lab.directory, connections=certificate):
        yield Server(node, certificate)


def shut_in(lab: Lab, server: Server, number: int, name: str) -> Member:
    """A node behind a NAT that drops UDP, which knows the server by name."""
    box = lab.nat(f"nat{number}", symmetric=False)
    pass_no_datagrams(box)
    member = Member(lab, number, name, behind=box)
    with member.node.hosts.open("a") as hosts:
        hosts.write(f"{server.node.address} {NAME}\n")
    return member


def start(member: Member, *turn: dict[str, str]) -> None:
    member.start()
    set_up(member, *turn)


def set_up(member: Member, *turn: dict[str, str]) -> None:
    member.set_up({"stun_servers": ["none"], "turn_servers": list(turn), "hole_punch_timeout_secs": 6})


@contextmanager
def joined(lab: Lab, alpha: Member, beta: Member) -> Iterator[Ping]:
    """Let both know each other, and echoes flow between a container of each."""
    containers, addresses = join_by_candidates(lab, alpha, beta)
    passing = Ping(containers[0], addresses[1])
    try:
        passing.wait_for(5)
        yield passing
    finally:
        passing.stop()


def connection(member: Member) -> str:
    (peer,) = member.request("nat_status")["peers"]
    return str(peer["connection_type"])


@pytest.mark.parametrize("transport", ["tcp", "tls"])
def test_a_node_without_udp_reaches_a_public_one(lab: Lab, server: Server, transport: str) -> None:
    alpha, beta = shut_in(lab, server, 1, "alpha"), Member(lab, 2, "beta")
    start(alpha, server.turn[transport])
    start(beta)
    until(lambda: alpha.candidates("relay"))
    with joined(lab, alpha, beta):
        until(lambda: connection(alpha) == "relayed")
    assert alpha.findings() == []


def test_two_without_udp_reach_each_other_and_again_when_their_connections_are_cut(lab: Lab, server: Server) -> None:
    alpha, beta = shut_in(lab, server, 1, "alpha"), shut_in(lab, server, 2, "beta")
    for member, transport in ((alpha, "tcp"), (beta, "tls")):
        start(member, server.turn["udp"], server.turn[transport])  # the datagrams of the first are lost
        until(lambda member=member: member.candidates("relay"))
    with joined(lab, alpha, beta) as passing:
        until(lambda: connection(alpha) == connection(beta) == "relayed")
        cut(server, alpha, beta)
        for member, other in ((alpha, beta), (beta, alpha)):
            until(lambda member=member: member.candidates("relay"))
            other.introduce_by_candidates(member)  # which has another address on the relay now
        passing.wait_for(5)
        forget(alpha.nat)  # the NAT knows the connection no more, and tells nobody
        passing.wait_for(5)


def cut(server: Server, *members: Member) -> None:
    """Let the server's end of all connections be reset."""
    before = [member.candidates("relay") for member in members]
    server.node.run(["ss", "-K", "-tn", f"( sport = :{PORT} or sport = :{TLS_PORT} )"])
    for member, had in zip(members, before, strict=True):
        until(lambda member=member, had=had: member.candidates("relay") != had)


@pytest.mark.parametrize("transport", ["tcp", "tls"])
def test_nodes_without_ipv4_and_udp_reach_each_other_also_after_a_restart(transport: str) -> None:
    """Their own firewalls let nothing out but TCP."""
    with Lab(ipv6=True) as lab:
        node = lab.node("server")
        certificate = make_certificate(lab.directory, NAME, str(node.address))
        with coturn(node, lab.directory, connections=certificate):
            turn = Server(node, certificate).login(f"turn:[{node.address}]?transport=tcp")
            if transport == "tls":
                turn = Server(node, certificate).login(f"turns:[{node.address}]", ca_file=str(certificate.file))
            members = Member(lab, 1, "alpha"), Member(lab, 2, "beta")
            for member in members:
                drop = "type filter hook output priority 0; oifname uplink meta l4proto udp drop;"
                rules = f"table inet no_udp {{ chain out {{ {drop} }}; }}"
                member.node.run(["nft", rules])
                start(member, turn)
                until(lambda member=member: member.candidates("relay"))
            alpha, beta = members
            with joined(lab, alpha, beta) as passing:
                alpha.node.kill()
                alpha.start()
                until(lambda: alpha.candidates("relay"))
                beta.introduce_by_candidates(alpha)
                passing.wait_for(5)


def test_datagrams_are_preferred_where_they_pass(lab: Lab, server: Server) -> None:
    alpha = Member(lab, 1, "alpha")
    start(alpha, server.turn["tcp"], server.turn["udp"])
    until(lambda: alpha.candidates("relay"))
    assert server.connected() == 0


@pytest.mark.parametrize(("changes", "words"), [
    ({"ca_file": ""}, r"certificate is not accepted.*self.signed.*ca_file"),
    ({"addr": "turns:{at}:5349", "ca_file": "{other}"}, "certificate is not accepted"),
    ({"addr": "turns:wrong.example"}, "certificate is not accepted: Hostname mismatch.*wrong.example"),
    ({"ca_file": "/nowhere/ca.pem"}, "ca_file /nowhere/ca.pem: No such file or directory"),
    ({"ca_file": "/etc/hostname"}, "ca_file /etc/hostname has no certificate"),
    ({"addr": "turns:{at}:3479"}, "Connection refused"),
    ({"credential": "not it"}, "401"),
])  # fmt: skip
def test_what_is_wrong_is_told_and_is_no_more_when_it_is_right(
    lab: Lab, server: Server, changes: dict[str, str], words: str
) -> None:
    alpha = shut_in(lab, server, 1, "alpha")
    with alpha.node.hosts.open("a") as hosts:
        hosts.write(f"{server.node.address} wrong.example\n")
    other = make_certificate(lab.directory, "other.example")
    filled = {key: value.format(at=server.node.address, other=other.file) for key, value in changes.items()}
    wrong = server.turn["tls"] | filled
    start(alpha, wrong)
    failure = until(lambda: alpha.request("nat_status").get("relay_failure"))
    assert re.search(words, failure), failure
    assert wrong["addr"] in failure
    (finding,) = alpha.findings()
    assert failure in finding["problem"]
    until(lambda: failure in alpha.node.log.read_text(), alpha.node.log_tail)
    set_up(alpha, server.turn["tls"])
    until(lambda: alpha.candidates("relay"))
    assert "relay_failure" not in alpha.request("nat_status")


def test_a_server_that_does_not_speak_tls_is_named(lab: Lab, server: Server) -> None:
    alpha = shut_in(lab, server, 1, "alpha")
    with server.node.open_socket() as listener:
        listener.bind((str(server.node.address), 443))
        listener.listen()
        start(alpha, server.login(f"turns:{NAME}:443"))
        for _ in (4, 6):  # it is asked for an address of each IP version
            with listener.accept()[0] as opened:
                opened.recv(4000)
                opened.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        failure = until(lambda: alpha.request("nat_status").get("relay_failure"))
    assert failure == f"TURN server turns:{NAME}:443: TLS fails: wrong version number"
