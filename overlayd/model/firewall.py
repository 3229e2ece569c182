"""What a packet filter that is not ours does with one kind of packet.

Owns: reading the chains of nftables, as nft lists them in JSON (libnftables-json(5)), for a verdict.  Must not
know: which packets matter, or what is to be done (`blockers`); how a ruleset is listed (`linux.nft`).

Many conditions can be judged from what is known of the packet: links, connection state, protocol, port, addresses.
Those that cannot (a mark, a limit, a match of xtables, a named set) are open.  So there are two answers: the end that
the packet meets if no open condition lets it through or keeps it, and all ends that it may meet.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from ipaddress import ip_address, ip_network, summarize_address_range
from typing import Any, NamedTuple

from overlayd.model.objects import Address, Network

Statement = dict[str, Any]
ChainName = tuple[str, str, str]  # family, table, chain

AT_A_LINK = ("ingress", "egress")  # hooks of single links, which a chain names
_AT_LINKS = re.compile(r'\s*type \w+ hook (?:ingress|egress) (?:device ("?[^"\s]+"?)|devices = \{([^}]*)\}) ')

RETURN = ""  # the end of a packet that goes on behind the chain

LOST = ("drop", "reject", "queue")  # ends of packets that go no further; see `queues`
_VERDICTS = {"accept": "accept", "drop": "drop", "reject": "reject", "return": RETURN, "notrack": "notrack"}
_VERDICTS |= {each: each for each in ("masquerade", "snat", "dnat", "redirect", "queue")}
_TARGETS = ("DROP", "REJECT", "NOTRACK", "MASQUERADE", "SNAT", "DNAT", "REDIRECT")  # of xtables
_OF_SOME = ("set", "mark", "connmark", "owner", "socket")  # matches of xtables that are for what somebody singles out
_PLAIN = {"counter", "log", "comment", "mangle", "tracking"}  # statements that hold always
# linux/netfilter/nf_conntrack_common.h, as bits of nftables' ct state and ct status
_STATES = {2: "established", 8: "new", 64: "untracked"}
_NAT_STATUS = {16: "snat", 32: "dnat"}
_NFPROTO = {2: 4, 10: 6, "ipv4": 4, "ipv6": 6}
# By name and number (linux/if_ether.h), which nft 1.0.6 prints as on the wire, and on little-endian machines reversed.
_FRAMES = {"ip": ("ip", 0x0800, 0x0008), "ip6": ("ip6", 0x86DD, 0xDD86), "arp": ("arp", 0x0806, 0x0608)}
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6"}
_ALIASES = {"ipv6-icmp": "icmpv6"}
_DISCOVERY = {135: "nd-neighbor-solicit", 136: "nd-neighbor-advert"}  # RFC 4861
UNTRACKED = tuple(_DISCOVERY.values())  # net/netfilter/nf_conntrack_proto_icmpv6.c


class Link(NamedTuple):
    """A link by its name and its link group."""

    name: str
    group: int = 0


@dataclass(frozen=True, slots=True)
class Packet:
    """A kind of packets; what is None, "" or 0 may be anything.  begins: it starts a connection, else it is of one.
    port: that it is sent to, source_port: from.  source, destination: networks that hold the addresses.  mark,
    connection_mark: None when somebody may have set one.  hidden: what the matches of xtables say that nft hides.
    returns: whether the way back to its source leads through the link that it came by.  kind: of ICMPv6, what it is.
    version: 0 for ARP.
    """

    version: int
    incoming: Link | None
    outgoing: Link | None
    begins: bool
    protocol: str = ""
    port: int = 0
    source: Network | None = None
    destination: Network | None = None
    source_port: int = 0
    mark: int | None = None
    connection_mark: int | None = None
    hidden: bool | None = None
    returns: bool | None = None
    kind: str = ""


@dataclass(frozen=True, slots=True)
class BaseChain:
    """A chain that packets enter by a hook.  devices: names of the links whose packets do, where the hook is theirs.
    translates: it is one of address translation, whose verdicts drop nothing.  priority: among those of its hook, the
    lowest first.  reroutes: a mark that it sets on a packet of the host's own leads that another way.
    """

    name: ChainName
    hook: str
    policy: str
    devices: tuple[str, ...] = ()
    translates: bool = False
    priority: int = 0
    reroutes: bool = False


@dataclass(frozen=True, slots=True)
class Ruleset:
    """Chains and the statements of their rules, in order.  marks: whether one of them marks packets."""

    hooked: list[BaseChain] = field(default_factory=list)
    rules: dict[ChainName, list[list[Statement]]] = field(default_factory=dict)
    marks: bool = True

    def names(self) -> set[str]:
        """The names of links in the conditions of all rules; one that ends with `*` stands for all that begin so."""
        return {name for rules in self.rules.values() for statements in rules for name in _link_names(statements)}

    @property
    def lacks_devices(self) -> bool:
        """Whether the listing left out which links a chain is at."""
        return any(chain.hook in AT_A_LINK and not chain.devices for chain in self.hooked)


class Verdict(NamedTuple):
    """end: "accept", one of LOST, "notrack" or a kind of translation, as far as no open condition decides.  by_policy:
    it is the chain's policy.  may_pass: whether an open condition can let the packet through.  may_be_lost: whether one
    can keep it from going on.
    """

    end: str
    by_policy: bool
    may_pass: bool
    may_be_lost: bool


def read(listing: dict[str, Any]) -> Ruleset:
    """A JSON listing of the whole ruleset."""
    found = Ruleset(marks=any(map(_marks, (item["rule"]["expr"] for item in listing["nftables"] if "rule" in item))))
    for item in listing["nftables"]:
        if "rule" in item:
            rule = item["rule"]
            found.rules.setdefault((rule["family"], rule["table"], rule["chain"]), []).append(rule["expr"])
        elif "hook" in (chain := item.get("chain", {})):
            name = (chain["family"], chain["table"], chain["name"])
            devices = chain.get("dev", ())
            devices = (devices,) if isinstance(devices, str) else tuple(devices)
            found.hooked.append(
                BaseChain(
                    name,
                    chain["hook"],
                    chain.get("policy", "accept"),
                    devices,
                    translates=chain.get("type") == "nat",
                    priority=chain.get("prio", 0),
                    reroutes=chain.get("type") == "route",
                )
            )
    return found


def _marks(statements: list[Statement]) -> bool:
    """Whether a rule marks packets, which those of others may then match."""
    for statement in statements:
        ((kind, body),) = statement.items()
        if kind == "mangle" and body["key"] == {"meta": {"key": "mark"}}:
            return True
        if kind == "xt" and body and body.get("type") == "target" and body.get("name") in ("MARK", "CONNMARK"):
            return True
    return False


def with_devices(ruleset: Ruleset, text: str) -> Ruleset:
    """The same ruleset with the links that its chains are at, by the listing as text."""
    devices: dict[ChainName, tuple[str, ...]] = {}
    family, table, chain = "", "", ""
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["table"] and len(words) > 2:
            family, table = words[1:3]
        elif words[:1] == ["chain"] and len(words) > 1:
            chain = words[1]
        elif found := _AT_LINKS.match(line):
            devices[family, table, chain] = tuple(each.strip(' "') for each in (found[1] or found[2]).split(","))
    hooked = [replace(each, devices=each.devices or devices.get(each.name, ())) for each in ruleset.hooked]
    return replace(ruleset, hooked=hooked)


def together(rulesets: Iterable[Ruleset]) -> Ruleset:
    """One ruleset of several that packets meet."""
    rulesets = [*rulesets]
    found = Ruleset(marks=any(each.marks for each in rulesets))
    for each in rulesets:
        found.hooked.extend(each.hooked)
        found.rules.update(each.rules)
    return found


def judge(ruleset: Ruleset, chain: BaseChain, packet: Packet) -> Verdict:
    """What the chain does with the packet."""
    packet = packet if ruleset.marks else replace(packet, mark=0)
    end, possible = _follow(ruleset, chain.name, packet)
    may_pass = "accept" in possible or (RETURN in possible and chain.policy == "accept")
    may_be_lost = not possible.isdisjoint(LOST) or (RETURN in possible and chain.policy in LOST)
    if end == RETURN:
        return Verdict(chain.policy, True, may_pass, may_be_lost)
    return Verdict(end, False, may_pass, may_be_lost)


def _follow(ruleset: Ruleset, chain: ChainName, packet: Packet) -> tuple[str, set[str]]:
    """The end that the packet meets in a chain, and all that it may meet.  An open condition is taken to be false, but
    for a return, which spares the packet what the rest of the chain does.
    """
    end: str | None = None
    possible: set[str] = set()
    for statements in ruleset.rules.get(chain, ()):
        for holds, verdict, target in _outcomes(statements, packet):
            if holds is False:
                continue
            if target:
                last, ends = _follow(ruleset, (*chain[:2], target), packet)
            else:
                last, ends = verdict, {verdict}
            jumps = verdict == "jump"
            possible |= ends - {RETURN} if jumps else ends
            if end is None and (holds or verdict == RETURN) and not (jumps and last == RETURN):
                end = last
            if holds and not (jumps and RETURN in ends):
                return end if end is not None else RETURN, possible
    return end if end is not None else RETURN, possible | {RETURN}


def _outcomes(statements: list[Statement], packet: Packet) -> Iterator[tuple[bool | None, str, str]]:
    """What a rule may do with the packet: whether it does (None: open), its verdict, and the chain to go on in."""
    verdict = verdict_of(statements)
    holds: bool | None = True
    for statement in statements:
        ((kind, body),) = statement.items()
        if kind == "vmap":
            yield from mapped(body, holds, packet)
            return
        truth = truth_of(kind, body, packet, verdict)
        if truth is False:
            return
        holds = None if truth is None else holds
    if verdict is not None:
        yield (holds, *verdict)


def verdict_of(statements: list[Statement]) -> tuple[str, str] | None:
    """The verdict of a rule, and the chain to go on in."""
    for statement in statements:
        ((kind, body),) = statement.items()
        if kind in _VERDICTS:
            return _VERDICTS[kind], ""
        if kind in ("jump", "goto"):
            return kind, body["target"]
        if kind == "tracking":
            return body, ""
        if kind == "xt" and body and body.get("type") == "target" and body.get("name") in _TARGETS:
            return body["name"].lower(), ""
    return None


def mapped(body: dict[str, Any], holds: bool | None, packet: Packet) -> Iterator[tuple[bool | None, str, str]]:
    """The entries of a verdict map, each like a rule of its own."""
    entries = body["data"].get("set", ()) if isinstance(body["data"], dict) else ()
    for value, statement in entries:
        truth = compare(body["key"], "==", value, packet)
        verdict = verdict_of([statement])
        if truth is not False and verdict is not None:
            yield (None if truth is None else holds, *verdict)


def truth_of(kind: str, body: Any, packet: Packet, verdict: tuple[str, str] | None) -> bool | None:
    """Whether one statement lets a rule go on, None when that is open.  verdict: of the rule."""
    if kind == "match":
        return compare(body["left"], body["op"], body["right"], packet)
    if kind in _PLAIN or kind in _VERDICTS or kind in ("jump", "goto"):
        return True
    if kind == "xt" and body:
        if body.get("type") == "target" or body.get("name") == "comment":
            return True
        # Nothing tells which states: nearly always, what is accepted so is established, and what is lost is invalid.
        if body.get("name") in ("conntrack", "state") and verdict is not None and not verdict[1]:
            if verdict[0] == "accept":
                return not packet.begins
            return False if verdict[0] in LOST else None
        if body.get("name") == "rpfilter" and verdict is not None and verdict[0] in LOST:  # surely with --invert
            return False if packet.returns else None
        return packet.hidden if body.get("name") not in _OF_SOME else None
    return None


_OPEN, _NEVER = object(), object()  # nothing is known; the packet has no such thing


def compare(left: Any, op: str, right: Any, packet: Packet) -> bool | None:
    value = _value(left, packet)
    if value is _NEVER:
        return False
    if value is _OPEN or op not in ("==", "!=", "in"):
        return None
    equal = _any(_equal(value, each) for each in _alternatives(right))
    return equal if op != "!=" or equal is None else not equal


def _value(left: Any, packet: Packet) -> Any:
    """What the left side of a condition is for the packet."""
    if not isinstance(left, dict) or len(left) != 1:
        return _OPEN
    ((kind, body),) = left.items()
    if kind == "meta":
        return _meta(body["key"], packet)
    if kind == "&":
        value, mask = _value(body[0], packet), body[1]
        if value == 0:  # of no mark, no bit is set
            return 0
        return value & mask if isinstance(value, int) and isinstance(mask, int) else _OPEN
    if kind == "ct":
        if body["key"] == "state":
            if packet.kind in UNTRACKED:
                return "untracked"
            return "new" if packet.begins else "established"
        if body["key"] == "mark":
            return _OPEN if packet.connection_mark is None else packet.connection_mark
        return "no NAT" if body["key"] == "status" else _OPEN
    if (
        kind == "fib"
        and body.get("result") != "type"
        and "saddr" in body.get("flags", ())
        and packet.returns is not None
    ):
        return packet.returns or "iif" not in body["flags"]  # else some way is enough
    return _payload(body["protocol"], body["field"], packet) if kind == "payload" and "protocol" in body else _OPEN


def _meta(key: str, packet: Packet) -> Any:
    if key in ("iif", "iifname", "oif", "oifname", "iifgroup", "oifgroup"):
        link = packet.incoming if key.startswith("i") else packet.outgoing
        if link is None:
            return _OPEN
        return link.group if key.endswith("group") else link
    if key == "nfproto":
        return packet.version
    if key == "protocol":
        return {0: "arp", 4: "ip", 6: "ip6"}[packet.version]
    if key == "mark":
        return _OPEN if packet.mark is None else packet.mark
    return packet.protocol or _OPEN if key == "l4proto" else _OPEN


def _payload(protocol: str, part: str, packet: Packet) -> Any:
    if (protocol, part) == ("ether", "type"):
        return _meta("protocol", packet)
    if protocol in ("ip", "ip6"):
        if packet.version != {"ip": 4, "ip6": 6}[protocol]:
            return _NEVER
        if part in ("protocol", "nexthdr"):
            return packet.protocol or _OPEN
        return {"saddr": packet.source, "daddr": packet.destination}.get(part) or _OPEN
    if packet.protocol and protocol not in ("th", "ether", "vlan", packet.protocol):
        return _NEVER
    if (protocol == "arp") != (not packet.version) and protocol not in ("ether", "vlan"):
        return _NEVER
    if (protocol, part) == ("icmpv6", "type"):
        return packet.kind or _OPEN
    ports = {"dport": packet.port, "sport": packet.source_port} if packet.protocol else {}
    return ports.get(part) or _OPEN


def _alternatives(right: Any) -> Iterable[Any]:
    if isinstance(right, dict) and "set" in right:
        return list(right["set"])
    return right if isinstance(right, list) else [right]


def _equal(value: Any, right: Any) -> bool | None:
    """Whether a value is one of those that `right`, no set, stands for."""
    if isinstance(right, dict) and "elem" in right:  # with a comment or a counter
        right = right["elem"]["val"]
    if isinstance(right, str) and right.startswith("@"):
        return None
    if isinstance(value, bool):
        return value == right if isinstance(right, bool) else None
    if isinstance(value, Link):
        return matches(str(right), value.name)
    if isinstance(value, Network):
        return _within(value, right)
    if isinstance(value, int):
        return _is_number(value, right)
    if value in _FRAMES:
        return right in _FRAMES[value]
    if value == "no NAT":
        return False if right in (*_NAT_STATUS, *_NAT_STATUS.values()) else None
    if isinstance(right, int):
        return bool(value == {**_STATES, **_PROTOCOLS, **_DISCOVERY}.get(right, ""))
    return bool(value == _ALIASES.get(right, right)) if isinstance(right, str) else None


def matches(pattern: str, name: str) -> bool:
    """Whether a link of this name is meant by a name in a rule, which may end with `*`."""
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def _is_number(value: int, right: Any) -> bool | None:
    if isinstance(right, dict):
        bounds = right.get("range")
        return bounds[0] <= value <= bounds[1] if bounds and all(isinstance(each, int) for each in bounds) else None
    if isinstance(right, str) and right.isdigit():
        return value == int(right)
    return value == _NFPROTO.get(right, right) if isinstance(right, int) or right in _NFPROTO else None


def _within(network: Network, right: Any) -> bool | None:
    """Whether all addresses of a network are meant; None when some are."""
    try:
        covers = list(_networks(right))
    except (ValueError, TypeError, KeyError):
        return None
    inside = [each for each in covers if each.version == network.version]
    if any(network.subnet_of(each) for each in inside):  # type: ignore[arg-type]
        return True
    return None if any(network.overlaps(each) for each in inside) else False


_network = lru_cache(maxsize=1 << 14)(ip_network)  # a ruleset is judged for several packets


def _networks(right: Any) -> Iterator[Network]:
    if isinstance(right, str):
        yield _network(right)
    elif "prefix" in right:
        yield ip_network((right["prefix"]["addr"], right["prefix"]["len"]), strict=False)
    else:
        first, last = map(ip_address, right["range"])
        yield from _between(first, last)


def _between(first: Address, last: Address) -> Iterable[Network]:
    return summarize_address_range(first, last)


def _any(truths: Iterable[bool | None]) -> bool | None:
    found = set(truths)
    return True if True in found else None if None in found else False


def _link_names(statements: list[Statement]) -> Iterator[str]:
    for statement in statements:
        for kind, body in statement.items():
            if kind == "match" and _is_link_name(body["left"]):
                yield from (each for each in _alternatives(body["right"]) if isinstance(each, str))
            elif kind == "vmap" and _is_link_name(body["key"]) and isinstance(body["data"], dict):
                yield from (each[0] for each in body["data"].get("set", ()) if isinstance(each[0], str))


def _is_link_name(left: Any) -> bool:
    return isinstance(left, dict) and left.get("meta", {}).get("key") in ("iif", "iifname", "oif", "oifname")
