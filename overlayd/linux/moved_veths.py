"""Whether the containers' ends of our veths are still in their network namespaces, and have the MACs they were given.

Owns: that look.  Must not know: what is said of one that is not.  A veth pair lives on when somebody moves one of its
ends elsewhere, or gives it another MAC, and the kernel tells nobody here.  Source: rtnetlink(7), linux/net_namespace.h.

Acts in the network namespace that the calling thread is in.
"""

import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from overlayd.errors import MechanismError
from overlayd.linux import netns
from overlayd.linux import rtnetlink as rt
from overlayd.linux.netlink import Netlink, Request
from overlayd.model.objects import Netns, NetnsPath
from overlayd.proto.netlink import attributes, number, string, u32

_IFLA_TARGET_NETNSID = 46


class End(NamedTuple):
    """A veth by the name of its end on this host, and what the other end should be.  mac: empty for any."""

    name: str
    namespace: Netns | NetnsPath
    mac: bytes


def unlike(ends: Iterable[End]) -> Iterator[tuple[str, bytes]]:
    """The veths whose other end is not in its namespace (an empty MAC), or has another MAC (that one).  What cannot be
    looked at is left out.  MechanismError when the kernel refuses to list links.
    """
    wanted = {end.name: end for end in ends}
    if not wanted:
        return
    with Netlink() as netlink:
        peers: dict[str, tuple[int | None, int]] = {}
        for body in netlink.dump("list links", rt.RTM_GETLINK, rt.link_filter()):
            about = dict(attributes(body[16:]))
            if (name := string(about[rt.IFLA_IFNAME])) in wanted:
                place = number(about[rt.IFLA_LINK_NETNSID]) if rt.IFLA_LINK_NETNSID in about else None
                peers[name] = place, number(about[rt.IFLA_LINK])
        for name, (place, index) in peers.items():
            end = wanted[name]
            try:
                if place != _id_of(netlink, end.namespace):
                    yield name, b""
                elif end.mac and (mac := _mac(netlink, place, index)) != end.mac:
                    yield name, mac
            except MechanismError:  # of one that is gone is told elsewhere
                continue


def _mac(netlink: Netlink, place: int, index: int) -> bytes:
    """Of a link by its index in the namespace that has this id in ours."""
    body = rt.link_body(u32(_IFLA_TARGET_NETNSID, place), index=index)
    (reply,) = netlink.transact([Request("look up", "container's interface", rt.RTM_GETLINK, 0, body)])
    return bytes(dict(attributes(reply[16:]))[rt.IFLA_ADDRESS])


def _id_of(netlink: Netlink, namespace: Netns | NetnsPath) -> int:
    """The id of a namespace in ours."""
    descriptor = netns.open_namespace(namespace)
    try:
        return netns.id_here(
            netlink, descriptor, f"process {namespace.pid}" if isinstance(namespace, Netns) else namespace.path
        )
    finally:
        os.close(descriptor)
