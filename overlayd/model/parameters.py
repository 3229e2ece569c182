"""What a host's kernel parameters do to the overlay.

Owns: which values are in its way, and the words.  Must not know: how parameters are read (`linux.sysctl`); those of our
own links, which are put back (`linux.forwarding`).
"""

from dataclasses import dataclass

from overlayd.model.findings import Finding


@dataclass(frozen=True, slots=True)
class Uplink:
    """The link that leads out, as far as its parameters go.

    forwards: IPv4.  strict: it takes only what its own route leads back to (rp_filter 1, here or host-wide).  alone: no
    other link has a default route.  ipv6: it may carry IPv6; has_ipv6: the kernel has IPv6 at all.
    """

    name: str
    forwards: bool
    strict: bool
    alone: bool
    ipv6: bool
    has_ipv6: bool


def uplink_findings(uplink: Uplink, *, cluster: int, underlay: frozenset[int]) -> list[Finding]:
    """What is in the way.  cluster: the version of IP inside; underlay: those that peers are reached by."""
    found = []
    name = uplink.name
    if cluster == 4 and not uplink.forwards:
        found.append(
            Finding(
                code="uplink-not-forwarding",
                severity="error",
                object=f"net/ipv4/conf/{name}/forwarding",
                problem="is 0, it must be 1",
                symptom="what comes back from the outside for containers is dropped",
                remedy=f"sysctl -w net/ipv4/conf/{name}/forwarding=1, and tell who sets it: systemd-networkd by"
                f" IPv4Forwarding=yes (before version 256 IPForward=yes) in the .network file of {name}",
            )
        )
    if uplink.strict:
        found.append(
            Finding(
                code="uplink-strict",
                severity="hint" if uplink.alone else "warning",
                object=f"net/ipv4/conf/{name}/rp_filter",
                problem="is strict (1, or net/ipv4/conf/all/rp_filter is)",
                symptom="what comes in by this link and would leave by another one is dropped",
                remedy=f"if hosts are reached by several ways, sysctl -w net/ipv4/conf/{name}/rp_filter=2",
            )
        )
    if 6 in underlay and not uplink.has_ipv6:
        found.append(
            Finding(
                code="ipv6-disabled",
                severity="error",
                object="IPv6",
                problem="is switched off in the kernel (ipv6.disable=1)",
                symptom="peers with an IPv6 endpoint are not reached",
                remedy="start the kernel without that parameter, or give those peers IPv4 endpoints",
            )
        )
    elif 6 in underlay and not uplink.ipv6:
        found.append(
            Finding(
                code="ipv6-disabled",
                severity="error",
                object=f"net/ipv6/conf/{name}/disable_ipv6",
                problem="is 1, it must be 0",
                symptom="peers with an IPv6 endpoint are not reached",
                remedy=f"sysctl -w net/ipv6/conf/{name}/disable_ipv6=0, or give those peers IPv4 endpoints",
            )
        )
    return found
