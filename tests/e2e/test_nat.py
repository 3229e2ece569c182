"""Nodes behind NATs: found, reached, relayed; with real NATs, a real STUN and TURN server, and real tunnels.

A NAT here keeps the port, as home routers do, so that a hole can be punched; or it is symmetric, so that none can.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from lab import Lab, Ping, Refused, ping
from lab.cluster import PORT, Member
from lab.coturn import Coturn

SECRET = "shared by the nodes of the cluster"


def until(condition: Callable[[], Any], seconds: float = 40) -> Any:
    """Wait until something is so; return what it is."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)
    return value


def connection(member: Member, other: Member) -> dict[str, str]:
    """How a node reaches another."""
    peers = member.request("nat_status")["peers"]
    return next(peer for peer in peers if peer["node_id"] == other.public_key)


def config(server: Coturn, **more: Any) -> dict[str, Any]:
    return {"enabled": True, "stun_servers": server.servers, "hole_punch_timeout_secs": 6} | more


class Two:
    """alpha and beta with a container each, which know each other by their candidates only."""

    def __init__(self, lab: Lab, alpha: Member, beta: Member) -> None:
        self.members = (alpha, beta)
        for member, other in ((alpha, beta), (beta, alpha)):
            member.introduce_by_candidates(other)
        self.containers = (lab.container(), lab.container())
        self.addresses = []
        for member, container in zip(self.members, self.containers, strict=True):
            member.set_up_service("web")
            self.addresses.append(member.attach(container, "web"))
        alpha.announce(beta, self.addresses[0])
        beta.announce(alpha, self.addresses[1])

    def wait_for(self, *types: str) -> None:
        """Until both reach each other, in a way of these types."""
        for member, other in (self.members, self.members[::-1]):
            until(lambda member=member, other=other: connection(member, other)["connection_type"] in types)

    def ping(self) -> None:
        ping(self.containers[0], self.addresses[1])
        ping(self.containers[1], self.addresses[0])


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def start(member: Member, nat: dict[str, Any], *kinds: str) -> Member:
    """Start a node and wait for its candidates of these types."""
    member.start("--log-level", "debug")
    member.set_up(nat)
    for kind in kinds:
        until(lambda: member.candidates(kind))
    return member


def test_both_behind_nats_that_keep_the_port(lab: Lab) -> None:
    server = lab.coturn()
    boxes = [lab.nat("left"), lab.nat("right")]
    alpha, beta = (Member(lab, number, name, behind=box) for number, name, box in zip((1, 2), ("alpha", "beta"), boxes, strict=True))
    for member, box in zip((alpha, beta), boxes, strict=True):
        start(member, config(server), "server-reflexive")
        (seen,) = member.candidates("server-reflexive")
        assert seen["address"] == f"{box.address}:{PORT}"
        assert seen["priority"] < member.candidates("host")[0]["priority"]
    two = Two(lab, alpha, beta)
    two.wait_for("hole-punched")
    two.ping()
    assert connection(alpha, beta)["remote_endpoint"] == f"{boxes[1].address}:{PORT}"
