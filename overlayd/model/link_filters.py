"""What is attached to a link and may drop its packets, out of sight of nftables: XDP and tc.

Owns: what of that is in the overlay's way, and the words.  Must not know: how it is read (`linux.link_filters`).

What a BPF program does cannot be told from outside.  On the uplink there may be a good reason for one, as of a CNI
plugin's own or a load balancer, so it is a hint there; on a link of ours nobody but us has anything to do.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from overlayd.model.findings import Finding

Kind = Literal["xdp", "bpf", "drop", "redirect", "blackhole", "lossy"]

_PROBLEMS: dict[Kind, str] = {
    "xdp": "has a BPF program (XDP) that may drop what comes",
    "bpf": "has a BPF program (tc) that may drop its packets",
    "drop": "has a tc filter that drops packets",
    "redirect": "has a tc filter that leads packets to {target}",
    "lossy": "has a queueing discipline ({target}) that has dropped more packets than it let pass",
}


class LinkFilter(NamedTuple):
    """link: its name.  side: "ingress" or "egress".  target: the link that packets are redirected to, or the kind of a
    queueing discipline.
    """

    link: str
    kind: Kind
    side: str = ""
    target: str = ""


def link_findings(filters: Iterable[LinkFilter], uplink: str) -> list[Finding]:
    """One for each filter that may lose packets of the overlay."""
    return [
        _closed(each.link) if each.kind == "blackhole" else _filtered(each, uplink) for each in dict.fromkeys(filters)
    ]


def _closed(link: str) -> Finding:
    return Finding(
        code="link-closed",
        severity="error",
        object=f"link {link}",
        problem="has a queueing discipline that drops all it sends (blackhole)",
        symptom="nothing leaves by it",
        remedy=f"tc qdisc del dev {link} root",
    )


def _filtered(filter: LinkFilter, uplink: str) -> Finding:
    lossy = filter.kind == "lossy"
    shown = f"tc -s qdisc show dev {filter.link}" if lossy else f"tc filter show dev {filter.link} {filter.side}"
    return Finding(
        code="link-filtered",
        severity="hint" if filter.link == uplink and not lossy else "warning",
        object=f"link {filter.link}",
        problem=_PROBLEMS[filter.kind].format(target=filter.target),
        symptom="what it takes is lost",
        remedy=f"ip link set dev {filter.link} xdp off"
        if filter.kind == "xdp"
        else f"see whose it is ({shown}), and remove it",
    )
