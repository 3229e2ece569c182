"""What the host's own rules do to the tracking of connections, by which masquerade finds the way back.

Owns: which of them take that away, and the words.  Must not know: whose packets it is asked about (`blockers`).
Source: nft(8), CT STATEMENT; iptables-extensions(8), CT.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from overlayd.model.findings import Finding
from overlayd.model.firewall import BaseChain, Packet, Ruleset, Statement, judge
from overlayd.model.remedies import describe, let_pass

# A zone for the one direction that begins a connection does no harm: answers are looked for in the usual one.
_ZONES: list[Statement] = [{"ct": {"key": "zone"}}, {"ct": {"key": "zone", "dir": "reply"}}]


def untracked(ruleset: Ruleset, chain: BaseChain, out: Sequence[Packet], back: Sequence[Packet]) -> Iterator[Finding]:
    """What a chain does to connections to the outside.  out: their packets, of which each comes by another link of
    ours.  back: the answers.
    """
    rules = _of_tracking(ruleset, chain)
    ways = {_tracked(judge(rules, chain, packet).end) for packet in out}
    answers = {_tracked(judge(rules, chain, packet).end) for packet in back}
    remedy = let_pass(chain, [("i", packet.incoming) for packet in out if packet.incoming is not None])
    symptom, certain = "containers reach nothing outside of the overlay", True
    if "notrack" in ways:
        problem = "keeps the connections of containers from being tracked (notrack)"
    elif "notrack" in answers:
        problem = "keeps answers from the outside to containers from being tracked (notrack)"
        remedy = "have that rule name the traffic that it is for, by protocol and port"
    elif "CT" in ways | answers:
        problem = "changes how the connections of containers are tracked (CT), and nft does not show how"
        symptom, certain = f"if it does not, or in another zone, {symptom}", False
    elif answers and ways != answers:
        problem = "tracks the connections of containers in another zone (ct zone) than answers from the outside"
    else:
        return
    yield Finding("connections-untracked", "error" if certain else "warning", describe(chain), problem, symptom, remedy)


def _tracked(end: str) -> str:
    """How what meets that end is tracked: "" as usual."""
    return end if end in ("notrack", "CT") or (end.startswith("zone ") and end != "zone 0") else ""


def _of_tracking(ruleset: Ruleset, chain: BaseChain) -> Ruleset:
    """The rules of the chain's table, in which what decides about tracking ends a packet: a zone as "zone 7", and the
    target CT of xtables, of which nft does not show the options, as "CT".
    """
    of = {name: rules for name, rules in ruleset.rules.items() if name[:2] == chain.name[:2]}
    return replace(ruleset, rules={name: [[*map(_deciding, each)] for each in rules] for name, rules in of.items()})


def _deciding(statement: Statement) -> Statement:
    if statement.get("mangle", {}).get("key") in _ZONES and isinstance(zone := statement["mangle"]["value"], int):
        return {"tracking": f"zone {zone}"}
    opaque = statement.get("xt") or {}
    return {"tracking": "CT"} if (opaque.get("type"), opaque.get("name")) == ("target", "CT") else statement
