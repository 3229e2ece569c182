"""Which marks the host's packet filter puts on packets of ours before they are routed: policy rules may ask for
them.

Owns: following the rules that set a packet's mark, or that of its connection, and which of our packets are asked about
with which mark.  Must not know: how conditions are judged (`firewall`), where marked packets go (`diversions`).

A rule whose condition is open may set its mark or not, so there are as many answers as ways in which such conditions
may turn out.  What a rule sets is open itself where nft does not tell: the elements of a named map, and the targets
MARK and CONNMARK of xtables.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from ipaddress import ip_network
from operator import and_, or_, xor
from typing import Any, NamedTuple

from overlayd.model.diversions import HERE, ICMP, ICMPV6, PROTOCOLS, TCP, UDP, Flow, Mark, Question, Rule, samples
from overlayd.model.firewall import (
    AT_A_LINK,
    LOST,
    BaseChain,
    ChainName,
    Link,
    Packet,
    Ruleset,
    Statement,
    compare,
    mapped,
    together,
    truth_of,
    verdict_of,
)
from overlayd.model.names import is_host_end
from overlayd.model.objects import GROUP_BRIDGE, GROUP_VETH, NFT_TABLE

_MANY = 16  # our own constant: of more marks that a packet may have, none is known
_LONG = 256  # our own constant: more rules than these take too long to follow, as those of kube-proxy for many services
_SHOWN = 3  # our own constant: chains that a finding names
_NAMES = {ICMP: "icmp", TCP: "tcp", UDP: "udp", ICMPV6: "icmpv6"}
_FAMILIES = {4: ("ip", "inet"), 6: ("ip6", "inet")}
_OPERATIONS: dict[str, Callable[[Any, Any], int]] = {"&": and_, "|": or_, "^": xor}
_META, _CT = {"meta": {"key": "mark"}}, {"ct": {"key": "mark"}}


class Marks(NamedTuple):
    """Those of a packet and of its connection, None for one that cannot be told."""

    packet: int | None = 0
    connection: int | None = 0


UNKNOWN = Marks(None, None)


def marked(
    ruleset: Ruleset, asked: Iterable[Question], rules: Iterable[Rule], links: Iterable[Link], way_out: str
) -> list[Question]:
    """One packet of each kind that is asked about, with the mark that it surely carries, or else with each that it may
    carry and for which there is a rule.  links: ours.  way_out: the uplink's name, "" when there is none.
    """
    wanted = [each for each in rules if each.mark is not None]
    ruleset, length = _marking(ruleset) if wanted else (Ruleset(), 0)
    if not ruleset.hooked:
        return []
    chains = tuple(f"table {' '.join(each.name[:2])} chain {each.name[2]}" for each in ruleset.hooked[:_SHOWN])
    known = {link.name: link for link in links}
    found = []
    for question in samples(asked):
        version = question.destination.version
        for flow in (None, *(map(Flow, PROTOCOLS[version]) if question.ports is None else ())):
            packet = _packet(question, flow, known, way_out)
            if length > _LONG:
                sure, possible = 0, set[int | None]({None})
            else:
                sure, possible = _carried(ruleset, packet, forwarded=question.through != HERE)
            if sure:
                found.append(question._replace(flow=flow, mark=Mark(sure, chains, certain=True)))
            if sure or possible == {0}:
                if flow is None:
                    break  # whatever its protocol is
                continue
            for rule in wanted:
                value, mask = rule.mark or (0, 0)
                if (
                    rule.version == version
                    and rule.marks
                    and any(each is None or each & mask == value & mask for each in possible)
                ):
                    found.append(question._replace(flow=flow, mark=Mark(value, chains, False, rule.priority)))
    return found


class Carried:
    """What packets carry when they come to a chain, by rules that mark them before.  rulesets: all that they meet."""

    def __init__(self, rulesets: Iterable[Ruleset]) -> None:
        self._rulesets = rulesets
        self._marking: tuple[Ruleset, int, bool] | None = None

    def at(self, chain: BaseChain, packet: Packet) -> set[Marks] | None:
        """All that a packet that is forwarded may carry there; None when that cannot be told."""
        if packet.incoming is None or chain.hook not in _ON_THE_WAY:
            return None
        if self._marking is None:
            ruleset, length = _marking(together(self._rulesets))
            self._marking = ruleset, length, _tracks(ruleset)
        ruleset, length, tracks = self._marking
        if length > _LONG:
            return None
        # What another packet of its connection left behind there, nothing tells.
        marks = {Marks() if packet.begins or not tracks else Marks(0, None)}
        for hook in _ON_THE_WAY[: _ON_THE_WAY.index(chain.hook) + 1]:
            before = [each for each in ruleset.hooked if each.hook != chain.hook or each.priority < chain.priority]
            seen = packet if hook in _ON_THE_WAY[2:] else replace(packet, outgoing=None)
            marks = _at(Ruleset(before, ruleset.rules), hook, seen, marks)
        return marks if UNKNOWN not in marks else None


_ON_THE_WAY = ("ingress", "prerouting", "forward", "postrouting")  # of what is forwarded


def is_lost(ruleset: Ruleset, chain: BaseChain, packet: Packet, marks: Iterable[Marks]) -> bool:
    """Whether a chain surely loses a packet that carries one of these marks, those that it sets itself among them."""
    behind, left = set[Marks](), set[Marks]()
    for each in marks:
        passed, accepted = _follow(ruleset, chain.name, packet, each)
        behind |= passed
        left |= accepted
    return not left and (not behind or chain.policy in LOST)


def _marking(ruleset: Ruleset) -> tuple[Ruleset, int]:
    """Without the base chains, and our own, in which no mark is set; in the order in which packets meet them.  With the
    number of rules that lead to marks.
    """
    leads: dict[ChainName, set[ChainName]] = {}
    marking: set[ChainName] = set()
    for chain, rules in ruleset.rules.items():
        for statement in (each for statements in rules for each in statements):
            if _sets(statement):
                marking.add(chain)
            for target in _targets(statement):
                leads.setdefault((*chain[:2], target), set()).add(chain)
    fresh = [*marking]
    while fresh:
        more = leads.get(fresh.pop(), set()) - marking
        marking |= more
        fresh += more
    hooked = [each for each in ruleset.hooked if each.name in marking and each.name[1] != NFT_TABLE]
    order = sorted(hooked, key=lambda each: (each.name[0] != "bridge", each.priority))
    others = {chain: rules for chain, rules in ruleset.rules.items() if chain[1] != NFT_TABLE}
    return Ruleset(order, others), sum(len(others.get(chain, ())) for chain in marking)


def _targets(statement: Statement) -> Iterator[str]:
    """The chains that a statement leads to."""
    ((kind, body),) = statement.items()
    if kind in ("jump", "goto"):
        yield body["target"]
    elif kind == "vmap" and isinstance(body["data"], dict):
        for _, verdict in body["data"].get("set", ()):
            yield from _targets(verdict)


def _sets(statement: Statement) -> tuple[str, ...]:
    """Which of `Marks` a statement sets."""
    ((kind, body),) = statement.items()
    if kind == "mangle":
        return ("packet",) if body["key"] == _META else ("connection",) if body["key"] == _CT else ()
    if kind == "xt" and body and body.get("type") == "target":
        return {"MARK": ("packet",), "CONNMARK": ("packet", "connection")}.get(body.get("name"), ())
    return ()


def _packet(question: Question, flow: Flow | None, links: Mapping[str, Link], way_out: str) -> Packet:
    """As the packet filter sees it, at the start of its connection."""
    through = question.through if question.through not in ("", HERE) else "" if question.through else way_out
    kind = question.kind or flow or Flow(0)
    return Packet(
        question.destination.version,
        links.get(question.incoming, Link(question.incoming)) if question.incoming else None,
        links.get(through, Link(through)) if through else None,
        begins=True,
        protocol=_NAMES.get(kind.protocol, ""),
        port=kind.port,
        source=ip_network(question.source) if question.source is not None else None,
        destination=ip_network(question.destination),
        source_port=kind.source_port,
    )


def _carried(ruleset: Ruleset, packet: Packet, *, forwarded: bool) -> tuple[int, set[int | None]]:
    """The mark with which packets of its kind are surely routed, 0 for none; and all with which they may be."""
    first = left = _routed(ruleset, packet, {Marks()})
    hooks = ("postrouting",) if packet.incoming is None else ("forward", "postrouting") if forwarded else ("input",)
    for hook in hooks:
        left = _at(ruleset, hook, packet, left)
    # A connection keeps the mark that its first packet left behind; what the other direction leaves, nothing tells.
    packet = replace(packet, begins=False)
    later = _routed(ruleset, packet, {Marks(0, each.connection) for each in left})
    answers = _routed(ruleset, packet, {Marks(0, None)}) if _tracks(ruleset) else set()
    certain = (
        mark for each in (first, later) if len(found := {one.packet for one in each}) == 1 for mark in found if mark
    )
    return next(certain, 0), {each.packet for each in first | later | answers}


def _tracks(ruleset: Ruleset) -> bool:
    """Whether connections are marked."""
    rules = ruleset.rules.values()
    return any("connection" in _sets(each) for chain in rules for statements in chain for each in statements)


def _routed(ruleset: Ruleset, packet: Packet, marks: set[Marks]) -> set[Marks]:
    """All that it may carry when its way is looked for."""
    if packet.incoming is None:
        return _at(ruleset, "output", packet, marks)
    for hook in ("ingress", "prerouting"):
        marks = _at(ruleset, hook, replace(packet, outgoing=None), marks)
    return marks


def _at(ruleset: Ruleset, hook: str, packet: Packet, marks: set[Marks]) -> set[Marks]:
    """All that it may carry behind a hook."""
    for chain in ruleset.hooked:
        if chain.hook != hook or not (seen := _seen(chain, packet)):
            continue
        found = set()
        for each in marks:
            behind, left = _follow(ruleset, chain.name, seen, each)
            found |= behind | left
        marks = found if len(found) <= _MANY else {UNKNOWN}
    return marks


def _seen(chain: BaseChain, packet: Packet) -> Packet | None:
    """The packet as a chain sees it; None when it does not."""
    link, family = packet.incoming, chain.name[0]
    if chain.hook in AT_A_LINK:
        ports = link is not None and link.group == GROUP_BRIDGE and any(map(is_host_end, chain.devices))
        return packet if link is not None and (ports or link.name in chain.devices) else None
    if chain.translates and not packet.begins:
        return None
    if family == "bridge" and link is not None and link.group == GROUP_BRIDGE:
        return replace(packet, incoming=Link("veth-1-s", GROUP_VETH))
    if family not in _FAMILIES[packet.version] or (chain.hook == "output" and not chain.reroutes):
        return None
    return packet


def _follow(ruleset: Ruleset, chain: ChainName, packet: Packet, marks: Marks) -> tuple[set[Marks], set[Marks]]:
    """All that a packet may carry when it goes on behind a chain, and all when it is accepted within."""
    now, behind, left = {marks}, set[Marks](), set[Marks]()
    for statements in ruleset.rules.get(chain, ()):
        then: set[Marks] = set()
        for each in now:
            if each != (packet.mark, packet.connection_mark):
                packet = replace(packet, mark=each.packet, connection_mark=each.connection)
            for verdict, target, carried in _outcomes(statements, packet, each):
                if verdict in ("jump", "goto"):
                    passed, accepted = _follow(ruleset, (*chain[:2], target), packet, carried)
                    left |= accepted
                    if verdict == "jump":
                        then |= passed
                    else:
                        behind |= passed
                elif verdict in ("", "notrack"):
                    then.add(carried)
                elif verdict == "return":
                    behind.add(carried)
                elif verdict not in LOST:
                    left.add(carried)
        now = then if len(then) <= _MANY else {UNKNOWN}
    return now | behind, left


def _outcomes(statements: list[Statement], packet: Packet, marks: Marks) -> Iterator[tuple[str, str, Marks]]:
    """What a rule may do: its verdict, "" to go on with the next rule, the chain to go on in, and what the packet
    carries then.
    """
    now, known, verdict = {marks}, packet, verdict_of(statements)
    for statement in statements:
        ((kind, body),) = statement.items()
        fields, then = _sets(statement), set[Marks]()
        for each in now:
            if each != (known.mark, known.connection_mark):
                known = replace(packet, mark=each.packet, connection_mark=each.connection)
            if fields:
                values = _values(body["value"], known) if kind == "mangle" else {None}
                then |= {each._replace(**dict.fromkeys(fields, value)) for value in values}
                if not values:  # the map has nothing for it
                    yield "", "", each
                continue
            if kind == "vmap":
                certain = False
                for truth, end, target in mapped(body, True, known):
                    yield end or "return", target, each
                    certain = certain or truth is True
                if not certain:
                    yield "", "", each
                continue
            truth = truth_of(kind, body, known, verdict)
            if truth is not True:
                yield "", "", each
            if truth is not False:
                then.add(each)
        now = then
    end, target = (verdict[0] or "return", verdict[1]) if verdict is not None else ("", "")
    yield from ((end, target, each) for each in now)


def _values(value: Any, packet: Packet) -> set[int | None]:
    """What an expression may be for a packet; empty when it is nothing."""
    if isinstance(value, int):
        return {value}
    if not isinstance(value, dict) or len(value) != 1:
        return {None}
    if value == _META:
        return {packet.mark}
    if value == _CT:
        return {packet.connection_mark}
    ((kind, body),) = value.items()
    if kind in _OPERATIONS:
        left, right = (_values(each, packet) for each in body)
        return {None if None in (a, b) else _OPERATIONS[kind](a, b) for a in left for b in right}
    if kind != "map" or not isinstance(body["data"], dict):
        return {None}
    found = set[int | None]()
    for key, mark in body["data"].get("set", ()):
        truth = compare(body["key"], "==", key, packet)
        if truth is not False:
            found |= _values(mark, packet)
        if truth:
            return found
    return {*found, packet.mark} if found else found  # each of those may be none
