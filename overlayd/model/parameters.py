"""What a host's kernel parameters, and the MTU of its links, do to the overlay.

Owns: which values are in its way, the bytes that WireGuard adds to a packet, and the words.  Must not know: how
parameters are read (`linux.sysctl`); those of our own links, which are put back (`linux.forwarding`).
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

import msgspec

from overlayd.model.findings import Finding

OVERHEAD = {4: 60, 6: 80}  # WireGuard adds 32 bytes, UDP 8, and IPv4 20 or IPv6 40


class Carries(NamedTuple):
    """The MTU of a way to peers, in bytes.  link: by which it leads; to: an address, or what else is there."""

    link: str
    mtu: int
    to: str
    version: int


class Uplink(msgspec.Struct, frozen=True):
    """The link that leads out, as far as its parameters go.

    forwards: IPv4.  strict: it takes only what its own route leads back to (rp_filter 1, here or host-wide).  alone: no
    other link has a default route.  ipv6: it may carry IPv6; has_ipv6: the kernel has IPv6 at all.  unused: its global
    IPv6 addresses, if the kernel does without all of them, and why.
    """

    name: str
    forwards: bool
    strict: bool
    alone: bool
    ipv6: bool
    has_ipv6: bool
    unused: tuple[tuple[str, Literal["deprecated", "duplicate"]], ...] = ()


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
    if cluster == 6 or 6 in underlay:
        # A deprecated one still serves tunnels, but masquerade prefers that of another link, which is the overlay's.
        unused = [each for each in uplink.unused if each[1] == "duplicate" or cluster == 6]
        found += [_unused(name, address, duplicate=why == "duplicate") for address, why in unused]
    return found


def _unused(link: str, address: str, *, duplicate: bool) -> Finding:
    if duplicate:
        problem = "is another host's on that link too (dadfailed), so that the kernel does without it"
        symptom = "nothing is sent over IPv6 by this link"
        remedy = "give this host or the other one another address"
    else:
        problem = "is deprecated (preferred_lft 0), and the link has no other IPv6 address"
        symptom = "what containers send to the outside carries an address of the overlay, and is not answered"
        remedy = (
            f"ip address change {address} dev {link} preferred_lft forever, and find out what lets it expire"
            " (advertisements of a router, PreferredLifetime= of systemd-networkd)"
        )
    return Finding("uplink-address", "error", f"address {address} of {link}", problem, symptom, remedy)


MUTE = "8"  # of arp_ignore: no address of this host is told (Documentation/networking/ip-sysctl.rst)


def mute_findings(mute: Iterable[str], uplink: str) -> list[Finding]:
    """mute: the links ("all" for every one) whose ARP is told to answer nobody."""
    return [
        Finding(
            code="arp-ignored",
            severity="error",
            object=f"net/ipv4/conf/{name}/arp_ignore",
            problem=f"is {MUTE}: nobody is told the MAC of this host there",
            symptom="routers and peers do not find this host"
            if name == uplink
            else "containers reach their bridge alone",
            remedy=f"sysctl -w net/ipv4/conf/{name}/arp_ignore=0, and find out who sets it (/etc/sysctl.d)",
        )
        for name in mute
    ]


def narrow_findings(ways: Iterable[Carries], inside: int) -> list[Finding]:
    """What carries less than tunnels send, one for each link and MTU.  inside: the overlay's MTU."""
    narrow: dict[tuple[str, int], Carries] = {}
    for each in ways:
        if each.mtu and each.mtu < inside + OVERHEAD[each.version]:
            narrow.setdefault((each.link, each.mtu), each)
    return [
        Finding(
            code="underlay-narrow",
            severity="warning",
            object=f"the way to {each.to} by link {each.link}",
            problem=f"carries packets of {each.mtu} bytes, and tunnels send up to {inside + OVERHEAD[each.version]}",
            symptom="large packets travel in pieces or are lost: connections hang as soon as they send much",
            remedy=f"give it an MTU of {inside + OVERHEAD[each.version]} (ip link set dev {each.link} mtu), on all that"
            " is between this host and its peers",
        )
        for each in narrow.values()
    ]
