"""Which marks packets of ours carry when they are routed: against every way in which open conditions may turn out."""

import itertools
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.model.diversions import HERE, ICMP, TCP, UDP, Flow, Question, Rule
from overlayd.model.firewall import BaseChain, Link, Ruleset
from overlayd.model.marks import marked
from overlayd.model.objects import GROUP_BRIDGE, GROUP_DEVICE

LINKS = (Link("zl-b", GROUP_BRIDGE), Link("zl-d", GROUP_DEVICE))
FAR, NEAR = ip_address("10.200.9.1"), ip_address("10.200.40.66")
CARRIED = Question(FAR, "zl-d", "zl-b", NEAR)
OWN = Question(FAR, "zl-d")
SENT = Question(ip_address("192.0.2.9"), "", ports=(51820, 51821))
COMES = Question(ip_address("198.51.100.7"), HERE, "eth0", ip_address("192.0.2.9"), (51821, 51820))

META, CT = {"meta": {"key": "mark"}}, {"ct": {"key": "mark"}}
OPEN = {"limit": {"rate": 5, "per": "second"}}
ANY = [Rule(mark=(mark, 0xFFFFFFFF), priority=mark) for mark in range(1, 64)]
EVERY = Rule(mark=(0, 0), priority=99)


def sets(value, key=META):
    return {"mangle": {"key": key, "value": value}}


def match(left, right, op="=="):
    return {"match": {"op": op, "left": left, "right": right}}


def by(name, way="iifname"):
    return match({"meta": {"key": way}}, name)


def chain(*rules, hook="prerouting", table="x", name="y", family="inet", **more):
    return BaseChain((family, table, name), hook, "accept", **more), list(rules)


def ruleset(*chains, **others):
    """Base chains, and chains of the table x that they jump to."""
    rules = {base.name: list(rules) for base, rules in chains}
    rules |= {("inet", "x", name): list(found) for name, found in others.items()}
    return Ruleset([base for base, _ in chains], rules)


def told(found, *asked, rules=ANY):
    """The marks of packets, those that are not certain negative."""
    told = marked(found, asked, rules, LINKS, "eth0")
    return [(each.mark.value if each.mark.certain else -each.mark.value) for each in told]


MARKS = st.integers(0, 7)
ORDS = [[META, CT][i] for i in range(2)]
VALUES = st.one_of(
    MARKS,
    st.sampled_from(ORDS),
    st.builds(
        lambda operation, left, right: {operation: [left, right]}, st.sampled_from("&|^"), st.sampled_from(ORDS), MARKS
    ),
)
CONDITIONS = st.one_of(
    st.just(OPEN),
    st.sampled_from([by("zl-b"), by("eth0")]),
    st.builds(match, st.sampled_from(ORDS), MARKS, st.sampled_from(["==", "!="])),
    st.builds(lambda left, mask, right: match({"&": [left, mask]}, right), st.sampled_from(ORDS), MARKS, MARKS),
)
ACTIONS = st.one_of(
    st.builds(sets, VALUES, st.sampled_from(ORDS)),
    st.sampled_from([{each: None} for each in ("accept", "return", "drop", "counter")]),
    st.sampled_from([{"jump": {"target": "z"}}, {"goto": {"target": "z"}}]),
)
RULES = st.lists(st.builds(lambda some, action: [*some, action], st.lists(CONDITIONS, max_size=1), ACTIONS), max_size=4)


def number(value, marks):
    if isinstance(value, int):
        return value
    ((kind, body),) = value.items()
    if kind in ("meta", "ct"):
        return marks[kind]
    left, right = (number(each, marks) for each in body)
    return {"&": left & right, "|": left | right, "^": left ^ right}[kind]


class Ended(Exception):
    """The packet is accepted, or else dropped."""


def walk(chains, name, marks, turns):
    """What a packet carries behind a chain; turns: how open conditions turn out."""
    for statements in chains[name]:
        for statement in statements:
            ((kind, body),) = statement.items()
            if kind == "limit" and not next(turns):
                break
            if kind == "match":
                left, right = body["left"], body["right"]
                is_equal = right == "zl-b" if isinstance(right, str) else number(left, marks) == right
                if is_equal == (body["op"] == "!="):
                    break
            elif kind == "mangle":
                marks["meta" if body["key"] == META else "ct"] = number(body["value"], marks)
            elif kind in ("accept", "drop"):
                raise Ended(kind)
            elif kind == "return":
                return
            elif kind in ("jump", "goto"):
                walk(chains, body["target"], marks, turns)
                if kind == "goto":
                    return


@given(base=RULES, second=RULES, target=st.lists(st.just([sets(1)]), max_size=1) | RULES)
def test_all_that_a_packet_may_carry(base, second, target):
    target = [each for each in target if not {"jump", "goto"} & each[-1].keys()]
    chains = {"y": base, "second": second, "z": target}
    opens = sum(each == OPEN for rules in (*chains.values(), *[target] * 8) for each in itertools.chain(*rules))
    if opens > 6:
        return

    def carried(connection):
        """By each way that things may turn out, of packets that were not dropped."""
        found = set()
        for turns in itertools.product((True, False), repeat=opens):
            marks, turning = {"meta": 0, "ct": connection}, iter(turns)
            for name in ("y", "second"):
                try:
                    walk(chains, name, marks, turning)
                except Ended as end:
                    if str(end) == "drop":
                        break
            else:
                found.add((marks["meta"], marks["ct"]))
        return found

    first = carried(0)
    later = {pair for _, connection in first for pair in carried(connection)}
    firsts, laters = {mark for mark, _ in first}, {mark for mark, _ in later}
    found = ruleset(chain(*base), chain(*second, name="second", priority=1), z=target)
    expected = next((mark for each in (firsts, laters) if len(each) == 1 for mark in each if mark), 0)
    asked = marked(found, [CARRIED], [*ANY, EVERY], LINKS, "eth0")
    if expected:
        assert [each.mark.value for each in asked if each.mark.certain] == [expected]
    else:
        assert not any(each.mark.certain for each in asked)
        assert {each.mark.value for each in asked} >= (firsts | laters) - {0}, "and what answers may carry"


def test_what_marks_everything_of_a_link():
    found = ruleset(chain([by("zl-b"), sets(7)]))
    (asked,) = marked(found, [CARRIED, OWN, SENT], ANY, LINKS, "eth0")
    assert asked._replace(mark=None) == CARRIED
    assert asked.mark.chains == ("table inet x chain y",)
    assert told(found, CARRIED, rules=[]) == [], "with no rule for marks, none matters"
    assert told(found, CARRIED, rules=[Rule(mark=(9, 9), priority=9)]) == [7], "the kernel is asked, whoever is for it"
    ours = ruleset(chain([sets(7)], table="overlayd"))
    assert told(ours, CARRIED) == []


def test_by_protocol():
    found = ruleset(chain([match({"meta": {"key": "l4proto"}}, 6), sets(7)]))
    asked = marked(found, [CARRIED], [*ANY, EVERY], LINKS, "eth0")
    assert [(each.flow, each.mark.value, each.mark.certain) for each in asked if each.mark.certain] == [
        (Flow(TCP), 7, True)
    ]
    icmp = ruleset(chain([match({"payload": {"protocol": "icmp", "field": "type"}}, 8), sets(7)]))
    asked = marked(icmp, [CARRIED], ANY, LINKS, "eth0")
    assert {(each.flow, each.mark.certain) for each in asked} == {(None, False), (Flow(ICMP), False)}
    udp = ruleset(chain([match({"payload": {"protocol": "udp", "field": "dport"}}, 51820), sets(7)]))
    asked = marked(udp, [COMES, SENT], ANY, LINKS, "eth0")
    assert [(each.incoming, each.mark.certain) for each in asked] == [("eth0", True)]
    assert UDP not in {each.flow.protocol for each in asked if each.flow}


@pytest.mark.parametrize(
    ("value", "marks"),
    [
        ({"map": {"key": {"payload": {"protocol": "ip", "field": "saddr"}}, "data": {"set": [[str(NEAR), 5]]}}}, [5]),
        ({"map": {"key": {"payload": {"protocol": "ip", "field": "saddr"}}, "data": {"set": [["10.9.9.9", 5]]}}}, []),
        ({"map": {"key": {"payload": {"protocol": "tcp", "field": "dport"}}, "data": {"set": [[80, 5]]}}}, [-5, -5]),
        ({"map": {"key": {"payload": {"protocol": "ip", "field": "saddr"}}, "data": "@m"}}, [-9] * 4),
        ({"numgen": {"mode": "random", "mod": 2, "offset": 5}}, [-9] * 4),
        ({"|": [{"&": [META, 0xFF00]}, 6]}, [6]),
        ({"elem": {"val": 3}, "x": 1}, [-9] * 4),
    ],
)
def test_values(value, marks):
    rules = [Rule(mark=(9, 0xFF), priority=9)] if -9 in marks else ANY
    assert told(ruleset(chain([sets(value)])), CARRIED, rules=rules) == marks


@pytest.mark.parametrize("target", ["MARK", "CONNMARK"])
def test_targets_of_xtables_are_open(target):
    found = ruleset(chain([{"xt": {"type": "target", "name": target}}]))
    assert told(found, CARRIED, rules=[Rule(mark=(9, 9), priority=9)])[0] == -9


def test_verdict_maps():
    key = {"meta": {"key": "iifname"}}
    jump = {"vmap": {"key": key, "data": {"set": [["zl-b", {"jump": {"target": "z"}}], ["eth0", {"accept": None}]]}}}
    assert told(ruleset(chain([jump]), z=[[sets(7)]]), CARRIED) == [7]
    ended = {"vmap": {"key": key, "data": {"set": [["zl-b", {"return": None}]]}}}
    assert told(ruleset(chain([ended], [sets(7)])), CARRIED) == []
    other = {"vmap": {"key": key, "data": {"set": [["eth9", {"return": None}]]}}}
    assert told(ruleset(chain([other], [sets(7)])), CARRIED) == [7]
    named = {"vmap": {"key": key, "data": "@m"}}
    assert told(ruleset(chain([named], [sets(7)])), CARRIED) == [7]


def test_where_packets_meet_which_chains():
    assert told(ruleset(chain([sets(7)], hook="output")), OWN, SENT, CARRIED) == [], "which leads nobody another way"
    assert told(ruleset(chain([sets(7)], hook="output", reroutes=True)), OWN, SENT, CARRIED) == [7, 7]
    assert told(ruleset(chain([sets(7)], hook="forward")), CARRIED, OWN) == [], "it is routed by then"
    assert told(ruleset(chain([sets(7)], hook="prerouting", family="ip6")), CARRIED) == []
    assert told(ruleset(chain([sets(7)], hook="prerouting", family="bridge")), CARRIED, COMES) == [7]
    by_link = {"hook": "ingress", "family": "netdev"}
    assert told(ruleset(chain([sets(7)], **by_link, devices=("eth0",))), CARRIED, COMES) == [7]
    assert told(ruleset(chain([sets(7)], **by_link, devices=("veth-71-s",))), CARRIED, COMES) == [7]
    first, last = chain([sets(7)], priority=-5), chain([sets({"^": [META, 7]})], name="last", priority=5)
    assert told(ruleset(last, first), CARRIED) == [], "the last takes it away"


def test_marks_of_connections():
    saved = chain([by("zl-d", "oifname"), sets(7, CT)], hook="postrouting", name="saved")
    restored = chain([sets(CT)])
    assert told(ruleset(saved, restored), CARRIED) == [7], "all but the first packet"
    assert set(told(ruleset(saved, restored), Question(NEAR, "zl-b", "zl-d", FAR))) == {*(-n for n in range(1, 64))}
    arrived = chain([sets(7, CT)], hook="input", name="arrived")
    assert told(ruleset(arrived, restored), COMES) == [7]
    left = chain([sets(7, CT)], hook="postrouting", name="left"), chain([sets(CT)], hook="output", reroutes=True)
    assert told(ruleset(*left), SENT) == [7]
    nat = chain([sets(7)], translates=True)
    assert told(ruleset(nat), CARRIED) == [7], "the first packet is lost, and so there is no other"


def test_ipv6_and_rules_of_the_other_version():
    far, near = ip_network("fd00::/48")[9], ip_network("fd00::/48")[7]
    question = Question(far, "zl-d", "zl-b", near)
    found = ruleset(chain([OPEN, sets(7)]))
    assert told(found, question, rules=ANY) == []
    assert told(found, question, rules=[each._replace(version=6) for each in ANY]) == [-7] * 4
    icmp = ruleset(chain([match({"payload": {"protocol": "ip6", "field": "nexthdr"}}, 58), sets(7)]))
    assert 7 in told(icmp, question, rules=[each._replace(version=6) for each in ANY])


def test_of_too_many_marks_none_is_known():
    rules = [[OPEN, sets({"|": [META, 1 << bit]})] for bit in range(6)]
    assert {-each.priority for each in ANY} == set(told(ruleset(chain(*rules)), CARRIED))


def test_what_takes_too_long_to_follow_is_open():
    certain = [[sets(7)]] * 256
    assert told(ruleset(chain(*certain)), CARRIED) == [7]
    assert set(told(ruleset(chain(*certain, [sets(7)])), CARRIED, rules=ANY[:1])) == {-1}
