"""Whether the containers' ends of our veths are still in their network namespaces.

Owns: that look.  Must not know: what is said of one that is not.  A veth pair lives on when somebody moves one of its
ends elsewhere, and the kernel tells nobody.  Source: rtnetlink(7), linux/net_namespace.h.

Acts in the network namespace that the calling thread is in.
"""

import os
from collections.abc import Iterable, Iterator

from overlayd.errors import MechanismError
from overlayd.linux import netns
from overlayd.linux import rtnetlink as rt
from overlayd.linux.netlink import Netlink, Request
from overlayd.model.objects import Netns, NetnsPath
from overlayd.proto.netlink import attributes, number, string, u32

_RTM_GETNSID, _NSID, _OF_DESCRIPTOR = 90, 1, 3  # NETNSA_NSID, NETNSA_FD
_IFLA_LINK_NETNSID = 37
_HEAD = 4  # rtgenmsg, padded


def moved(ends: Iterable[tuple[str, Netns | NetnsPath]]) -> Iterator[str]:
    """Of veths, by the names of their ends on this host, those whose other end is not in that namespace.  What cannot
    be looked at is left out.  MechanismError when the kernel refuses to list links.
    """
    wanted = dict(ends)
    if not wanted:
        return
    with Netlink() as netlink:
        peers: dict[str, int | None] = {}
        for body in netlink.dump("list links", rt.RTM_GETLINK, rt.link_filter()):
            about = dict(attributes(body[16:]))
            if (name := string(about[rt.IFLA_IFNAME])) in wanted:
                peers[name] = number(about[_IFLA_LINK_NETNSID]) if _IFLA_LINK_NETNSID in about else None
        for name, peer in peers.items():
            try:
                if peer != _number_of(netlink, wanted[name]):
                    yield name
            except MechanismError:  # of one that is gone is told elsewhere
                continue


def _number_of(netlink: Netlink, namespace: Netns | NetnsPath) -> int:
    """The number that stands for a namespace in ours."""
    descriptor = netns.open_namespace(namespace)
    try:
        body = bytes(_HEAD) + u32(_OF_DESCRIPTOR, descriptor)
        (reply,) = netlink.transact([Request("look up", "network namespace", _RTM_GETNSID, 0, body)])
        return number(dict(attributes(reply[_HEAD:]))[_NSID])
    finally:
        os.close(descriptor)
