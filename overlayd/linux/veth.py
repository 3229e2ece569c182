"""Veth pairs: attach a container to its bridge (or straight to the host), and detach it.

Owns: the attach path, the most frequent thing that overlayd does, and the deletion of veths.  Must not know: who is
attached, why.

The peer is born inside the namespace under its final name, because moving a link between namespaces waits for an RCU
grace period; the rest is one message on the host and one batch inside.
"""

import errno
import os
import re
from collections.abc import Sequence
from ipaddress import ip_network

from overlayd import fault
from overlayd.errors import MechanismError
from overlayd.linux import netns, sysctl
from overlayd.linux import rtnetlink as rt
from overlayd.linux.link import (
    address_request,
    await_answering,
    await_ready,
    delete_request,
    find_link,
    link_index,
    route_request,
)
from overlayd.linux.netlink import Netlink, Request
from overlayd.model.objects import GROUP_DOOMED, GROUP_VETH, Address, Veth
from overlayd.proto.netlink import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, attribute, nested, text, u32

# Our own.  A name that only our host ends have (the naming rule of the overlay).
_OUR_NAME = re.compile(r"veth-\d+-[sg]")
# A container needs no parallel queues, and each costs time to make: without this the kernel makes one for every CPU.
_ONE_QUEUE = u32(rt.IFLA_NUM_TX_QUEUES, 1) + u32(rt.IFLA_NUM_RX_QUEUES, 1)


def create(veth: Veth) -> None:
    """Make the pair and configure both ends; when it returns the container can send.

    Raises MechanismError, having left no link behind, when the process is gone (errno ESRCH) or we may not enter its
    namespace (EACCES, EPERM), when the bridge is missing (ENODEV), when the namespace already has an interface of that
    name or the host has a foreign link of the host end's (EEXIST), or with what else the kernel refuses.  A leftover
    host end of ours is replaced.
    """
    descriptor = netns.open_namespace(veth.netns)
    try:
        with Netlink() as host:
            _create_pair(host, veth, descriptor)
            try:
                fault.point("veth:born")
                _configure_inner(veth, descriptor)
                _configure_outer(host, veth)
                fault.point("veth:configured")
                netns.ensure_running(veth.netns)
            except BaseException:
                host.transact([delete_request(veth.name)])
                raise
    finally:
        os.close(descriptor)


def change(have: Veth, want: Veth) -> None:
    """Make of `have` what is wanted, in place where the pair is still this container's: packets in flight, and what
    the container did to its end, survive.  Else the pair is made anew.

    Raises MechanismError as `create` does, or errno ENODEV when the pair is not there.
    """
    if (have.netns, have.interface, have.mac) != (want.netns, want.interface, want.mac):
        delete([have.name])
        create(want)
        return
    descriptor = netns.open_namespace(want.netns)
    try:
        with Netlink() as host:
            body = rt.link_body(text(rt.IFLA_IFNAME, want.name), *_outer_settings(want), up=True)
            if want.bridge is None:
                body += u32(rt.IFLA_MASTER, 0)
            host.transact([Request("configure veth", want.name, rt.RTM_SETLINK, 0, body)])
            _configure_inner(want, descriptor)
            _configure_outer(host, want)
    finally:
        os.close(descriptor)


def delete(names: Sequence[str]) -> None:
    """Delete the pairs whose host ends have these names; what is absent, or is not ours, is left alone.

    Several are deleted at once by their link group: the kernel then waits for one RCU grace period, not for one each.
    """
    with Netlink() as host:
        ours = [name for name in names if (link := find_link(host, name)) is not None and is_ours(link)]
        if len(ours) == 1:
            host.transact([delete_request(ours[0])])
        elif ours:
            doom = u32(rt.IFLA_GROUP, GROUP_DOOMED)
            host.transact(
                [
                    Request(
                        "doom", name, rt.RTM_SETLINK, 0, rt.link_body(text(rt.IFLA_IFNAME, name), doom), (errno.ENODEV,)
                    )
                    for name in ours
                ]
            )
            # ENODEV: another thread's message deleted ours together with its own.
            host.transact([Request("delete", "doomed veths", rt.RTM_DELLINK, 0, rt.link_body(doom), (errno.ENODEV,))])


def host_mac(mac: bytes) -> bytes:
    """MAC of the host end, from that of the inner end: unlike it, and above the bridge's own, which therefore never
    follows its ports.
    """
    return b"\xfe" + mac[1:]


def is_ours(link: rt.Link) -> bool:
    """Whether the link is the host end of a veth of ours, by its group or, had it lost that, by its name."""
    marked = link.group in (GROUP_VETH, GROUP_DOOMED) or _OUR_NAME.fullmatch(link.name) is not None
    return link.kind == "veth" and marked


def _create_pair(host: Netlink, veth: Veth, descriptor: int) -> None:
    mtu = u32(rt.IFLA_MTU, veth.mtu)
    peer = rt.link_body(
        text(rt.IFLA_IFNAME, veth.interface),
        u32(rt.IFLA_NET_NS_FD, descriptor),
        attribute(rt.IFLA_ADDRESS, veth.mac),
        mtu,
        _ONE_QUEUE,
    )
    kind = nested(
        rt.IFLA_LINKINFO, text(rt.IFLA_INFO_KIND, "veth"), nested(rt.IFLA_INFO_DATA, attribute(rt.VETH_INFO_PEER, peer))
    )
    body = rt.link_body(text(rt.IFLA_IFNAME, veth.name), *_outer_settings(veth), _ONE_QUEUE, kind, up=True)
    request = Request("create veth", veth.name, rt.RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)
    while True:
        try:
            host.transact([request])
        except MechanismError as error:
            if error.errno != errno.EEXIST:
                raise
            # The kernel does not say which of the two names is taken.
            leftover = find_link(host, veth.name)
            if leftover is not None and is_ours(leftover):
                host.transact([delete_request(veth.name)])
                continue
            taken = "the host has a foreign link of that name"
            if leftover is None:
                taken = f"the namespace of process {veth.netns.pid} already has an interface {veth.interface}"
            raise MechanismError("create veth", veth.name, errno.EEXIST, taken) from error
        return


def _outer_settings(veth: Veth) -> list[bytes]:
    settings = [
        u32(rt.IFLA_MTU, veth.mtu),
        u32(rt.IFLA_GROUP, GROUP_VETH),
        attribute(rt.IFLA_ADDRESS, host_mac(veth.mac)),
    ]
    if veth.bridge is not None:
        settings.append(u32(rt.IFLA_MASTER, link_index(veth.bridge)))
    return settings


def _configure_inner(veth: Veth, descriptor: int) -> None:
    with netns.entered(descriptor):
        index = link_index(veth.interface)
        if veth.address.version == 6:
            # Some container engines switch IPv6 off inside.
            sysctl.write(f"ipv6/conf/{veth.interface}/disable_ipv6", "0")
        elif veth.bridge is None:
            # What reaches the container through its other interface is answered through this one: strict filtering
            # (1) would drop it, and the loose kind (2) wins wherever both are set.
            sysctl.write("ipv4/conf/all/rp_filter", "2")
        inner = Netlink()
    with inner:
        requests = [
            _up(rt.LOOPBACK, "lo"),
            _up(index, veth.interface, u32(rt.IFLA_MTU, veth.mtu)),
            address_request(index, veth.address),
        ]
        if veth.bridge is None:
            requests.append(_neighbour(index, veth.gateway, host_mac(veth.mac)))
            requests.append(route_request(index, ip_network(veth.gateway)))
        requests += [route_request(index, route, veth.gateway) for route in veth.routes]
        inner.transact(requests)
        if veth.address.version == 6:
            await_ready(inner, veth.interface)
            await_answering(inner, index, veth.address)


def _configure_outer(host: Netlink, veth: Veth) -> None:
    if veth.bridge is not None:
        await_ready(host, veth.name, veth.bridge)
        return
    if veth.address.version == 6:
        sysctl.write(f"ipv6/conf/{veth.name}/disable_ipv6", "0")
    index = link_index(veth.name)
    address = veth.address.ip
    # The gateway is an address of another link of the host; IPv6 does not answer for such a one: each end is told the
    # other's MAC.
    host.transact([_neighbour(index, address, veth.mac), route_request(index, ip_network(address))])
    await_ready(host, veth.name)


def _up(index: int, name: str, *settings: bytes) -> Request:
    return Request("set up", name, rt.RTM_SETLINK, 0, rt.link_body(*settings, index=index, up=True))


def _neighbour(index: int, address: Address, mac: bytes) -> Request:
    body = rt.neighbour_body(index, address, mac)
    return Request("add neighbour", str(address), rt.RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body)
