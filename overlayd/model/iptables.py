"""The rules of legacy iptables, as `iptables-legacy -S` prints them, in the words that `firewall` reads.

Owns: that translation.  Must not know: who asks for it.  Source: iptables(8), iptables-extensions(8).
"""

import shlex
from collections.abc import Iterator
from typing import Any

from overlayd.model.firewall import BaseChain, ChainName, Ruleset, Statement

_HOOKS = {name: name.lower() for name in ("PREROUTING", "FORWARD", "INPUT", "OUTPUT", "POSTROUTING")}
# The tables, with the priority of their hooks in nftables (linux/netfilter_ipv4.h); that of "nat" depends on the hook.
TABLES = {"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50}
_SOURCES = 100  # after the routing decision it is sources that are translated
_VERDICTS = {"ACCEPT": "accept", "DROP": "drop", "REJECT": "reject", "RETURN": "return", "NOTRACK": "notrack"}
_VERDICTS |= {"MASQUERADE": "masquerade", "SNAT": "snat", "NETMAP": "snat", "DNAT": "dnat", "REDIRECT": "redirect"}
_MARKS = {"mark": {"meta": {"key": "mark"}}, "connmark": {"ct": {"key": "mark"}}}
_OPEN: Statement = {"xt": None}  # a condition that is not judged
_PLAIN_MATCHES = {"tcp", "udp", "conntrack", "state", "comment", "multiport"}  # what matters of them are their options
_PLAIN_OPTIONS = {"--comment"}


def read(family: str, table: str, printed: str) -> Ruleset:
    """The chains of a table.  family: "ip" or "ip6".  Built-in chains and the others, with every rule; a target that is
    no verdict and no chain (LOG) decides nothing.
    """
    found = Ruleset()
    policies: dict[str, str] = {}
    rules: list[tuple[str, list[str]]] = []
    for line in printed.splitlines():
        words = shlex.split(line)
        if len(words) >= 3 and words[0] == "-P":
            policies[words[1]] = words[2].lower()
        elif len(words) >= 2 and words[0] == "-N":
            found.rules[family, legacy(table), words[1]] = []
        elif len(words) >= 2 and words[0] == "-A":
            rules.append((words[1], words[2:]))
    for chain, words in rules:
        name = (family, legacy(table), chain)
        found.rules.setdefault(name, []).append(_statements(name, words, found))
    for chain, hook in _HOOKS.items():
        if chain in policies:
            found.hooked.append(
                BaseChain(
                    (family, legacy(table), chain),
                    hook,
                    policies[chain],
                    translates=table == "nat",
                    priority=_SOURCES if table == "nat" and hook in ("input", "postrouting") else TABLES[table],
                    reroutes=table == "mangle",
                )
            )
    return found


_LEGACY = " of legacy iptables"  # our own words for its tables, which nftables does not have


def legacy(table: str) -> str:
    """What a table of legacy iptables is called here."""
    return table + _LEGACY


def legacy_table(table: str) -> str | None:
    """The name that legacy iptables has for a table, None when it has no such table."""
    return table.removesuffix(_LEGACY) if table.endswith(_LEGACY) else None


def _statements(chain: ChainName, words: list[str], found: Ruleset) -> list[Statement]:
    statements: list[Statement] = []
    rest = iter(words)
    negated, match = False, ""
    for word in rest:
        if word == "!":
            negated = True
            continue
        op = "!=" if negated else "=="
        negated = False
        if word == "-m":
            match = next(rest)
            statements += [] if match in _PLAIN_MATCHES or match in _MARKS else [_OPEN]
        elif word == "--mark" and match in _MARKS:
            value, mask = _number_and_mask(next(rest))
            statements.append(_match({"&": [_MARKS[match], mask]}, op, value))
        else:
            statements += _statement(chain, word, rest, op, found)
    return statements


def _statement(chain: ChainName, option: str, rest: Iterator[str], op: str, found: Ruleset) -> list[Statement]:
    """What one option, whose arguments follow in `rest`, says."""
    family = chain[0]
    if option in ("-i", "-o"):
        return [_match({"meta": {"key": f"{option[1]}ifname"}}, op, next(rest).replace("+", "*"))]
    if option in ("-s", "-d"):
        address, _, prefix = next(rest).partition("/")
        value = {"prefix": {"addr": address, "len": int(prefix)}} if prefix.isdigit() else address
        return [_match({"payload": {"protocol": family, "field": {"-s": "saddr", "-d": "daddr"}[option]}}, op, value)]
    if option == "-p":
        return [_match({"meta": {"key": "l4proto"}}, op, next(rest))]
    if option in ("--dport", "--dports", "--sport", "--sports"):
        ports: dict[str, Any] = {"set": [_port(each) for each in next(rest).split(",")]}
        return [_match({"payload": {"protocol": "th", "field": option[2:7]}}, op, ports)]
    if option in ("--ctstate", "--state"):
        states = {"set": [each.lower() for each in next(rest).split(",")]}
        return [_match({"ct": {"key": "state"}}, op, states)]
    if option in ("-j", "-g"):
        return _target(chain, option, next(rest), rest, found)
    if option in _PLAIN_OPTIONS:
        next(rest)
        return []
    return [_OPEN] if option.startswith("-") else []


def _target(chain: ChainName, option: str, target: str, rest: Iterator[str], found: Ruleset) -> list[Statement]:
    """The target and, as it is the last of a rule, its own options, which are no conditions."""
    if (*chain[:2], target) in found.rules:
        return [{"goto" if option == "-g" else "jump": {"target": target}}]
    own = [*rest]
    if target == "CT" and "--notrack" in own:
        return [{"notrack": None}]
    if target == "CT" and own[:1] == ["--zone"] and own[1].isdigit():
        return [{"mangle": {"key": {"ct": {"key": "zone"}}, "value": int(own[1])}}]
    if target == "NFQUEUE":
        return [_queue(own)]
    if target == "MARK" and own[:1] == ["--set-xmark"]:
        value, mask = _number_and_mask(own[1])
        kept: Any = {"&": [_MARKS["mark"], ~mask & _ALL]}
        return [{"mangle": {"key": _MARKS["mark"], "value": {"^": [kept, value]} if mask != _ALL else value}}]
    if target in ("MARK", "CONNMARK"):
        return [{"xt": {"type": "target", "name": target}}]
    return [{_VERDICTS[target]: None}] if target in _VERDICTS else []


def _queue(options: list[str]) -> Statement:
    told = dict(zip(options, [*options[1:], ""], strict=True))
    first, _, last = told.get("--queue-balance", told.get("--queue-num", "0")).partition(":")
    flags = {"flags": "bypass"} if "--queue-bypass" in told else {}
    return {"queue": {"num": {"range": [int(first), int(last or first)]}, **flags}}


_ALL = 0xFFFF_FFFF


def _number_and_mask(text: str) -> tuple[int, int]:
    value, _, mask = text.partition("/")
    return int(value, 0), int(mask, 0) if mask else _ALL


def _match(left: Statement, op: str, right: Any) -> Statement:
    return {"match": {"op": op, "left": left, "right": right}}


def _port(text: str) -> Any:
    first, colon, last = text.partition(":")
    return {"range": [int(first or 0), int(last or 65535)]} if colon else int(text)
