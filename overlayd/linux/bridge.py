"""The bridges of services, and the addresses that a bridge answers for.

Owns: how a bridge is made, marked and configured.  Must not know: veths (`veth`), which become its ports, or why a
bridge is wanted.

Every function acts in the network namespace that the calling thread is in, can be repeated, and raises MechanismError
with what the kernel refused.
"""

import errno
import hashlib
import socket
from ipaddress import IPv6Interface

from overlayd.errors import MechanismError
from overlayd.linux import bridge_options, forwarding, link, sysctl
from overlayd.linux import rtnetlink as rt
from overlayd.linux.link import (
    address_request,
    addresses,
    await_own,
    change_addresses,
    delete_request,
    find_link,
    link_index,
    rename,
)
from overlayd.linux.neighbours import no_proxy_delay_body
from overlayd.linux.netlink import Netlink, Request
from overlayd.linux.script import Script, run
from overlayd.linux.syscalls import LATER
from overlayd.linux.view import read_forwarding
from overlayd.model.objects import (
    ALIAS,
    GROUP_BRIDGE,
    LINK_LOCAL_GATEWAY,
    ROUTE_PROTOCOL,
    Address,
    Bridge,
    Interface,
    Proxy,
)
from overlayd.proto.netlink import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, attribute, nested, text, u32

LINK_LOCAL = IPv6Interface((LINK_LOCAL_GATEWAY, 64))


def create(bridge: Bridge) -> None:
    """Make the bridge of a service, or adopt a bridge of that name; it forwards as soon as it has a port.

    Spanning tree is off, the forward delay 0, multicast snooping off, and the MAC fixed.  Raises MechanismError, having
    left nothing new behind; errno EEXIST when the name belongs to a link that is no bridge.
    """
    kind = text(rt.IFLA_INFO_KIND, "bridge")
    body = rt.link_body(text(rt.IFLA_IFNAME, bridge.name), nested(rt.IFLA_LINKINFO, kind))
    script = Script()
    script.transact([Request("create bridge", bridge.name, rt.RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)])
    made = script.length
    _configure(script, bridge, bridge.name)
    script.transact([address_request(LATER, each) for each in _addresses(bridge)])
    with Netlink() as netlink:
        run(netlink, [script])
        try:
            script.finish()
            _await_own(netlink, bridge)
        except BaseException as error:
            if script.stopped is None or script.stopped >= made:
                netlink.transact([delete_request(bridge.name)])
                raise
            if not isinstance(error, MechanismError) or error.errno != errno.EEXIST:
                raise
            found = find_link(netlink, bridge.name)
            if found is None or found.kind != "bridge":
                detail = "another link has that name"
                raise MechanismError("create bridge", bridge.name, errno.EEXIST, detail) from error
            _reconfigure(netlink, bridge)


def change(have: Bridge, want: Bridge) -> None:
    """Give the bridge the name, address and MTU of `want`; its ports stay.

    Where the kernel cannot rename a running link the bridge keeps its name and `want.name` becomes an alternative one.
    """
    if have.name != want.name:
        rename(have.name, want.name)
    with Netlink() as netlink:
        _reconfigure(netlink, want)


def delete(name: str) -> None:
    """Delete the bridge; ports that it still has are released."""
    link.delete(name)


def mac(gateway: Address) -> bytes:
    """The MAC of the bridge with this address: locally administered, and the same after every restart and on no other
    subnet.
    """
    return b"\x02" + hashlib.blake2b(gateway.packed, digest_size=5).digest()


def create_proxy(proxy: Proxy) -> None:
    """Let the bridge answer for the address, at once; errno ENODEV when the bridge is missing.

    The kernel answers only while a route leads to the address through another link.
    """
    index = link_index(proxy.bridge)
    if proxy.address.version == 6:
        sysctl.write(f"ipv6/conf/{socket.if_indextoname(index)}/proxy_ndp", "1")
    body = rt.proxy_body(index, proxy.address, ROUTE_PROTOCOL)
    flags = NLM_F_CREATE | NLM_F_REPLACE
    at_once = no_proxy_delay_body(index, rt.family(proxy.address))  # else after a random time up to 0.8 s
    with Netlink() as netlink:
        netlink.transact(
            [
                Request("configure bridge", proxy.bridge, rt.RTM_SETNEIGHTBL, 0, at_once),
                Request("add neighbour proxy", str(proxy.address), rt.RTM_NEWNEIGH, flags, body),
            ]
        )


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


def _reconfigure(netlink: Netlink, bridge: Bridge) -> None:
    """Make of a bridge that is there what is wanted, with no other addresses."""
    index, wanted = link_index(bridge.name), _addresses(bridge)
    if (index, mac(bridge.address.ip)) not in read_forwarding(netlink, index):
        # The kernel enters a bridge's MAC when it changes: so it has another one for a moment.
        other = rt.link_body(attribute(rt.IFLA_ADDRESS, mac(bridge.address.ip + 1)), index=index)
        netlink.transact([Request("configure bridge", bridge.name, rt.RTM_SETLINK, 0, other)])
    script = Script()
    _configure(script, bridge, socket.if_indextoname(index))
    run(netlink, [script])
    script.finish()
    foreign = {carried for carried in addresses(netlink, index) if not carried.is_link_local} - wanted
    change_addresses(netlink, index, wanted, foreign)
    _await_own(netlink, bridge)


def _configure(script: Script, bridge: Bridge, name: str) -> None:
    """All but its addresses.  name: that it carries."""
    script.ignore_routers(name)
    if bridge.address.version == 6:
        script.set_parameter(f"ipv6/conf/{name}/disable_ipv6", "0", unless_there=True)
    script.find(name)
    no_vlans = rt.link_body(bridge_options.settings(bridge_options.VLANS), index=LATER)
    script.transact([Request("configure bridge", bridge.name, rt.RTM_NEWLINK, 0, no_vlans)], (errno.EOPNOTSUPP,))
    # In a message of its own and first: an adopted bridge refuses a forward delay of 0 while its spanning tree is on.
    no_spanning_tree = rt.link_body(bridge_options.settings(bridge_options.SPANNING_TREE), index=LATER)
    body = rt.link_body(
        u32(rt.IFLA_GROUP, GROUP_BRIDGE),
        text(rt.IFLA_IFALIAS, f"{ALIAS} bridge {bridge.service}"),
        u32(rt.IFLA_MTU, bridge.mtu),
        u32(rt.IFLA_MASTER, 0),
        attribute(rt.IFLA_ADDRESS, mac(bridge.address.ip)),
        bridge_options.settings(bridge_options.OF_BRIDGE),
        forwarding.SETTINGS,
        index=LATER,
    )
    requests = [Request("configure bridge", bridge.name, rt.RTM_NEWLINK, 0, each) for each in (no_spanning_tree, body)]
    if bridge.address.version == 6:
        # The kernel's own link-local address would be tentative for a second after the first port came up, and
        # forwarded packets need one to find their neighbour.
        mode = attribute(rt.IFLA_INET6_ADDR_GEN_MODE, bytes([rt.IN6_ADDR_GEN_MODE_NONE]))
        no_link_local = nested(rt.IFLA_AF_SPEC, nested(socket.AF_INET6, mode))
        requests.append(
            Request("configure bridge", bridge.name, rt.RTM_SETLINK, 0, rt.link_body(no_link_local, index=LATER))
        )
    up = rt.link_body(index=LATER, up=True, ethernet=True)
    script.transact([*requests, Request("set up", bridge.name, rt.RTM_SETLINK, 0, up)])


def _addresses(bridge: Bridge) -> set[Interface]:
    """Those of its subnet's version: of IPv6 a link-local one as well."""
    return {bridge.address} if bridge.address.version == 4 else {bridge.address, LINK_LOCAL}


def _await_own(netlink: Netlink, bridge: Bridge) -> None:
    index = link_index(bridge.name)
    for each in _addresses(bridge):
        await_own(netlink, index, each)
