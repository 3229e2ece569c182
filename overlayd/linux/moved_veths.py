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
from overlayd.linux.netlink import Netlink
from overlayd.model.objects import Netns, NetnsPath
from overlayd.proto.netlink import attributes, number, string


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
                peers[name] = number(about[rt.IFLA_LINK_NETNSID]) if rt.IFLA_LINK_NETNSID in about else None
        for name, peer in peers.items():
            try:
                if peer != _id_of(netlink, wanted[name]):
                    yield name
            except MechanismError:  # of one that is gone is told elsewhere
                continue


def _id_of(netlink: Netlink, namespace: Netns | NetnsPath) -> int:
    """The id of a namespace in ours."""
    descriptor = netns.open_namespace(namespace)
    try:
        return netns.id_here(
            netlink, descriptor, f"process {namespace.pid}" if isinstance(namespace, Netns) else namespace.path
        )
    finally:
        os.close(descriptor)
