"""Rules of the host that keep ARP or IPv6 neighbour discovery from being passed: without it nobody is found on a link.

Owns: what of that a chain loses, and the words.  Must not know: at which links it is needed (`blockers`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from overlayd.model.findings import Finding
from overlayd.model.firewall import LOST, UNTRACKED, BaseChain, Packet, Ruleset, Verdict, judge
from overlayd.model.remedies import describe, let_discover, reason


def undiscovered(ruleset: Ruleset, chain: BaseChain, packets: Sequence[Packet]) -> Iterator[Finding]:
    """What a chain loses for sure; nothing where it loses all that it has to pass on.  packets: where they
    are needed, of version 0 for ARP and 6 for neighbour discovery.
    """
    asked = [
        packet
        for packet in packets
        if _is_needed_apart(chain, packet) or not _loses(ruleset, chain, replace(packet, version=packet.version or 4))
    ]
    if lost := _lost(ruleset, chain, [each for each in asked if not each.version]):
        yield _finding(chain, lost, "ARP", code="arp-blocked")
    discovery = [replace(each, protocol="icmpv6", kind=kind) for each in asked if each.version for kind in UNTRACKED]
    if lost := _lost(ruleset, chain, discovery):
        yield _finding(chain, lost, "IPv6 neighbour discovery", code="discovery-blocked")


def _lost(ruleset: Ruleset, chain: BaseChain, packets: Sequence[Packet]) -> Verdict | None:
    return next((verdict for packet in packets if (verdict := _loses(ruleset, chain, packet)) is not None), None)


def _finding(chain: BaseChain, lost: Verdict, what: str, *, code: str) -> Finding:
    return Finding(
        code=code,
        severity="error",
        object=describe(chain),
        problem=f"{reason(lost.end, lost.by_policy)}, and so keeps {what} in or out",
        symptom="neighbours are not found: containers, and the hosts that tunnels go to",
        remedy=let_discover(chain, arp=what == "ARP"),
    )


def _is_needed_apart(chain: BaseChain, packet: Packet) -> bool:
    """Whether the chain need not let pass all else there: it is for the host itself, or at the uplink."""
    link = packet.incoming or packet.outgoing
    local = chain.name[0] != "bridge" and chain.hook in ("input", "output")
    return local or (link is not None and not link.group)


def _loses(ruleset: Ruleset, chain: BaseChain, packet: Packet) -> Verdict | None:
    verdict = judge(ruleset, chain, packet)
    return verdict if verdict.end in LOST and not verdict.may_pass else None
