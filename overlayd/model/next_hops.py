"""What the doctor says of the hosts to which this one hands what WireGuard sends: routers, and peers on a link of it.

Owns: when such a neighbour is at fault, and the words.  Must not know: how the kernel is asked (`linux.neighbours`), or
when a peer counts as answering (`health`).
"""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from overlayd.model.findings import Finding
from overlayd.model.objects import Address

FEW = 4  # our own: so many neighbours or peers are named one by one

# What the kernel knows of a neighbour: it answers, or nobody asked lately; it is being asked; it was asked, and did not
# answer; somebody told its MAC, and the kernel does not ask; likewise, and it is this host's own.
Entry = Literal["fine", "asked", "silent", "told", "ours"]


class NextHop(NamedTuple):
    """A neighbour.  link: its link's name.  routes: it is a router, and not itself whom packets are for.  mac: as
    text.  arp: whether the link asks for MACs at all.  port_of: the bridge that takes what arrives by the link.
    """

    link: str
    address: Address
    routes: bool
    entry: Entry = "fine"
    mac: str = ""
    arp: bool = True
    port_of: str = ""


class Sent(NamedTuple):
    """What is sent by a neighbour.  to: a peer's name, or the outside.  waits: it has gone without any answer for
    long.  answers: there was one lately.  others: it is also sent by other neighbours, of which some answer.
    """

    hop: NextHop
    to: str
    waits: bool
    answers: bool
    others: bool = False


def next_hop_findings(sent: Iterable[Sent]) -> list[Finding]:
    """One for each neighbour at fault, but one for all peers of a link that are silent when they are many.

    A MAC that somebody told may be the right one: it is under suspicion when something by it waits and nothing answers.
    """
    by_hop: dict[NextHop, list[Sent]] = {}
    for each in sent:
        by_hop.setdefault(each.hop, []).append(each)
    silent: dict[str, list[tuple[NextHop, list[Sent]]]] = {}
    found = []
    for hop, some in by_hop.items():
        if hop.entry == "told" and any(each.waits for each in some) and not any(each.answers for each in some):
            found.append(_told(hop, [each.to for each in some if each.waits]))
        elif hop.entry == "ours":
            found.append(_ours(hop, [each.to for each in some]))
        elif hop.entry == "silent" and hop.routes:
            found.append(_silent(hop, some))
        elif hop.entry == "silent":
            silent.setdefault(hop.link, []).append((hop, some))
    for link, hops in silent.items():
        if len(hops) > FEW:
            found.append(_many(link, [hop for hop, _ in hops]))
        else:
            found += [_silent(hop, some) for hop, some in hops]
    return found


def _silent(hop: NextHop, sent: Sequence[Sent]) -> Finding:
    what = "that router" if hop.routes else "that host"
    shared = all(each.others for each in sent)
    to = _named([each.to for each in sent])
    remedy = (
        f"see whether {what} runs, has that address, and is on that link, and the cable or VLAN between;"
        f" ip neigh del {hop.address} dev {hop.link} has the kernel ask again"
    )
    if hop.port_of:
        remedy = (
            f"{hop.link} is a port of {hop.port_of}, which takes all answers: give {hop.port_of} the addresses and"
            f" routes of {hop.link}, or take it out (ip link set dev {hop.link} nomaster)"
        )
    return Finding(
        code="neighbour-silent",
        severity="error" if hop.routes and not shared else "warning",
        object=f"neighbour {hop.address} of {hop.link}",
        problem=f"{_UNANSWERED[hop.address.version]}{', and is the router to others' if hop.routes else ''}",
        symptom=f"what is sent by it, not by other routers, to {to} is lost" if shared else f"nothing is sent to {to}",
        remedy=remedy,
    )


def _many(link: str, hops: Sequence[NextHop]) -> Finding:
    named = ", ".join(str(hop.address) for hop in hops[:FEW])
    return Finding(
        code="neighbour-silent",
        severity="warning",
        object=f"{len(hops)} neighbours of {link} ({named}, ...)",
        problem="do not answer the kernel, which asks for their MACs",
        symptom="nothing is sent to these peers",
        remedy="see whether these hosts run, and the cable or VLAN between",
    )


def _told(hop: NextHop, to: Sequence[str]) -> Finding:
    remedy = f"unless that is the right one: {_forget(hop)}"
    if not hop.arp:
        remedy = f"{_forget(hop)}, unless that link needs none"
    return Finding(
        code="neighbour-told",
        severity="warning",
        object=f"neighbour {hop.address} of {hop.link}",
        problem=f"has the MAC {hop.mac}, for which the kernel did not ask, and nothing that is sent to it is answered",
        symptom=f"if it is a wrong one, nothing reaches {_named(to)}",
        remedy=remedy,
    )


def _ours(hop: NextHop, to: Sequence[str]) -> Finding:
    return Finding(
        code="neighbour-told",
        severity="error",
        object=f"neighbour {hop.address} of {hop.link}",
        problem="has the MAC of this host itself, for which the kernel did not ask",
        symptom=f"nothing reaches {_named(to)}",
        remedy=_forget(hop),
    )


def _forget(hop: NextHop) -> str:
    """Where a link has no ARP, the kernel gives it its own MAC again and again."""
    return f"ip neigh del {hop.address} dev {hop.link}" if hop.arp else f"ip link set dev {hop.link} arp on"


_UNANSWERED = {4: "does not answer ARP", 6: "does not answer neighbour discovery"}


def _named(to: Sequence[str]) -> str:
    to = list(dict.fromkeys(to))
    return ", ".join(to[:FEW]) + (f" and {len(to) - FEW} more" if len(to) > FEW else "")
