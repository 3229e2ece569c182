"""Rules that hand packets to a program (`queue` of nftables, NFQUEUE of iptables), which may not be there.

Owns: what becomes of a packet then.  Must not know: how it is found out which queues are read.
Source: nft(8), QUEUE STATEMENT; linux/netfilter/nfnetlink_queue.h.
"""

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

from overlayd.model.firewall import Ruleset, Statement

_OPEN: Statement = {"xt": None}


def resolved(ruleset: Ruleset, read: Collection[int]) -> Ruleset:
    """The same rules, with what a program is taken to do that reads a queue: let pass.  Of a queue that nobody reads a
    packet is lost, or passes if the rule says so.  read: the numbers of queues that are.
    """
    rules = {
        name: [*_resolved(each, read)]
        for name, each in ruleset.rules.items()
        if any(_queue_of(rule) is not None for rule in each)
    }
    return replace(ruleset, rules=ruleset.rules | rules) if rules else ruleset


def _resolved(rules: list[list[Statement]], read: Collection[int]) -> Iterator[list[Statement]]:
    for statements in rules:
        place = _queue_of(statements)
        if place is None:
            yield statements
            continue
        before, statement = statements[:place], statements[place]
        passes: Statement = {"accept": None}
        if "xt" in statement:  # nft shows neither which queue it is, nor whether packets pass without a program
            yield [*before, passes] if read else [*before, _OPEN, passes]
            yield [*before, {"queue": None}]
        else:
            body = statement["queue"] or {}
            lost = _numbers(body).isdisjoint(read) and "bypass" not in str(body.get("flags", ""))
            yield [*before, {"queue": None} if lost else passes]


def _queue_of(statements: list[Statement]) -> int | None:
    """The place in a rule of what hands packets to a queue."""
    for place, statement in enumerate(statements):
        opaque = statement.get("xt") or {}
        if "queue" in statement or (opaque.get("type"), opaque.get("name")) == ("target", "NFQUEUE"):
            return place
    return None


def _numbers(body: dict[str, Any]) -> set[int]:
    """Which queues it may be; of an expression that computes one, any."""
    number = body.get("num", 0)
    if isinstance(number, int):
        return {number}
    first, last = number["range"] if isinstance(number, dict) and "range" in number else (0, 65535)
    return set(range(first, last + 1))
