"""Verdicts of other people's chains: against every way in which the open conditions may turn out, and word by word."""

import itertools
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.model.firewall import LOST, BaseChain, Link, Packet, Ruleset, judge, read, with_devices

OURS, OTHER = Link("zl-a-b", 7), Link("eth0", 0)
PACKET = Packet(4, OURS, OTHER, True, "udp", 53, ip_network("10.200.0.0/16"), ip_network("192.0.2.0/24"))


def meta(key, right, op="=="):
    return {"match": {"op": op, "left": {"meta": {"key": key}}, "right": right}}


def payload(protocol, part, right, op="=="):
    return {"match": {"op": op, "left": {"payload": {"protocol": protocol, "field": part}}, "right": right}}


def ct(key, right, op="=="):
    return {"match": {"op": op, "left": {"ct": {"key": key}}, "right": right}}


OPEN = {"limit": {"rate": 5, "per": "second"}}


def ruleset(chains, policy="accept"):
    """Chains by name; "base" is the one with the hook."""
    rules = {("ip", "t", name): statements for name, statements in chains.items()}
    return Ruleset([BaseChain(("ip", "t", "base"), "forward", policy)], rules)


def verdict(rules, packet=PACKET, policy="drop"):
    found = ruleset({"base": rules}, policy)
    return judge(found, found.hooked[0], packet)


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        (meta("iifname", "zl-a-b"), True),
        (meta("iifname", "zl-*"), True),
        (meta("iifname", "zl-a"), False),
        (meta("iifname", {"set": ["eth1", "zl-a-b"]}), True),
        (meta("iifname", "@trusted"), None),
        (meta("iif", "lo"), False),
        (meta("oifname", "zl-*", "!="), True),
        (meta("oifname", "eth0", "!="), False),
        (meta("iifgroup", 7), True),
        (meta("iifgroup", {"set": [1, 7]}), True),
        (meta("oifgroup", 7), False),
        (meta("nfproto", 2), True),
        (meta("nfproto", "ipv6"), False),
        (meta("l4proto", {"set": ["tcp", "udp"]}), True),
        (meta("l4proto", 6), False),
        (meta("l4proto", "tcp", "!="), True),
        (meta("mark", 1), None),
        (payload("ip", "protocol", "udp"), True),
        (payload("ip6", "nexthdr", "udp"), False),
        (payload("ip6", "nexthdr", "udp", "!="), False),
        (payload("udp", "dport", 53), True),
        (payload("udp", "dport", {"set": [22, {"range": [50, 60]}]}), True),
        (payload("udp", "dport", "@ports"), None),
        (payload("udp", "sport", 53), None),
        (payload("th", "dport", 54), False),
        (payload("tcp", "dport", 53), False),
        (payload("ip", "saddr", {"prefix": {"addr": "10.0.0.0", "len": 8}}), True),
        (payload("ip", "saddr", {"prefix": {"addr": "10.200.1.0", "len": 24}}), None),
        (payload("ip", "saddr", {"range": ["10.200.0.0", "10.200.255.255"]}), True),
        (payload("ip", "saddr", "10.201.0.1"), False),
        (payload("ip", "daddr", {"set": ["10.201.0.1", {"prefix": {"addr": "192.0.2.0", "len": 24}}]}), True),
        (ct("state", {"set": [2, 4]}), False),
        (ct("state", ["new", "untracked"], "in"), True),
        (ct("state", 8, "in"), True),
        (ct("state", "established", "!="), True),
        (ct("status", 32, "in"), False),
        (ct("direction", 0), None),
        ({"xt": None}, None),
        ({"xt": {"type": "match", "name": "addrtype"}}, None),
        ({"xt": {"type": "match", "name": "comment"}}, True),
        ({"xt": {"type": "match", "name": "conntrack"}}, False),
        ({"counter": {"packets": 1}}, True),
        ({"log": {"prefix": "x"}}, True),
        ({"fib": {}}, None),
        (OPEN, None),
    ],
)
def test_conditions(condition, holds):
    found = verdict([[condition, {"accept": None}]])
    assert (found.end, found.may_pass) == {True: ("accept", True), False: ("drop", False), None: ("drop", True)}[holds]


def test_what_answers_is_established():
    answer = Packet(4, OTHER, OURS, begins=False)
    for statement in (ct("state", [2, 4], "in"), {"xt": {"type": "match", "name": "conntrack"}}):
        assert verdict([[statement, {"accept": None}]], answer).end == "accept"
        assert verdict([[statement, {"accept": None}]]).end == "drop"
    assert verdict([[{"xt": {"type": "match", "name": "conntrack"}}, {"drop": None}]], answer, "accept") == (
        "accept",
        True,
        True,
        False,
    ), "what is dropped by its state is invalid"


def test_verdict_maps():
    states = {"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [[2, {"accept": None}], [1, {"drop": None}]]}}}
    assert verdict([[states]], Packet(4, OTHER, OURS, begins=False)).end == "accept"
    assert verdict([[states]])[:3] == ("drop", True, False)
    links = {
        "vmap": {
            "key": {"meta": {"key": "iifname"}},
            "data": {"set": [["eth0", {"drop": None}], ["zl-a-b", {"goto": {"target": "fine"}}]]},
        }
    }
    found = ruleset({"base": [[links]], "fine": [[{"accept": None}]]}, "drop")
    assert judge(found, found.hooked[0], PACKET).end == "accept"
    assert found.names() == {"eth0", "zl-a-b"}


def test_a_goto_does_not_come_back():
    found = ruleset({"base": [[{"goto": {"target": "x"}}], [{"accept": None}]], "x": []}, "drop")
    assert judge(found, found.hooked[0], PACKET)[:3] == ("drop", True, False)


def test_targets_of_xtables():
    assert verdict([[{"xt": {"type": "target", "name": "REJECT"}}]], policy="accept")[:3] == ("reject", False, False)
    assert verdict([[{"xt": {"type": "target", "name": "LOG"}}]], policy="accept").end == "accept"


def test_a_listing():
    listing = {
        "nftables": [
            {"metainfo": {}},
            {"chain": {"family": "ip", "table": "t", "name": "c", "hook": "input", "policy": "drop"}},
            {"chain": {"family": "ip", "table": "t", "name": "d"}},
            {"rule": {"family": "ip", "table": "t", "chain": "c", "expr": [{"accept": None}]}},
        ]
    }
    found = read(listing)
    assert found.hooked == [BaseChain(("ip", "t", "c"), "input", "drop")]
    assert judge(found, found.hooked[0], PACKET).end == "accept"


# Against every way in which the open conditions may turn out.

LIMIT = 4
CONDITIONS = st.sampled_from([meta("iifname", "zl-*"), meta("oifname", "zl-*"), OPEN])
ENDS = st.sampled_from([*({verdict: None} for verdict in ("accept", "drop", "reject", "return")), {"counter": {}}])


def rules(targets):
    jumps = [{kind: {"target": target}} for kind in ("jump", "goto") for target in targets]
    last = st.one_of(ENDS, st.sampled_from(jumps)) if jumps else ENDS
    return st.lists(st.tuples(st.lists(CONDITIONS, max_size=1), last).map(lambda rule: [*rule[0], rule[1]]), max_size=4)


CHAINS = st.fixed_dictionaries({"base": rules(["a", "b"]), "a": rules(["b"]), "b": rules([])})


def walk(chains, name, choice):
    """The end of a packet in a chain when `choice` says of each open condition how it turns out."""
    for number, statements in enumerate(chains[name]):
        *conditions, last = statements
        holds = all(
            choice((name, number), last) if condition is OPEN else condition == meta("iifname", "zl-*")
            for condition in conditions
        )
        if not holds:
            continue
        kind, body = next(iter(last.items()))
        if kind in ("jump", "goto"):
            end = walk(chains, body["target"], choice)
            if end != "return" or kind == "goto":
                return end
        elif kind != "counter":
            return kind
    return "return"


@given(CHAINS, st.sampled_from(["accept", "drop"]))
def test_every_way_it_may_turn_out(chains, policy):
    found = ruleset(chains, policy)
    judged = judge(found, found.hooked[0], PACKET)
    expected = walk(chains, "base", lambda _, last: "return" in last)
    assert judged[:2] == ((policy, True) if expected == "return" else (expected, False))
    places = [(name, number) for name in chains for number, rule in enumerate(chains[name]) if OPEN in rule]
    if len(places) <= LIMIT:
        ends = set()
        for turned in itertools.product((False, True), repeat=len(places)):
            chosen = dict(zip(places, turned, strict=True))
            ends.add(walk(chains, "base", lambda place, _, chosen=chosen: chosen[place]))
        passes = "accept" in ends or ("return" in ends and policy == "accept")
        # A chain that is entered twice may turn out otherwise the second time: then more may pass, never less.
        assert judged.may_pass or not passes
        lost = not ends.isdisjoint(LOST) or ("return" in ends and policy in LOST)
        assert judged.may_be_lost or not lost
        if sum(bool(rule[-1].keys() & {"jump", "goto"}) for rule in (*chains["base"], *chains["a"])) <= 1:
            assert judged.may_pass == passes
            assert judged.may_be_lost == lost


def test_the_links_of_chains_by_the_listing_as_text():
    """As nft 1.0.6 and 1.1 print them."""
    names = [("netdev", "fw", "a"), ("netdev", "fw", "b"), ("inet", "fw", "c"), ("inet", "fw", "d")]
    hooks = ["ingress", "egress", "ingress", "forward"]
    found = Ruleset([BaseChain(name, hook, "drop") for name, hook in zip(names, hooks, strict=True)])
    assert found.lacks_devices
    told = with_devices(
        found,
        """table netdev fw {
\tchain a {
\t\ttype filter hook ingress device "eth0" priority filter; policy drop;
\t}
\tchain b {
\t\ttype filter hook egress devices = { "veth-1-s", lo } priority filter; policy drop;
\t}
}
table inet fw {
\tchain c {
\t\ttype filter hook ingress device lo priority filter; policy accept;
\t}
\tchain d {
\t\ttype filter hook forward priority filter; policy accept;
\t}
}
""",
    )
    assert [each.devices for each in told.hooked] == [("eth0",), ("veth-1-s", "lo"), ("lo",), ()]
    assert not told.lacks_devices
