"""Packets from link to link: what the kernel has to be told for that.

Owns: which parameters, and their values.  Must not know: packet filters, or whose links they are.

Parameters of a link travel by netlink, which needs no writable /proc/sys; those of the host are files only.  Every
function acts in the network namespace that the calling thread is in.
"""

from collections.abc import Iterable

from overlayd.linux import rtnetlink as rt
from overlayd.linux import sysctl
from overlayd.linux.link import find_link
from overlayd.linux.netlink import Netlink, Request

# What goes into a message that configures a link of ours: it forwards, and accepts what comes back by another way than
# it went.  The loose kind of reverse path filtering (2) wins over a strict host-wide setting (1).  A secondary address
# does not go with the primary one that it replaces.  What a container sends must not redirect the host.
SETTINGS = rt.ipv4_settings(
    {
        rt.IPV4_DEVCONF_FORWARDING: 1,
        rt.IPV4_DEVCONF_RP_FILTER: 2,
        rt.IPV4_DEVCONF_PROMOTE_SECONDARIES: 1,
        rt.IPV4_DEVCONF_ACCEPT_REDIRECTS: 0,
    }
)
# And into one about a host end, a bridge's port or not.  It answers ARP only to whom it leads: else the host would
# learn a neighbour from every address that a container asks from, until its table, one for all links, is full.
WARY = rt.ipv4_settings({rt.IPV4_DEVCONF_ACCEPT_REDIRECTS: 0, rt.IPV4_DEVCONF_ARPFILTER: 1})
# And into one about a container's end, which is answered through another interface than the question came by.
LOOSE = rt.ipv4_settings({rt.IPV4_DEVCONF_RP_FILTER: 2})

_HOST = ("ipv4/ip_forward", "ipv6/conf/all/forwarding")


def enable() -> None:
    """Let this host forward IPv4 and IPv6.

    A router ignores router advertisements, so links that listened to them (accept_ra 1) are told to go on (2) before
    IPv6 forwarding is switched on.  What already has its value is not written, so a read-only /proc/sys is no obstacle
    once it is prepared; else MechanismError names the parameter.
    """
    for parameter in _host_parameters():
        if parameter.startswith("ipv6") and sysctl.read(parameter) != "1":
            keep_listening(sysctl.links("ipv6"))
        sysctl.write(parameter, "1")


def closed() -> list[int]:
    """The versions of IP that this host does not forward."""
    return [int(each[3]) for each in _host_parameters() if sysctl.read(each) == "0"]


def close(versions: Iterable[int]) -> None:
    """Stop forwarding these versions of IP."""
    for version in versions:
        sysctl.write(_HOST[0] if version == 4 else _HOST[1], "0")


def bridged() -> list[int]:
    """The versions of IP whose packets inside a bridge are shown to packet filters as if they were forwarded."""
    calls = ((4, "bridge/bridge-nf-call-iptables"), (6, "bridge/bridge-nf-call-ip6tables"))
    return [version for version, parameter in calls if sysctl.read_if_there(parameter) == "1"]


def keep_listening(names: Iterable[str]) -> list[str]:
    """Let links that listened to router advertisements before the host forwarded go on; return those it was done to."""
    told = []
    for name in names:
        if sysctl.read_if_there(f"ipv6/conf/{name}/accept_ra") == "1":
            sysctl.write(f"ipv6/conf/{name}/accept_ra", "2")
            told.append(name)
    return told


def settle(names: Iterable[str]) -> None:
    """Give the links of these names their parameters; those that are not there are passed over."""
    with Netlink() as netlink:
        for name in names:
            link = find_link(netlink, name)
            if link is not None and fault(link):
                body = rt.link_body(SETTINGS, index=link.ifindex)
                netlink.transact([Request("configure", link.name, rt.RTM_SETLINK, 0, body)])


def faults(names: Iterable[str]) -> list[str]:
    """What `enable`, and `settle` of these names, would have to set, for a person; empty when all is as it should
    be.
    """
    found = [f"net/{each} is 0, it must be 1" for each in _host_parameters() if sysctl.read(each) == "0"]
    with Netlink() as netlink:
        links = [link for name in names if (link := find_link(netlink, name)) is not None]
    return [*found, *(text for link in links if (text := fault(link)))]


def fault(link: rt.Link) -> str:
    """The first thing that `settle` would have to set for a link, for a person; empty when all is as it should be."""
    wanted = (("forwarding", link.forwarding, 1), ("rp_filter", link.rp_filter, 2))
    return next(
        (
            f"net/ipv4/conf/{link.name}/{name} is {value}, it must be {right}"
            for name, value, right in wanted
            if value not in (right, None)
        ),
        "",
    )


def _host_parameters() -> tuple[str, ...]:
    return _HOST if sysctl.has_ipv6() else _HOST[:1]
