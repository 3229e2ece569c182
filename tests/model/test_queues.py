"""What becomes of packets that are handed to a program."""

import pytest

from overlayd.model.firewall import BaseChain, Link, Packet, Ruleset, judge
from overlayd.model.queues import resolved

CHAIN = ("inet", "ips", "f")
HOOKED = BaseChain(CHAIN, "forward", "drop")
PACKET = Packet(4, Link("eth0"), Link("zl-a-b"), True)
OPAQUE = {"xt": {"type": "target", "name": "NFQUEUE"}}


@pytest.mark.parametrize(
    ("statement", "read", "end", "may_pass"),
    [
        ({"queue": {"num": 0}}, (), "queue", False),
        ({"queue": None}, (), "queue", False),
        ({"queue": {"num": 0}}, (1,), "queue", False),
        ({"queue": {"num": 1}}, (1,), "accept", True),
        ({"queue": {"num": {"range": [0, 3]}}}, (3,), "accept", True),
        ({"queue": {"num": {"range": [0, 3]}, "flags": ["fanout"]}}, (4,), "queue", False),
        ({"queue": {"num": 0, "flags": "bypass"}}, (), "accept", True),
        ({"queue": {"num": {"map": {}}}}, (7,), "accept", True),
        (OPAQUE, (), "queue", True),
        (OPAQUE, (7,), "accept", True),
    ],
)
def test_by_who_reads_the_queue(statement, read, end, may_pass):
    rules = Ruleset([HOOKED], {CHAIN: [[{"counter": None}, statement]]})
    verdict = judge(resolved(rules, read), HOOKED, PACKET)
    assert (verdict.end, verdict.may_pass) == (end, may_pass)


def test_others_packets_are_none_of_ours():
    other = {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "eth1"}}
    rules = Ruleset([HOOKED], {CHAIN: [[other, {"queue": None}], [{"accept": None}]]})
    assert judge(resolved(rules, ()), HOOKED, PACKET).end == "accept"
    assert resolved(Ruleset([HOOKED], {CHAIN: [[other, {"drop": None}]]}), ()).rules[CHAIN] == [[other, {"drop": None}]]
