"""Links, addresses and routes on the host: bridges, the network side of devices, names, and forwarding.

Owns: how our long-lived links are configured and marked.  Must not know: veths (`veth`), WireGuard keys and peers, why
a link is wanted.

Every function acts in the network namespace that the calling thread is in, can be repeated, and raises MechanismError
with what the kernel refused.
"""

import errno
import hashlib
import socket
import time
from collections.abc import Callable, Iterable
from ipaddress import IPv6Address, IPv6Interface, ip_interface
from pathlib import Path

from overlayd.errors import MechanismError
from overlayd.linux import rtnetlink as rt
from overlayd.linux import sysctl
from overlayd.linux.netlink import Netlink, Request
from overlayd.model.objects import (
    ALIAS,
    GROUP_BRIDGE,
    GROUP_DEVICE,
    ROUTE_PROTOCOL,
    Address,
    Alias,
    Bridge,
    Device,
    Interface,
    Network,
    Proxy,
    Route,
)
from overlayd.proto.netlink import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, attribute, nested, text, u32

# Our own.  The link-local address of an IPv6 bridge; one on each link is enough, and a fixed one needs no duplicate
# address detection.
LINK_LOCAL = IPv6Interface("fe80::1/64")
# How long the kernel may take to let packets through a new link, and how often we look, in seconds.  Linux 6.8 and
# later handles a carrier when it is first asked; else a kernel worker does, normally within a millisecond.
_READY_TIMEOUT = 1.0
_READY_INTERVAL = 0.0002

_SOLICITED_NODE = bytes.fromhex("ff0200000000000000000001ff")  # RFC 4291 section 2.7.1


def create_bridge(bridge: Bridge) -> None:
    """Make the bridge of a service, or adopt a bridge of that name; it forwards as soon as it has a port.

    Spanning tree is off, the forward delay 0, multicast snooping off, and the MAC fixed.  Raises MechanismError, having
    left nothing new behind; errno EEXIST when the name belongs to a link that is no bridge.
    """
    kind = text(rt.IFLA_INFO_KIND, "bridge")
    body = rt.link_body(text(rt.IFLA_IFNAME, bridge.name), nested(rt.IFLA_LINKINFO, kind))
    request = Request("create bridge", bridge.name, rt.RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)
    with Netlink() as netlink:
        try:
            netlink.transact([request])
        except MechanismError as error:
            if error.errno != errno.EEXIST:
                raise
            found = find_link(netlink, bridge.name)
            if found is None or found.kind != "bridge":
                detail = "another link has that name"
                raise MechanismError("create bridge", bridge.name, errno.EEXIST, detail) from error
            _configure_bridge(netlink, bridge)
            return
        try:
            _configure_bridge(netlink, bridge)
        except BaseException:
            netlink.transact([delete_request(bridge.name)])
            raise


def change_bridge(have: Bridge, want: Bridge) -> None:
    """Give the bridge the name, address and MTU of `want`; its ports stay.

    Where the kernel cannot rename a running link the bridge keeps its name and `want.name` becomes an alternative one.
    """
    if have.name != want.name:
        rename(have.name, want.name)
    with Netlink() as netlink:
        _configure_bridge(netlink, want)


def delete_bridge(name: str) -> None:
    """Delete the bridge; ports that it still has are released."""
    delete_link(name)


def bridge_mac(gateway: Address) -> bytes:
    """The MAC of the bridge with this address: locally administered, and the same after every restart and on no other
    subnet.
    """
    return b"\x02" + hashlib.blake2b(gateway.packed, digest_size=5).digest()


def dress_device(device: Device) -> None:
    """Mark an existing device as ours and give it its MTU and exactly its addresses, then set it up.

    Other addresses of the same families go, IPv6 link-local ones excepted.
    """
    with Netlink() as netlink:
        index = _mark_device(netlink, device)
        carried = _addresses(netlink, index)
        versions = {address.version for address in device.addresses}
        foreign = {address for address in carried if address.version in versions and not address.is_link_local}
        _change_addresses(netlink, index, device.addresses, foreign - device.addresses)


def redress_device(have: Device, want: Device) -> None:
    """Change a device from `have` to `want`: name, MTU and the addresses that differ.  Addresses in neither (aliases)
    stay.
    """
    if have.name != want.name:
        rename(have.name, want.name)
    with Netlink() as netlink:
        index = _mark_device(netlink, want)
        _change_addresses(netlink, index, want.addresses, have.addresses - want.addresses)


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


def create_route(route: Route) -> None:
    """Add the route, or replace the one to the same destination; errno ENODEV when the device is missing."""
    with Netlink() as netlink:
        netlink.transact([route_request(link_index(route.device), route.destination)])


def change_route(_have: Route, want: Route) -> None:
    """Lead the route through the device of `want`, without a moment in which there is none."""
    create_route(want)


def delete_route(route: Route) -> None:
    """Delete the route if it is there and ours."""
    body = rt.route_body(0, route.destination, ROUTE_PROTOCOL)
    request = Request("delete route", str(route.destination), rt.RTM_DELROUTE, 0, body, (errno.ESRCH,))
    with Netlink() as netlink:
        netlink.transact([request])


def create_alias(alias: Alias) -> None:
    """Add the address to its device; errno ENODEV when the device is missing."""
    with Netlink() as netlink:
        _change_addresses(netlink, link_index(alias.device), {ip_interface(alias.address)}, ())


def delete_alias(alias: Alias) -> None:
    """Remove the address from its device if both are there."""
    with Netlink() as netlink:
        link = find_link(netlink, alias.device)
        if link is not None:
            _change_addresses(netlink, link.ifindex, (), {ip_interface(alias.address)})


def create_proxy(proxy: Proxy) -> None:
    """Let the bridge answer for the address, at once; errno ENODEV when the bridge is missing.

    The kernel answers only while a route leads to the address through another link.
    """
    index = link_index(proxy.bridge)
    carried = socket.if_indextoname(index)
    version = proxy.address.version
    sysctl.write(f"ipv{version}/neigh/{carried}/proxy_delay", "0")  # else a random time up to 0.8 s
    if version == 6:
        sysctl.write(f"ipv6/conf/{carried}/proxy_ndp", "1")
    body = rt.proxy_body(index, proxy.address, ROUTE_PROTOCOL)
    flags = NLM_F_CREATE | NLM_F_REPLACE
    with Netlink() as netlink:
        netlink.transact([Request("add neighbour proxy", str(proxy.address), rt.RTM_NEWNEIGH, flags, body)])


def delete_proxy(proxy: Proxy) -> None:
    """Let the bridge no longer answer for the address; fine when either is gone."""
    with Netlink() as netlink:
        link = find_link(netlink, proxy.bridge)
        if link is not None:
            body = rt.proxy_body(link.ifindex, proxy.address, ROUTE_PROTOCOL)
            tolerated = (errno.ENOENT, errno.ENODEV)
            netlink.transact(
                [Request("delete neighbour proxy", str(proxy.address), rt.RTM_DELNEIGH, 0, body, tolerated)]
            )


def delete_link(name: str) -> None:
    """Delete the link of that name or alternative name if there is one."""
    with Netlink() as netlink:
        netlink.transact([delete_request(name)])


def enable_forwarding(names: Iterable[str]) -> None:
    """Let this host forward IPv4 and IPv6, and accept on the links `names` what comes back by another way than it went.

    A router ignores router advertisements, so links that listened to them (accept_ra 1) are told to go on (2) before
    IPv6 forwarding is switched on.  Loose reverse path filtering (2) on our links overrides a strict host-wide setting.
    Links that are not there are passed over.  What already has its value is not written, so a read-only /proc/sys is no
    obstacle once it is prepared; else MechanismError names the parameter.
    """
    for parameter, value in _forwarding(names):
        if parameter == "ipv6/conf/all/forwarding" and sysctl.read(parameter) != value:
            _keep_listening()
        sysctl.write(parameter, value)


def forwarding_faults(names: Iterable[str]) -> list[str]:
    """What `enable_forwarding` would have to set, for a person; empty when all is as it should be."""
    found = ((parameter, sysctl.read(parameter), value) for parameter, value in _forwarding(names))
    return [f"net/{parameter} is {now}, it must be {value}" for parameter, now, value in found if now != value]


def _forwarding(names: Iterable[str]) -> list[tuple[str, str]]:
    wanted = [("ipv4/ip_forward", "1")]
    if Path("/proc/sys/net/ipv6").exists():
        wanted.append(("ipv6/conf/all/forwarding", "1"))
    for name in names:
        try:
            carried = socket.if_indextoname(link_index(name))  # /proc/sys does not know alternative names
        except (MechanismError, OSError):
            continue
        wanted += [(f"ipv4/conf/{carried}/forwarding", "1"), (f"ipv4/conf/{carried}/rp_filter", "2")]
    return wanted


def _keep_listening() -> None:
    for accept_ra in sorted(Path("/proc/sys/net/ipv6/conf").glob("*/accept_ra")):
        name = accept_ra.parent.name
        if name not in ("all", "default") and sysctl.read(f"ipv6/conf/{name}/accept_ra") == "1":
            sysctl.write(f"ipv6/conf/{name}/accept_ra", "2")


def forwards(name: str) -> bool:
    """Whether all that `enable_forwarding` wants of the link of this name is so."""
    wanted = [(f"ipv4/conf/{name}/forwarding", "1"), (f"ipv4/conf/{name}/rp_filter", "2")]
    if Path("/proc/sys/net/ipv6").exists():
        wanted.append(("ipv6/conf/all/forwarding", "1"))
    try:
        return all(sysctl.read(parameter) == value for parameter, value in wanted)
    except MechanismError:
        return False  # it has just gone


def look_up_request(name: str, *tolerated: int) -> Request:
    """Ask for one link by its name or alternative name.

    Since Linux 6.8 this also makes the kernel act at once on a carrier that it has noticed but not yet handled.
    """
    body = rt.link_body(text(rt.IFLA_IFNAME, name), u32(rt.IFLA_EXT_MASK, rt.RTEXT_FILTER_SKIP_STATS))
    return Request("look up", name, rt.RTM_GETLINK, 0, body, tolerated)


def delete_request(name: str) -> Request:
    """Delete one link by name if it is there."""
    return Request("delete link", name, rt.RTM_DELLINK, 0, rt.link_body(text(rt.IFLA_IFNAME, name)), (errno.ENODEV,))


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


def await_ready(netlink: Netlink, *names: str) -> None:
    """Wait until the kernel has acted on the carrier of these links: until then they drop every packet.

    The carrier of a veth is there at once, and that of a bridge with its first port; but the queueing discipline, the
    bridge port's state and the operational state follow later, by a kernel worker (net/core/link_watch.c).
    """
    look_ups = [look_up_request(name) for name in names]
    _await(lambda: all(map(rt.is_operational, netlink.transact(look_ups))), names[0], "it does not come up")


def await_answering(netlink: Netlink, index: int, address: Interface) -> None:
    """Wait until the link answers for a new IPv6 address; IPv4 does at once.

    A kernel worker joins the group in which neighbours ask for the address (its solicited-node group, RFC 4291 section
    2.7.1) some time after the address was added; whoever asks before asks again only after a second.
    """
    if address.version == 4:
        return
    group = IPv6Address(_SOLICITED_NODE + address.ip.packed[-3:])
    asked = rt.address_filter(index, socket.AF_INET6)

    def joined() -> bool:
        return group in map(rt.parse_group, netlink.dump("list groups", rt.RTM_GETMULTICAST, asked))

    _await(joined, str(address), "the link does not answer for it")


def _await(ready: Callable[[], bool], name: str, complaint: str) -> None:
    deadline = time.monotonic() + _READY_TIMEOUT
    while not ready():
        if time.monotonic() > deadline:
            raise MechanismError("configure", name, errno.ETIMEDOUT, complaint)
        time.sleep(_READY_INTERVAL)


def address_request(index: int, interface: Interface) -> Request:
    """Add one address to the link, unless it has it."""
    flags = NLM_F_CREATE | NLM_F_REPLACE
    return Request("add address", str(interface), rt.RTM_NEWADDR, flags, rt.address_body(index, interface))


def route_request(index: int, destination: Network, gateway: Address | None = None) -> Request:
    """Add one route of ours through the link, or replace the one to the same destination."""
    body = rt.route_body(index, destination, ROUTE_PROTOCOL, gateway)
    return Request("add route", str(destination), rt.RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body)


def _configure_bridge(netlink: Netlink, bridge: Bridge) -> None:
    index, address = link_index(bridge.name), bridge.address
    # In a message of its own and first: an adopted bridge refuses a forward delay of 0 while its spanning tree is on.
    no_spanning_tree = rt.link_body(_bridge_data(u32(rt.IFLA_BR_STP_STATE, 0)), index=index)
    body = rt.link_body(
        u32(rt.IFLA_GROUP, GROUP_BRIDGE),
        text(rt.IFLA_IFALIAS, f"{ALIAS} bridge {bridge.service}"),
        u32(rt.IFLA_MTU, bridge.mtu),
        attribute(rt.IFLA_ADDRESS, bridge_mac(address.ip)),
        _bridge_data(u32(rt.IFLA_BR_FORWARD_DELAY, 0), attribute(rt.IFLA_BR_MCAST_SNOOPING, b"\0")),
        index=index,
    )
    requests = [Request("configure bridge", bridge.name, rt.RTM_NEWLINK, 0, each) for each in (no_spanning_tree, body)]
    wanted = {address}
    if address.version == 6:
        # The kernel's own link-local address would be tentative for a second after the first port came up, and
        # forwarded packets need one to find their neighbour.
        sysctl.write(f"ipv6/conf/{socket.if_indextoname(index)}/disable_ipv6", "0")
        mode = attribute(rt.IFLA_INET6_ADDR_GEN_MODE, bytes([rt.IN6_ADDR_GEN_MODE_NONE]))
        no_link_local = nested(rt.IFLA_AF_SPEC, nested(socket.AF_INET6, mode))
        requests.append(
            Request("configure bridge", bridge.name, rt.RTM_SETLINK, 0, rt.link_body(no_link_local, index=index))
        )
        wanted.add(LINK_LOCAL)
    requests.append(Request("set up", bridge.name, rt.RTM_SETLINK, 0, rt.link_body(index=index, up=True)))
    netlink.transact(requests)
    foreign = {carried for carried in _addresses(netlink, index) if not carried.is_link_local} - wanted
    _change_addresses(netlink, index, wanted, foreign)
    enable_forwarding([bridge.name])
    await_answering(netlink, index, address)


def _bridge_data(*settings: bytes) -> bytes:
    return nested(rt.IFLA_LINKINFO, text(rt.IFLA_INFO_KIND, "bridge"), nested(rt.IFLA_INFO_DATA, *settings))


def _mark_device(netlink: Netlink, device: Device) -> int:
    index = link_index(device.name)
    body = rt.link_body(
        u32(rt.IFLA_GROUP, GROUP_DEVICE),
        text(rt.IFLA_IFALIAS, f"{ALIAS} device {device.scope}"),
        u32(rt.IFLA_MTU, device.mtu),
        index=index,
        up=True,
    )
    netlink.transact([Request("configure device", device.name, rt.RTM_SETLINK, 0, body)])
    if any(address.version == 4 for address in device.addresses):
        # Else a secondary address would go with the primary one that it replaces.
        sysctl.write(f"ipv4/conf/{socket.if_indextoname(index)}/promote_secondaries", "1")
    enable_forwarding([device.name])
    return index


def _addresses(netlink: Netlink, index: int) -> set[Interface]:
    found = (
        rt.parse_address(body) for body in netlink.dump("list addresses", rt.RTM_GETADDR, rt.address_filter(index))
    )
    return {address.interface for address in found if address is not None and address.ifindex == index}


def _alternative_name(kind: int, index: int, name: str) -> Request:
    body = rt.link_body(nested(rt.IFLA_PROP_LIST, text(rt.IFLA_ALT_IFNAME, name)), index=index)
    flags = NLM_F_CREATE | NLM_F_EXCL if kind == rt.RTM_NEWLINKPROP else 0
    return Request("set alternative name", name, kind, flags, body)


def _change_addresses(netlink: Netlink, index: int, add: Iterable[Interface], remove: Iterable[Interface]) -> None:
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


def _connected_route_request(index: int, interface: Interface) -> Request:
    """Add the route that the kernel made of an address, and somebody may have deleted; before a foreign one to the same
    network, which stays.
    """
    body = rt.connected_route_body(index, interface)
    return Request("add connected route", str(interface.network), rt.RTM_NEWROUTE, NLM_F_CREATE, body, (errno.EEXIST,))
