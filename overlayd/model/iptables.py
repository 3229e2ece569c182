"""The rules of legacy iptables, as `iptables-legacy -S` prints them, in the words that `firewall` reads.

Owns: that translation.  Must not know: who asks for it.  Source: iptables(8), iptables-extensions(8).
"""

import shlex
from collections.abc import Iterator
from typing import Any

from overlayd.model.firewall import BaseChain, ChainName, Ruleset, Statement

_HOOKS = {"FORWARD": "forward", "INPUT": "input", "OUTPUT": "output"}
_VERDICTS = {"ACCEPT": "accept", "DROP": "drop", "REJECT": "reject", "RETURN": "return"}
_OPEN: Statement = {"xt": None}  # a condition that is not judged
_PLAIN_MATCHES = {"tcp", "udp", "conntrack", "state", "comment", "multiport"}  # what matters of them are their options
_PLAIN_OPTIONS = {"--comment", "--reject-with"}


def read(family: str, printed: str) -> Ruleset:
    """The chains of the table "filter".  family: "ip" or "ip6".  Built-in chains and the others, with every rule; a
    target that is no verdict and no chain (LOG, MARK) decides nothing.
    """
    found = Ruleset()
    policies: dict[str, str] = {}
    rules: list[tuple[str, list[str]]] = []
    for line in printed.splitlines():
        words = shlex.split(line)
        if len(words) >= 3 and words[0] == "-P":
            policies[words[1]] = words[2].lower()
        elif len(words) >= 2 and words[0] == "-N":
            found.rules[_name(family, words[1])] = []
        elif len(words) >= 2 and words[0] == "-A":
            rules.append((words[1], words[2:]))
    for chain, words in rules:
        found.rules.setdefault(_name(family, chain), []).append(_statements(family, words, found))
    for chain, hook in _HOOKS.items():
        if chain in policies:
            found.hooked.append(BaseChain(_name(family, chain), hook, policies[chain]))
    return found


def _name(family: str, chain: str) -> ChainName:
    return (family, LEGACY, chain)


LEGACY = "filter of legacy iptables"  # our own word for that table, which nftables does not have


def _statements(family: str, words: list[str], found: Ruleset) -> list[Statement]:
    statements: list[Statement] = []
    rest = iter(words)
    negated = False
    for word in rest:
        if word == "!":
            negated = True
            continue
        statements += _statement(family, word, rest, "!=" if negated else "==", found)
        negated = False
    return statements


def _statement(family: str, option: str, rest: Iterator[str], op: str, found: Ruleset) -> list[Statement]:
    """What one option, whose arguments follow in `rest`, says."""
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
    if option == "-m":
        return [] if next(rest) in _PLAIN_MATCHES else [_OPEN]
    if option in ("-j", "-g"):
        return _target(family, option, next(rest), found)
    if option in _PLAIN_OPTIONS:
        next(rest)
        return []
    return [_OPEN] if option.startswith("-") else []


def _target(family: str, option: str, target: str, found: Ruleset) -> list[Statement]:
    if target in _VERDICTS:
        return [{_VERDICTS[target]: None}]
    if _name(family, target) in found.rules:
        return [{"goto" if option == "-g" else "jump": {"target": target}}]
    return []


def _match(left: Statement, op: str, right: Any) -> Statement:
    return {"match": {"op": op, "left": left, "right": right}}


def _port(text: str) -> Any:
    first, colon, last = text.partition(":")
    return {"range": [int(first or 0), int(last or 65535)]} if colon else int(text)
