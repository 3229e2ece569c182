"""The network side of WireGuard devices: their marks, addresses, routes and aliases.

Owns: how the link of a device is configured.  Must not know: keys and peers, or who makes the device (`wireguard`).

Every function acts in the network namespace that the calling thread is in, can be repeated, and raises MechanismError
with what the kernel refused.
"""

import errno
import socket
from collections.abc import Collection, Iterable, Sequence
from ipaddress import ip_interface

from overlayd.linux import forwarding, sysctl
from overlayd.linux import route as routes
from overlayd.linux import rtnetlink as rt
from overlayd.linux.link import (
    addresses,
    await_own,
    change_addresses,
    find_link,
    ignore_routers,
    is_wide,
    link_index,
    read_link,
    rename,
    route_request,
)
from overlayd.linux.netlink import Netlink, Request
from overlayd.linux.route_messages import route_body
from overlayd.model.objects import GROUP_DEVICE, ROUTE_PROTOCOL, Alias, Device, Interface, Network, Route, device_alias
from overlayd.proto.netlink import NLM_F_CREATE, text, u32

_QUEUE = 500  # TUN_READQ_SIZE in drivers/net/tun.c, with which the kernel makes one


def configure(device: Device) -> None:
    """Mark an existing device as ours and give it its MTU and exactly its addresses, then set it up.

    Other addresses of the same families go, IPv6 link-local ones excepted.
    """
    with Netlink() as netlink:
        index = _mark(netlink, device)
        carried = addresses(netlink, index)
        versions = {address.version for address in device.addresses}
        foreign = {address for address in carried if address.version in versions and not address.is_link_local}
        _carry(netlink, index, device.addresses, foreign - device.addresses)


def change(have: Device, want: Device) -> None:
    """Change a device from `have` to `want`: name, MTU, a queue where it has none, and the addresses that differ.
    Addresses in neither (aliases) stay.
    """
    if have.name != want.name:
        rename(have.name, want.name)
    with Netlink() as netlink:
        index = _mark(netlink, want)
        if read_link(netlink, index).queue == 0:
            queue = rt.link_body(u32(rt.IFLA_TXQLEN, _QUEUE), index=index)
            netlink.transact([Request("configure device", want.name, rt.RTM_SETLINK, 0, queue)])
        outdated = have.addresses - want.addresses
        _keep_ways(netlink, index, outdated, want)
        # The kernel has an IPv6 address once, with one prefix: it goes before it comes with another.
        own = {address.ip for address in want.addresses if address.version == 6}
        change_addresses(netlink, index, (), [address for address in outdated if address.ip in own])
        _carry(netlink, index, want.addresses, outdated)
        # The kernel's own are back: what stood in for them goes, also where its step was not reached.
        widened = [each for each in want.addresses - have.addresses if ip_interface(each.ip) in have.addresses]
        netlink.transact([_delete_request(each.network) for each in widened if is_wide(each)])


def _carry(netlink: Netlink, index: int, add: Collection[Interface], remove: Collection[Interface]) -> None:
    """Change addresses, as `change_addresses`, and make the added ones the host's own."""
    change_addresses(netlink, index, add, remove)
    for each in add:
        await_own(netlink, index, each)


def _keep_ways(netlink: Netlink, index: int, outdated: Iterable[Interface], want: Device) -> None:
    """Where an address loses its prefix, a route of ours to that network comes before the kernel's goes."""
    flags = NLM_F_CREATE  # beside the kernel's, which neither EXCL nor REPLACE would leave
    narrowed = [each for each in outdated if is_wide(each) and ip_interface(each.ip) in want.addresses]
    requests = [route_request(index, each.network, source=each.ip, flags=flags) for each in narrowed]
    netlink.transact([request._replace(tolerated=(errno.EEXIST,)) for request in requests])


def create_routes(created: Sequence[Route]) -> None:
    """Add routes of one device, or replace ours to the same destinations; errno ENODEV when the device is missing,
    EEXIST when the host has a route there that is not ours: others may have been added then.
    """
    with Netlink() as netlink:
        ways = {route.destination: route.source for route in created}
        routes.add(netlink, link_index(created[0].device), ways)


def change_route(_have: Route, want: Route) -> None:
    """Lead the route through the device of `want`, without a moment in which there is none."""
    create_routes([want])


def delete_routes(deleted: Iterable[Route]) -> None:
    """Delete those of the routes that are there and ours."""
    with Netlink() as netlink:
        netlink.transact([_delete_request(route.destination) for route in deleted])


def _delete_request(destination: Network) -> Request:
    body = route_body(0, destination, ROUTE_PROTOCOL)
    if destination.version == 6:  # else the kernel would take the fence of that destination for it
        body += u32(rt.RTA_PRIORITY, rt.IP6_RT_PRIO_USER)
    return Request("delete route", str(destination), rt.RTM_DELROUTE, 0, body, (errno.ESRCH,))


def create_alias(alias: Alias) -> None:
    """Add the address to its device; errno ENODEV when the device is missing."""
    with Netlink() as netlink:
        _carry(netlink, link_index(alias.device), {ip_interface(alias.address)}, ())


def delete_alias(alias: Alias) -> None:
    """Remove the address from its device if both are there."""
    with Netlink() as netlink:
        link = find_link(netlink, alias.device)
        if link is not None:
            change_addresses(netlink, link.ifindex, (), {ip_interface(alias.address)})


def _mark(netlink: Netlink, device: Device) -> int:
    index = link_index(device.name)
    carried = socket.if_indextoname(index)
    ignore_routers(carried)
    body = rt.link_body(
        u32(rt.IFLA_GROUP, GROUP_DEVICE),
        text(rt.IFLA_IFALIAS, device_alias(device.scope, device.label)),
        u32(rt.IFLA_MTU, device.mtu),
        u32(rt.IFLA_MASTER, 0),
        forwarding.SETTINGS,
        index=index,
        up=True,
    )
    netlink.transact([Request("configure device", device.name, rt.RTM_SETLINK, 0, body)])
    if any(address.version == 6 for address in device.addresses):
        sysctl.write(f"ipv6/conf/{carried}/disable_ipv6", "0")
    return index
