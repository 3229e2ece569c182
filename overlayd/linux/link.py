"""What all links have in common: how they are found, named, addressed and deleted, and when they are ready.

Owns: the requests about a link, whatever its kind.  Must not know: what kind it is, or why it is wanted.

Every function acts in the network namespace that the calling thread is in, can be repeated, and raises MechanismError
with what the kernel refused.
"""

import errno
import socket
import time
from collections.abc import Callable, Iterable
from ipaddress import IPv6Address

from overlayd.errors import MechanismError
from overlayd.linux import rtnetlink as rt
from overlayd.linux import sysctl
from overlayd.linux.netlink import Netlink, Request
from overlayd.linux.route_messages import connected_route_body, is_local_route, lookup_body, route_body
from overlayd.model.objects import ROUTE_PROTOCOL, Address, Interface, Network
from overlayd.proto.netlink import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, nested, text, u32

# Our own: how long the kernel may take to let packets through a new link, and how often we look, in seconds.  Linux 6.8
# and later handles a carrier when it is first asked; else a kernel worker does, normally within a millisecond.
_READY_TIMEOUT = 3.0
_READY_INTERVAL = 0.0002

# What the kernel says of an address that no route leads to, or one that leads nowhere.
NO_WAY = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL)

# The parameters of net/ipv6/conf that let what somebody sends become a route of the host.
IGNORED = ("accept_ra", "accept_redirects")
# What is no reason to refuse a link where they cannot be written: our rules drop these packets too.
UNWRITABLE = (errno.EROFS, errno.EACCES, errno.ENOENT)

_SOLICITED_NODE = bytes.fromhex("ff0200000000000000000001ff")  # RFC 4291 section 2.7.1


def find_link(netlink: Netlink, name: str) -> rt.Link | None:
    """The link with that name or alternative name, None when there is none."""
    replies = netlink.transact([look_up_request(name, errno.ENODEV)])
    return rt.parse_link(replies[0]) if replies else None


def read_link(netlink: Netlink, index: int) -> rt.Link:
    """The link with that index; raises MechanismError with errno ENODEV when there is none."""
    body = rt.link_body(u32(rt.IFLA_EXT_MASK, rt.RTEXT_FILTER_SKIP_STATS), index=index)
    return rt.parse_link(netlink.transact([Request("look up link", str(index), rt.RTM_GETLINK, 0, body)])[0])


def link_index(name: str) -> int:
    """The index of the link; raises MechanismError with errno ENODEV when there is none."""
    try:
        return socket.if_nametoindex(name)
    except OSError as error:
        raise MechanismError("find link", name, errno.ENODEV) from error


def link_name(index: int) -> str:
    """The name of a link, for a person; one that has just gone is called by its index."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"link {index}"


def delete(name: str) -> None:
    """Delete the link of that name or alternative name if there is one."""
    with Netlink() as netlink:
        netlink.transact([delete_request(name)])


def rename(old: str, new: str) -> str:
    """Rename a running link and keep the old name as its alternative name; return the name that it now carries.

    A kernel before 6.2 does not rename a running link: then the new name becomes the alternative one.  Either way both
    names resolve. Raises MechanismError with errno ENODEV when there is no link of either name.
    """
    with Netlink() as netlink:
        link = find_link(netlink, old) or find_link(netlink, new)
        if link is None:
            raise MechanismError("rename", old, errno.ENODEV)
        if link.name == new:
            return new
        body = rt.link_body(text(rt.IFLA_IFNAME, new), index=link.ifindex)
        requests = [
            *(
                _alternative_name(rt.RTM_DELLINKPROP, link.ifindex, name)
                for name in link.alternative_names
                if name == new
            ),
            Request("rename", f"{link.name} to {new}", rt.RTM_SETLINK, 0, body),
            _alternative_name(rt.RTM_NEWLINKPROP, link.ifindex, link.name),
        ]
        try:
            # In one system call, which no death of ours can cut in two: a name that is lost nobody would know again.
            netlink.transact(requests)
        except MechanismError as error:
            if error.errno != errno.EBUSY:
                raise
            request = _alternative_name(rt.RTM_NEWLINKPROP, link.ifindex, new)
            netlink.transact([request._replace(tolerated=(errno.EEXIST,))])
            return link.name
        outdated = [name for name in link.alternative_names if name != new]
        netlink.transact([_alternative_name(rt.RTM_DELLINKPROP, link.ifindex, name) for name in outdated])
        return new


def forget_name(name: str) -> None:
    """Let no link answer to `name` as an alternative name any more."""
    with Netlink() as netlink:
        link = find_link(netlink, name)
        if link is not None and name in link.alternative_names:
            netlink.transact([_alternative_name(rt.RTM_DELLINKPROP, link.ifindex, name)])


def ignore_routers(name: str) -> None:
    """Let the link take no IPv6 router advertisements, and no redirects: what a container sends must not become a route
    of the host, whatever becomes of the host's forwarding.

    Where /proc/sys cannot be written the link stays as it is: our rules drop these packets too.
    """
    for parameter in IGNORED:
        try:
            sysctl.put(f"ipv6/conf/{name}/{parameter}", "0")
        except MechanismError as error:
            if error.errno not in UNWRITABLE:
                raise


def look_up_request(name: str, *tolerated: int) -> Request:
    """Ask for one link by its name or alternative name.

    Since Linux 6.8 this also makes the kernel act at once on a carrier that it has noticed but not yet handled.
    """
    body = rt.link_body(text(rt.IFLA_IFNAME, name), u32(rt.IFLA_EXT_MASK, rt.RTEXT_FILTER_SKIP_STATS))
    return Request("look up", name, rt.RTM_GETLINK, 0, body, tolerated)


def delete_request(name: str) -> Request:
    """Delete one link by name if it is there."""
    return Request("delete link", name, rt.RTM_DELLINK, 0, rt.link_body(text(rt.IFLA_IFNAME, name)), (errno.ENODEV,))


def address_request(index: int, interface: Interface, scope: int = rt.RT_SCOPE_UNIVERSE) -> Request:
    """Add one address to the link, unless it has it."""
    flags = NLM_F_CREATE | NLM_F_REPLACE
    return Request("add address", str(interface), rt.RTM_NEWADDR, flags, rt.address_body(index, interface, scope))


def route_request(
    index: int,
    destination: Network,
    gateway: Address | None = None,
    *,
    source: Address | None = None,
    flags: int,
) -> Request:
    """Add one route of ours through the link.  flags: NLM_F_EXCL to refuse, or NLM_F_REPLACE to replace, what leads to
    the same destination; with NLM_F_CREATE.
    """
    body = route_body(index, destination, ROUTE_PROTOCOL, gateway, source)
    return Request("add route", str(destination), rt.RTM_NEWROUTE, flags, body)


def addresses(netlink: Netlink, index: int) -> set[Interface]:
    found = (
        rt.parse_address(body) for body in netlink.dump("list addresses", rt.RTM_GETADDR, rt.address_filter(index))
    )
    return {address.interface for address in found if address is not None and address.ifindex == index}


def change_addresses(netlink: Netlink, index: int, add: Iterable[Interface], remove: Iterable[Interface]) -> None:
    """Add first: a link that loses its last address of a family loses its routes.  An address that is added, or was
    there, has its connected route afterwards.
    """
    add = list(add)
    netlink.transact([address_request(index, interface) for interface in add])
    netlink.transact(
        [
            Request(
                "remove address",
                str(interface),
                rt.RTM_DELADDR,
                0,
                rt.address_body(index, interface),
                (errno.EADDRNOTAVAIL,),
            )
            for interface in remove
        ]
    )
    netlink.transact([_connected_route_request(index, interface) for interface in add if is_wide(interface)])


def is_wide(interface: Interface) -> bool:
    """Whether others are on-link with the address: a host address needs no connected route."""
    return interface.network.num_addresses > 1


def await_ready(netlink: Netlink, *names: str) -> None:
    """Wait until the kernel has acted on the carrier of these links: until then they drop every packet.

    The carrier of a veth is there at once, and that of a bridge with its first port; but the queueing discipline, the
    bridge port's state and the operational state follow later, by a kernel worker (net/core/link_watch.c).
    """
    look_ups = [look_up_request(name) for name in names]
    _await(lambda: all(map(rt.is_operational, netlink.transact(look_ups))), names[0], "it does not come up")


def await_own(netlink: Netlink, index: int, address: Interface) -> None:
    """Wait until the host takes what is for a new IPv6 address of the link, and the link answers neighbours who ask for
    it; IPv4 does at once.

    A kernel worker joins the group in which neighbours ask, then makes the route for what comes (table local), some
    time after the address was added (net/ipv6/addrconf.c, addrconf_dad_work); what comes before is led where the rest
    of the network is, or is unreachable.  The route of the same address on another link does not count: it goes with
    that one.
    """
    if address.version == 4:
        return
    body = lookup_body(address.ip, index=index)
    asked = [Request("look up route", str(address.ip), rt.RTM_GETROUTE, 0, body, NO_WAY)]

    def taken() -> bool:
        return any(map(is_local_route, netlink.transact(asked)))

    _await(taken, str(address), "the host does not take it for its own")


def solicited_group(address: Interface) -> IPv6Address:
    """The group in which neighbours ask for an IPv6 address."""
    return IPv6Address(_SOLICITED_NODE + address.ip.packed[-3:])


def _await(ready: Callable[[], bool], name: str, complaint: str) -> None:
    deadline = time.monotonic() + _READY_TIMEOUT
    while not ready():
        if time.monotonic() > deadline:
            raise MechanismError("configure", name, errno.ETIMEDOUT, complaint)
        time.sleep(_READY_INTERVAL)


def _alternative_name(kind: int, index: int, name: str) -> Request:
    body = rt.link_body(nested(rt.IFLA_PROP_LIST, text(rt.IFLA_ALT_IFNAME, name)), index=index)
    flags = NLM_F_CREATE | NLM_F_EXCL if kind == rt.RTM_NEWLINKPROP else 0
    return Request("set alternative name", name, kind, flags, body)


def _connected_route_request(index: int, interface: Interface) -> Request:
    """Add the route that the kernel made of an address, and somebody may have deleted; before a foreign one to the same
    network, which stays.
    """
    body = connected_route_body(index, interface)
    return Request("add connected route", str(interface.network), rt.RTM_NEWROUTE, NLM_F_CREATE, body, (errno.EEXIST,))
