"""What is attached to a link and may drop its packets, out of sight of nftables: XDP and tc.

Owns: what of that is in the overlay's way, and the words.  Must not know: how it is read (`linux.link_filters`).

What a BPF program does cannot be told from outside.  On the uplink there may be a good reason for one, as of a CNI
plugin's own or a load balancer, so it is a hint there; on a link of ours nobody but us has anything to do.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from overlayd.model.findings import Finding

Kind = Literal["xdp", "bpf", "drop", "redirect", "blackhole"]

_WORDS: dict[Kind, tuple[str, str]] = {  # the problem, and the command that takes it away
    "xdp": ("has a BPF program (XDP) that may drop what comes", "ip link set dev {link} xdp off"),
    "bpf": ("has a BPF program (tc) that may drop its packets", "tc filter show dev {link} {side}"),
    "drop": ("has a tc filter that drops packets", "tc filter show dev {link} {side}"),
    "redirect": ("has a tc filter that leads packets to {target}", "tc filter show dev {link} {side}"),
    "blackhole": ("has a queueing discipline that drops all it sends (blackhole)", "tc qdisc del dev {link} root"),
}


class LinkFilter(NamedTuple):
    """link: its name.  side: "ingress" or "egress".  target: the link that packets are redirected to."""

    link: str
    kind: Kind
    side: str = ""
    target: str = ""


def link_findings(filters: Iterable[LinkFilter], uplink: str) -> list[Finding]:
    """One for each filter that may lose packets of the overlay."""
    found = []
    for each in dict.fromkeys(filters):
        problem, remedy = (words.format(**each._asdict()) for words in _WORDS[each.kind])
        closed = each.kind == "blackhole"
        found.append(
            Finding(
                code="link-closed" if closed else "link-filtered",
                severity="error" if closed else "hint" if each.link == uplink else "warning",
                object=f"link {each.link}",
                problem=problem,
                symptom="what it takes is lost",
                remedy=remedy if closed or each.kind == "xdp" else f"see whose it is ({remedy}), and remove it",
            )
        )
    return found
