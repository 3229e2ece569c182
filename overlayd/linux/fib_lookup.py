"""What becomes of a packet by the kernel's own word: policy rules, tables, VRFs and filters of reverse paths in all.

Owns: that question.  Must not know: about which packets it is asked, or what the answer should be (`model.diversions`).
Source: rtnetlink(7), RTM_GETROUTE.

Acts in the network namespace that the calling thread is in.
"""

import errno
import os
import socket
from collections.abc import Iterable

from overlayd.errors import MechanismError
from overlayd.linux import rtnetlink as rt
from overlayd.linux.link import find_link, link_name
from overlayd.linux.netlink import Netlink, Request
from overlayd.linux.route_messages import lookup_body, parse_route
from overlayd.model.diversions import HERE, Question, Way
from overlayd.proto.netlink import attribute, u32

# linux/rtnetlink.h
_RTA_MARK = 16
_RTA_IP_PROTO, _RTA_SPORT, _RTA_DPORT = 27, 28, 29

# What the kernel means by an errno here: fib_props in net/ipv4/fib_semantics.c, ip_route_input_slow().
_WORDS = {
    errno.EINVAL: "a blackhole, or a filter of reverse paths (rp_filter), drops it",
    errno.EACCES: "a rule or route of the type prohibit refuses it",
    errno.EXDEV: "a filter of reverse paths (rp_filter) drops it",
}


def ways(questions: Iterable[Question]) -> list[tuple[Question, Way]]:
    """What becomes of each packet, in some 20 us; those whose links are not there are left out."""
    found = []
    with Netlink() as netlink:
        for question in questions:
            try:
                incoming = socket.if_nametoindex(question.incoming) if question.incoming else 0
                through = socket.if_nametoindex(question.through) if question.through else 0
            except OSError:  # of which is told elsewhere
                continue
            found.append((question, _way(netlink, question, incoming, through)))
    return found


def _way(netlink: Netlink, question: Question, incoming: int, through: int) -> Way:
    """incoming, through: indexes of those links."""
    body = lookup_body(question.destination, incoming=incoming, source=question.source)
    if question.mark is not None:
        body += u32(_RTA_MARK, question.mark.value)
    if (flow := question.kind) is not None:
        body += attribute(_RTA_IP_PROTO, bytes([flow.protocol]))
        for kind, port in ((_RTA_SPORT, flow.source_port), (_RTA_DPORT, flow.port)):
            body += attribute(kind, port.to_bytes(2, "big")) if port else b""
    try:
        replies = netlink.transact([Request("look up route", str(question.destination), rt.RTM_GETROUTE, 0, body)])
    except MechanismError as error:
        return Way("", _WORDS.get(error.errno, os.strerror(error.errno)))
    route = next((route for route in map(parse_route, replies) if route is not None), None)
    if route is None or route.type in rt.REFUSING:
        return Way("", "a route refuses it")
    if route.type == rt.RTN_LOCAL:
        return Way(HERE)
    if route.type != rt.RTN_UNICAST or not route.hops:
        return Way("")
    index = route.hops[0][0]
    name = question.through if index == through else link_name(index)
    plain = question.leaves_for_a_peer and question.flow is None and question.mark is None
    return Way(name, mtu=route.mtu or _mtu(netlink, name) if plain else 0)


def _mtu(netlink: Netlink, name: str) -> int:
    link = find_link(netlink, name)
    return link.mtu if link is not None else 0
