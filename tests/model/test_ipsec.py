"""Which policy of IPsec decides about a packet, and what is said of one that is in the way."""

from ipaddress import ip_address, ip_network

import pytest

from overlayd.model.diversions import HERE, Question
from overlayd.model.ipsec import Policy, ipsec_findings

OWN, OUTER, FAR, THERE = map(ip_address, ("10.200.1.1", "192.0.2.1", "10.200.9.1", "192.0.2.9"))
CLUSTER, ALL = ip_network("10.200.0.0/16"), ip_network("0.0.0.0/0")
SENT = Question(FAR, "zl-d-1-g")
CARRIED = Question(FAR, "zl-d-1-g", "zl-d-1-web-b", ip_address("10.200.40.66"))
TUNNEL, TUNNELLED = Question(THERE, "", ports=(51820, 7)), Question(OUTER, HERE, "eth0", THERE, (7, 51820))


def found(packet, *policies):
    return ipsec_findings(policies, [packet], OWN, OUTER)


@pytest.mark.parametrize(
    ("packet", "directions"), [(SENT, ["out"]), (CARRIED, ["out", "fwd"]), (TUNNEL, ["out"]), (TUNNELLED, ["in"])]
)
def test_what_is_asked_at_which_turn(packet, directions):
    blocked = [each for each in ("in", "out", "fwd") if found(packet, Policy(each, ALL, ALL, blocks=True))]
    assert blocked == directions
    assert [each for each in ("in", "out", "fwd") if found(packet, Policy(each, blocks=True))] == directions


def test_the_first_that_is_for_all_such_packets_decides():
    block, spare = Policy("out", CLUSTER, CLUSTER, blocks=True), Policy("out", ALL, CLUSTER)
    assert found(SENT, spare, block) == []
    assert len(found(SENT, block, spare)) == 1
    assert len(found(SENT, spare._replace(protocol=6), block)) == 1, "the rest is blocked"
    assert len(found(SENT, block._replace(protocol=6))) == 1
    assert found(SENT, block._replace(destination=ip_network("10.200.8.0/24"))) == []
    assert found(SENT, block._replace(source=ip_network("fd00::/8"))) == []


@pytest.mark.parametrize(
    ("about", "decides"),
    [({"protocol": 17}, True), ({"protocol": 6}, False), ({"ports": (0, 7)}, True), ({"ports": (7, 0)}, False)],
)
def test_of_wireguards_packets_ports_are_known(about, decides):
    policy = Policy("out", ALL, ALL, blocks=True)._replace(**about)
    assert bool(found(TUNNEL, policy)) is decides


def test_what_is_said():
    (blocked,) = found(SENT, Policy("out", CLUSTER, ALL, 17, blocks=True))
    assert (blocked.code, blocked.severity) == ("ipsec-diverted", "error")
    assert blocked.line.startswith(
        "the IPsec policy src 10.200.0.0/16 dst 0.0.0.0/0 proto 17 dir out blocks the overlay's packets, as from"
        " 10.200.1.1 to 10.200.9.1; they are lost; ip xfrm policy delete src 10.200.0.0/16 dst 0.0.0.0/0 proto 17 dir"
        " out, and"
    )
    (default,) = found(CARRIED, Policy("fwd", blocks=True))
    assert default.remedy.startswith("ip xfrm policy setdefault fwd accept")
    below = Policy("out", ALL, ALL, transforms=True)
    assert [each.severity for each in found(TUNNEL, below)] == ["warning"], "IPsec below WireGuard is somebody's choice"
    assert [each.severity for each in found(TUNNEL, below._replace(keyless=True))] == ["error"]
    assert [each.severity for each in found(SENT, below)] == ["error"], "what leaves the overlay"


def test_without_an_address_nothing_is_said():
    block = Policy("out", blocks=True)
    assert ipsec_findings([block], [SENT], None, OUTER) == ipsec_findings([block], [TUNNEL], OWN, None) == []
