"""What IPsec policies of the host do to packets of the overlay.

Owns: which policy is for a packet, and the words for one that is in the way.  Must not know: how policies are read
(`linux.ipsec`); which packets are judged (`diversions`).

A policy is no filter of nftables and no route: neither shows it, and what it blocks is lost without a trace.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from overlayd.model.diversions import HERE, Question
from overlayd.model.findings import Finding
from overlayd.model.objects import Address, Network

Direction = Literal["in", "out", "fwd"]
DIRECTIONS: tuple[Direction, ...] = ("in", "out", "fwd")  # in the order of their numbers (linux/xfrm.h)
_UDP = 17  # netinet/in.h


class Policy(NamedTuple):
    """source, destination: None for any, of both versions of IP.  protocol, ports (from, to): 0 for any.  blocks: what
    it is for.  transforms: that has to be encrypted or the like; keyless: with keys that there are none of.  priority:
    the lowest is asked first.
    """

    direction: Direction
    source: Network | None = None
    destination: Network | None = None
    protocol: int = 0
    ports: tuple[int, int] = (0, 0)
    blocks: bool = False
    transforms: bool = False
    keyless: bool = False
    priority: int = 0


def ipsec_findings(
    policies: Sequence[Policy], packets: Iterable[Question], own: Address | None, outer: Address | None
) -> list[Finding]:
    """A finding for each policy that takes one of the packets.  own, outer: the host's addresses in the overlay and
    towards the outside, which its own packets are from.
    """
    found: dict[Policy, Finding] = {}
    if policies:
        for packet in packets:
            source = packet.source or (own if packet.ports is None else outer)
            for direction in _directions(packet):
                policy = _first(policies, direction, packet, source) if source is not None else None
                if source and policy and (policy.blocks or policy.transforms) and policy not in found:
                    found[policy] = _finding(policy, packet, source)
    return [*found.values()]


def _directions(packet: Question) -> tuple[Direction, ...]:
    """At which turns the kernel asks about it."""
    if not packet.incoming:
        return ("out",)
    return ("in",) if packet.through == HERE else ("fwd", "out")


def _first(policies: Iterable[Policy], direction: Direction, packet: Question, source: Address) -> Policy | None:
    """The policy that decides about a packet; one for some of the packets between both ends may be it too, but does not
    keep others from being asked about the rest.
    """
    return next((each for each in _matching(policies, direction, packet, source) if _decides(each, packet)), None)


def _matching(policies: Iterable[Policy], direction: Direction, packet: Question, source: Address) -> Iterator[Policy]:
    for each in policies:
        ends = ((each.source, source), (each.destination, packet.destination))
        if each.direction == direction and all(network is None or address in network for network, address in ends):
            yield each


def _decides(policy: Policy, packet: Question) -> bool:
    some = bool(policy.protocol or any(policy.ports))
    if packet.ports is None:
        return not some or policy.blocks or policy.transforms
    ports = zip(policy.ports, packet.ports, strict=True)
    return policy.protocol in (0, _UDP) and all(wanted in (0, port) for wanted, port in ports)


def _finding(policy: Policy, packet: Question, source: Address) -> Finding:
    tunnel = packet.ports is not None
    what = "WireGuard's packets" if tunnel else "the overlay's packets"
    selector = f"src {policy.source} dst {policy.destination}" + (
        f" proto {policy.protocol}" if policy.protocol else ""
    )
    remedy = (
        f"ip xfrm policy delete {selector} dir {policy.direction}, and have the IPsec program that made it spare them"
    )
    if policy.source is None:
        selector, remedy = "that is the default", f"ip xfrm policy setdefault {policy.direction} accept"
    # IPsec below WireGuard works as long as it has its own keys; inside of the overlay it takes packets out of it.
    certain = policy.blocks or policy.keyless or not tunnel
    return Finding(
        code="ipsec-diverted",
        severity="error" if certain else "warning",
        object=f"the IPsec policy {selector} dir {policy.direction}",
        problem=f"{'blocks' if policy.blocks else 'takes'} {what}, as from {source} to {packet.destination}",
        symptom="they are lost" if certain else "they pass as long as that IPsec has its keys",
        remedy=f"{remedy} (ip xfrm policy)",
    )
