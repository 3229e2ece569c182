"""Connections that begin while our tables are away do not outlive their return, where they break a rule or lack NAT."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from lab import Container, Lab, ping
from lab.cluster import CLUSTER, CLUSTER6, Member
from lab.patience import until
from lab.traffic import Ping

# Another table that lets established connections pass, as every firewall does: without ours nobody tracks any.
OTHERS = (
    "add table inet d; add chain inet d f { type filter hook forward priority 0; };"
    " add rule inet d f ct state established accept"
)


@dataclass
class Town:
    member: Member
    insider: Container
    inside: str
    outsider: Container
    friend: Container


@pytest.fixture(scope="module", params=[CLUSTER, CLUSTER6], ids=["ipv4", "ipv6"])
def town(request: pytest.FixtureRequest) -> Iterator[Town]:
    with Lab(ipv6=request.param == CLUSTER6) as lab:
        member = Member(lab, 1, "alpha", request.param)
        member.start()
        member.set_up()
        for service in ("web", "db"):
            member.set_up_service(service)
        insider, outsider, friend = (lab.container() for _ in range(3))
        inside = member.attach(insider, "web", isolation_network="blue")
        member.attach(outsider, "db")
        member.attach(friend, "db", isolation_network="blue")
        member.node.run(["nft", OTHERS])
        yield Town(member, insider, inside, outsider, friend)


def unanswered(running: Ping, seconds: float) -> bool:
    """Whether no echo is answered for so long."""
    before = len(running.received)
    time.sleep(seconds)
    return len(running.received) == before


def until_ruled(member: Member) -> None:
    until(lambda: "compare4" in member.node.run(["nft", "list", "ruleset"]), member.node.log_tail)


@pytest.mark.parametrize("damage", ["nft flush ruleset", "nft delete table inet overlayd"])
def test_what_breaks_a_rule_is_cut_when_the_tables_are_back(town: Town, damage: str) -> None:
    intruder = Ping(town.outsider, town.inside, 0.002)
    allowed = Ping(town.friend, town.inside, 0.01)
    try:
        allowed.wait_for(5)
        assert not intruder.received
        town.member.node.run(["sh", "-c", f"{damage}; nft '{OTHERS}'"])
        until_ruled(town.member)
        until(lambda: unanswered(intruder, 0.5), "it goes on")
        allowed.wait_for(5)
    finally:
        intruder.stop()
        allowed.stop()


def test_what_began_without_rules_before_a_start_is_judged_by_it(town: Town) -> None:
    """The daemon is away, and so are its rules: a member is reached, and nothing is masqueraded."""
    outside = str(town.member.lab.outside_address.ip)
    ping(town.outsider, outside)
    town.member.node.kill()
    town.member.node.run(["sh", "-c", f"nft flush ruleset; nft '{OTHERS}'"])
    intruder = Ping(town.outsider, town.inside, 0.01)
    leaving = Ping(town.outsider, outside, 0.01)
    try:
        intruder.wait_for(5)
        assert unanswered(leaving, 0.3)
        town.member.start()
        leaving.wait_for(5)
        until(lambda: unanswered(intruder, 0.5), "it goes on")
    finally:
        intruder.stop()
        leaving.stop()
