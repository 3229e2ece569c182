"""Filters of reverse paths in the host's firewall (`fib saddr . iif oif missing drop`, as firewalld has for IPv6) that
cut a container off that has two addresses.

Owns: which of its packets such a filter takes, and the words.  Must not know: how a chain is read (`firewall`), or what
else of ours it has to let pass (`blockers`).

A container with join_global answers by the link that its own routes choose, whichever of its addresses was asked: from
the address of its service through its leg in the global overlay, and from that of the overlay through its service's
bridge.  The host's route to either leads by the other link.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from overlayd.model.blockers import Traffic
from overlayd.model.findings import Finding
from overlayd.model.firewall import LOST, BaseChain, Link, Packet, Ruleset, judge
from overlayd.model.objects import GROUP_DEVICE, GROUP_VETH, NFT_TABLE
from overlayd.model.remedies import describe, let_pass

_FAMILIES = {4: ("inet", "ip"), 6: ("inet", "ip6")}


def reverse_path_filters(rulesets: Iterable[Ruleset], traffic: Traffic) -> list[Finding]:
    """One for each chain that drops what containers answer so.  Empty while no container has two addresses."""
    leg = next((link for link in traffic.links if link.group == GROUP_VETH), None)
    if leg is None:
        return []
    return [
        found
        for ruleset in rulesets
        for chain in ruleset.hooked
        if chain.name[1] != NFT_TABLE and chain.name[0] in _FAMILIES[traffic.cluster.version]
        for found in _judged(ruleset, chain, traffic, leg)
    ]


def _judged(ruleset: Ruleset, chain: BaseChain, traffic: Traffic, leg: Link) -> Iterator[Finding]:
    if chain.hook not in ("prerouting", "forward") or chain.translates:
        return
    device = next((link for link in traffic.links if link.group == GROUP_DEVICE), None)
    answer = Packet(
        traffic.cluster.version,
        leg,
        device if chain.hook == "forward" else None,
        begins=False,
        source=traffic.cluster,
        destination=traffic.cluster,
        returns=True,
    )
    whole = judge(ruleset, chain, answer)
    if whole.end in LOST:  # whatever its source: of which is told already
        return
    found = judge(ruleset, chain, replace(answer, returns=False))
    lost = found.end in LOST
    if not lost and not (found.may_be_lost and not whole.may_be_lost):
        return
    yield Finding(
        code="reverse-path-filtered",
        severity="error" if lost and not found.may_pass else "warning" if lost else "hint",
        object=describe(chain),
        problem=("drops" if lost else "may drop")
        + " by a filter of reverse paths what containers with join_global answer through their other interface",
        symptom="by the address of their service other nodes do not reach them, and by that of the overlay"
        " their neighbours do not",
        remedy=_FIREWALLD if chain.name[1] == "firewalld" else let_pass(chain, [("i", leg), ("i", Link("zl-"))]),
    )


_FIREWALLD = (
    "set IPv6_rpfilter=loose in /etc/firewalld/firewalld.conf (no, where it knows no loose); firewall-cmd --reload"
)
