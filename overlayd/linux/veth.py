"""Veth pairs: attach a container to its bridge (or straight to the host), and change how it is attached.

Owns: the attach path, the most frequent thing that overlayd does.  Must not know: who is attached, why, or how a pair
is deleted (`veth_removal`).

The peer is made inside the namespace under its final name, because moving a link between namespaces waits for an RCU
grace period; the rest is one message on the host and one batch inside.
"""

import errno
import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import NamedTuple

from overlayd import fault
from overlayd.errors import MechanismError
from overlayd.linux import bridge_options, forwarding, netns, own_routes, route, sysctl, veth_removal
from overlayd.linux import rtnetlink as rt
from overlayd.linux.link import (
    UNWRITABLE,
    address_request,
    addresses,
    await_ready,
    change_addresses,
    delete_request,
    find_link,
    link_index,
    read_link,
    route_request,
)
from overlayd.linux.neighbours import forget_request
from overlayd.linux.netlink import Netlink, Request
from overlayd.linux.route_messages import moved_route_body, parse_route, route_filter
from overlayd.linux.script import Script, run
from overlayd.linux.syscalls import LATER
from overlayd.model.objects import (
    GROUP_VETH,
    ROUTE_PROTOCOL,
    Address,
    Netns,
    Network,
    Veth,
    veth_alias,
)
from overlayd.proto.netlink import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, attribute, nested, text, u32

_log = logging.getLogger(__name__)

# net/bridge/br_private.h, BR_MAX_PORTS: port numbers have ten bits, and 0 is none.
MOST_PORTS = 1023
# A container needs no parallel queues, and each costs time to make: without this the kernel makes one for every CPU.
_ONE_QUEUE = u32(rt.IFLA_NUM_TX_QUEUES, 1) + u32(rt.IFLA_NUM_RX_QUEUES, 1)

_PORT_SETTINGS = bridge_options.port_settings()
_LOOPBACK_UP = Request("set up", "lo", rt.RTM_SETLINK, 0, rt.link_body(index=rt.LOOPBACK, up=True))


def create(veth: Veth) -> None:
    """Make the pair and configure both ends; when it returns the container can send.

    Raises MechanismError, having left no link behind, when the process is gone (errno ESRCH) or we may not enter its
    namespace (EACCES, EPERM), when the bridge is missing (ENODEV), when the namespace already has an interface of that
    name or the host has a foreign link of the host end's (EEXIST), when the bridge is full (EXFULL), or with what else
    the kernel refuses.  A leftover host end with our mark is replaced.
    """
    (refusal,) = create_all([veth])
    if refusal is not None:
        raise refusal


def create_all(veths: Sequence[Veth]) -> list[Exception | None]:
    """As `create` of each, one after the other, but in one visit to the kernel.  Returns what each would raise."""
    outcomes: list[Exception | None] = []
    with ExitStack() as opened:
        creations = [_prepared(veth, opened) for veth in veths]
        host = opened.enter_context(Netlink())
        run(host, [creation.script for creation in creations if isinstance(creation, _Creation)])
        for creation in creations:
            try:
                if isinstance(creation, Exception):
                    raise creation
                _complete(host, creation)
                outcomes.append(None)
            except Exception as error:
                outcomes.append(error)
    return outcomes


class Taken(MechanismError):
    """The namespace has an interface of the wanted name already, which is not ours to replace."""


class _Creation(NamedTuple):
    """descriptor: of the container's namespace.  made, inside: the operations of the script before which there is no
    pair yet, and with which it looks whether the container's own routes are in the way.
    """

    veth: Veth
    descriptor: int
    script: Script
    made: int
    inside: int


def _prepared(veth: Veth, opened: ExitStack) -> _Creation | Exception:
    try:
        descriptor = netns.open_namespace(veth.netns)
        opened.callback(os.close, descriptor)
        script = Script()
        script.transact([_pair_request(veth, descriptor)])
        made = script.length
        script.point("veth:born")
        _secure(script, veth, *([text(rt.IFLA_IFALIAS, veth_alias(veth.label, aside=False))] if veth.label else []))
        script.enter(descriptor)
        script.find(veth.interface)
        inside = script.length
        script.require_no_routes(rt.RT_TABLE_MAIN)
        script.require_no_routes(own_routes.TABLE)
        _configure_inner(script, veth, veth.interface, NLM_F_CREATE | NLM_F_EXCL)
        script.leave()
        if veth.bridge is not None:
            script.await_ready(veth.name, veth.bridge)
        return _Creation(veth, descriptor, script, made, inside)
    except MechanismError as error:
        return error


def _complete(host: Netlink, creation: _Creation) -> None:
    """Do what a script leaves to be done, and raise what has kept the pair from being made, which is then undone."""
    veth, script = creation.veth, creation.script
    while script.stopped is not None and script.stopped < creation.made:
        try:
            script.finish()
        except MechanismError as error:
            _make_room(host, creation, error)
        script.go_on(0)
        run(host, [script])
    try:
        if not script.finish():
            with netns.socket_in(creation.descriptor) as inner:
                _clear_the_way(host, inner, veth)
            script.go_on(creation.inside + 2)  # behind the looks at both tables
            run(host, [script])
            script.finish()
        if veth.bridge is None:
            _configure_outer(host, veth)
        fault.point("veth:configured")
        netns.ensure_running(veth.netns)
    except BaseException:
        host.transact([delete_request(veth.name)])
        with netns.socket_in(creation.descriptor) as inner:
            own_routes.put_back(inner)
        raise


def change(have: Veth, want: Veth) -> None:
    """Make of `have` what is wanted, in place where the pair is still this container's: packets in flight, and what
    the container did to its end, survive.  Else the pair is made again.

    The container's end is configured only where `have` differs there, or where it has never been configured.  Raises
    MechanismError as `create` does, or errno ENODEV when the pair is not there.
    """
    if (have.namespace, have.mac) != (want.namespace, want.mac):
        veth_removal.delete([have.name], {have.name: have.netns})
        create(want)
        return
    with ExitStack() as opened:
        descriptor = _open_to_change(have, want, opened)
        with Netlink() as host:
            body = rt.link_body(text(rt.IFLA_IFNAME, want.name), *_outer_settings(want), up=True, ethernet=True)
            if want.bridge is None:
                body += u32(rt.IFLA_MASTER, 0)
            script = Script()
            script.transact([Request("configure veth", want.name, rt.RTM_SETLINK, 0, body)])
            _secure(script, want)
            run(host, [script])
            script.finish()
            link = find_link(host, want.name)
            if link is None:
                raise MechanismError("configure veth", want.name, errno.ENODEV)
            up = descriptor < 0 or _change_inner(host, have, want, descriptor, link.peer)
            if have.label != want.label:
                _mark(host, want, aside=descriptor < 0 or _has_routes_aside(want, descriptor))
            if want.bridge is not None:
                host.transact([_forward_request(want.name), forget_request(want.bridge, want.address.ip)])
            _configure_outer(host, want, ready=up)


def _open_to_change(have: Veth, want: Veth, opened: ExitStack) -> int:
    """A descriptor of the container's namespace; -1 when that is out of sight, and nothing is to be changed there."""
    try:
        descriptor = netns.open_namespace(want.netns)
    except MechanismError:
        inside = [(each.address, each.gateway, each.routes, each.mtu) for each in (have, want)]
        if isinstance(want.netns, Netns) or inside[0] != inside[1]:
            raise
        return -1
    opened.callback(os.close, descriptor)
    return descriptor


def host_mac(mac: bytes) -> bytes:
    """MAC of the host end: unlike the inner end's, and above the bridge's own, which so never follows its ports."""
    return b"\xfe" + mac[1:]


def is_blank(inner: rt.Link, carried: Sequence[object]) -> bool:
    """Whether a container's end has never been configured, neither by us nor by the container.  carried: its addresses,
    IPv6 link-local ones left out.
    """
    return not inner.flags & rt.IFF_UP and not carried


def _pair_request(veth: Veth, descriptor: int) -> Request:
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
    return Request("create veth", veth.name, rt.RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def _make_room(host: Netlink, creation: _Creation, error: MechanismError) -> None:
    """Remove a leftover of ours that keeps a pair from being made; raises what else does."""
    veth = creation.veth
    if error.errno == errno.EXFULL and veth.bridge is not None:
        full = f"the bridge has {MOST_PORTS} ports, the kernel's limit: attach to another service, or detach first"
        raise MechanismError("attach to bridge", veth.bridge, errno.EXFULL, full) from error
    if error.errno != errno.EEXIST:
        raise error
    # The kernel does not say which of the two names is taken.
    leftover = find_link(host, veth.name)
    if leftover is not None and veth_removal.is_marked(leftover):
        host.transact([delete_request(veth.name)])
        return
    taken = "the host has a link of that name without our mark: delete or rename it"
    if leftover is None:
        with netns.socket_in(creation.descriptor) as inner:
            if _is_stray(inner, veth):
                inner.transact([delete_request(veth.interface)])
                return
        where = f"the namespace of process {veth.netns.pid}" if isinstance(veth.netns, Netns) else veth.netns.path
        present = f"{where} already has an interface {veth.interface}"
        raise Taken("create veth", veth.name, errno.EEXIST, present) from error
    raise MechanismError("create veth", veth.name, errno.EEXIST, taken) from error


def _is_stray(inner: Netlink, veth: Veth) -> bool:
    """Whether the container's interface is the one that we made, and somebody moved its other end to another network
    namespace, which takes it down: it leads nowhere any more.  One that is up there is somebody's.
    """
    link = find_link(inner, veth.interface)
    if link is None or link.kind != "veth" or link.mac != veth.mac or link.flags & rt.IFF_LOWER_UP:
        return False
    with Path("/proc/thread-self/ns/net").open("rb") as here:
        body = rt.namespace_id_body(here.fileno())
        (reply,) = inner.transact([Request("look up", "network namespace", rt.RTM_GETNSID, 0, body)])
    return link.peer_namespace == rt.NO_NAMESPACE_ID or link.peer_namespace != rt.parse_namespace_id(reply)


def _outer_settings(veth: Veth) -> list[bytes]:
    settings = [
        u32(rt.IFLA_MTU, veth.mtu),
        u32(rt.IFLA_GROUP, GROUP_VETH),
        attribute(rt.IFLA_ADDRESS, host_mac(veth.mac)),
    ]
    if veth.bridge is not None:
        settings.append(u32(rt.IFLA_MASTER, link_index(veth.bridge)))
    return settings


def _secure(script: Script, veth: Veth, *more: bytes) -> None:
    """Hold the container to what it was given, before it can send.  more: settings of the host end.

    A locked port (Linux 5.18) takes frames from the one MAC that its bridge has been told of; so neither our rules nor
    what the bridge learns decide about it.  An end that routes no IPv6 has none: the kernel would give it addresses and
    routes that nobody uses, and look at those of all such ends whenever one of them changes (rt6_sync_down_dev()).
    """
    if veth.bridge is not None or veth.address.version == 4:
        script.set_parameter(f"ipv6/conf/{veth.name}/disable_ipv6", "1", UNWRITABLE)
    script.ignore_routers(veth.name)
    script.find(veth.name)
    settings = [forwarding.WARY, *more]
    requests = []
    if veth.bridge is not None:
        settings.append(_PORT_SETTINGS)
        body = rt.forwarding_body(LATER, veth.mac)
        flags = NLM_F_CREATE | NLM_F_REPLACE
        requests.append(Request("add forwarding entry", veth.name, rt.RTM_NEWNEIGH, flags, body))
    body = rt.link_body(*settings, index=LATER)
    # RTM_SETLINK would pass over the options of a port.
    script.transact([*requests, Request("secure veth", veth.name, rt.RTM_NEWLINK, 0, body)])


def _configure_inner(script: Script, veth: Veth, name: str, flags: int) -> None:
    """Configure the container's end, which was found, and has that name.  flags: NLM_F_* of new routes."""
    if veth.address.version == 6:
        # Some container engines switch IPv6 off inside.
        for each in ("lo", name):
            script.set_parameter(f"ipv6/conf/{each}/disable_ipv6", "0", unless_there=True)
    requests = [
        _LOOPBACK_UP,
        _up(LATER, name, u32(rt.IFLA_MTU, veth.mtu), forwarding.LOOSE),
        address_request(LATER, veth.address),
    ]
    if veth.bridge is None:
        requests.append(_neighbour(LATER, veth.gateway, host_mac(veth.mac)))
        requests.append(route_request(LATER, ip_network(veth.gateway), flags=flags))
    requests += [route_request(LATER, each, veth.gateway, flags=flags) for each in veth.routes]
    # The first one of several interfaces of a namespace has the default route.
    script.transact(requests, (errno.EEXIST,) if veth.label else ())
    if veth.address.version == 6:
        script.await_ready(name)
        script.await_answering(veth.address)


def _clear_the_way(host: Netlink, inner: Netlink, veth: Veth) -> None:
    """Set the container's own routes aside where ours would replace them.  The mark comes first: it tells who
    deletes the veth that there is something to give back; also of a veth that is made again.
    """
    destinations = _destinations(veth)
    found = own_routes.in_the_way(inner, destinations)
    if found or own_routes.are_aside(inner, destinations):
        _mark(host, veth, aside=True)
        fault.point("veth:marked")
        own_routes.set_aside(inner, found)


def _mark(host: Netlink, veth: Veth, *, aside: bool) -> None:
    alias = text(rt.IFLA_IFALIAS, veth_alias(veth.label, aside=aside))
    body = rt.link_body(text(rt.IFLA_IFNAME, veth.name), alias)
    host.transact([Request("mark veth", veth.name, rt.RTM_SETLINK, 0, body)])


def _has_routes_aside(veth: Veth, descriptor: int) -> bool:
    with netns.socket_in(descriptor) as inner:
        return own_routes.are_aside(inner, _destinations(veth))


def _destinations(veth: Veth) -> frozenset[Network]:
    """Where our routes inside lead."""
    return veth.routes if veth.bridge is not None else veth.routes | {ip_network(veth.gateway)}


def _change_inner(host: Netlink, have: Veth, want: Veth, descriptor: int, index: int) -> bool:
    """Returns whether the container's end is up."""
    with netns.socket_in(descriptor) as inner:
        end = read_link(inner, index)
        differs = (have.address, have.gateway, have.routes) != (want.address, want.gateway, want.routes)
        if not differs and not is_blank(end, [each for each in addresses(inner, index) if not each.is_link_local]):
            if end.mtu != want.mtu:
                mtu = rt.link_body(u32(rt.IFLA_MTU, want.mtu), index=index)
                inner.transact([Request("configure veth", end.name, rt.RTM_SETLINK, 0, mtu)])
            return bool(end.flags & rt.IFF_UP)
        _clear_the_way(host, inner, want)
        script = Script()
        script.enter(descriptor)
        script.find(end.name)
        _configure_inner(script, want, end.name, NLM_F_CREATE | NLM_F_REPLACE)
        run(host, [script])
        script.finish()
        if have.address != want.address and have.address.network.prefixlen:
            change_addresses(inner, index, (), [have.address])
        _delete_old_routes(inner, index, _destinations(want))
        own_routes.put_back(inner)
        return True


def _delete_old_routes(inner: Netlink, index: int, wanted: frozenset[Network]) -> None:
    """Delete routes of ours through the link that are not wanted any more: those of the cluster as it was."""
    bodies = inner.dump("list routes", rt.RTM_GETROUTE, route_filter(ROUTE_PROTOCOL))
    shown = [(each, body) for body in bodies if (each := parse_route(body)) is not None]
    old = [
        (each.destination, moved_route_body(body, each.table))
        for each, body in shown
        if any(hop == index for hop, _ in each.hops) and each.destination not in wanted
    ]
    old.sort(key=lambda route: route[0].prefixlen)  # the way to the gateway after those through it
    inner.transact([Request("delete route", str(to), rt.RTM_DELROUTE, 0, body, (errno.ESRCH,)) for to, body in old])


def _configure_outer(host: Netlink, veth: Veth, *, ready: bool = True) -> None:
    """ready: the other end is up, so that this one has a carrier to wait for."""
    if veth.bridge is not None:
        if ready:
            await_ready(host, veth.name, veth.bridge)
        return
    if veth.address.version == 6:
        sysctl.write(f"ipv6/conf/{veth.name}/disable_ipv6", "0")
    index = link_index(veth.name)
    address = veth.address.ip
    # The gateway is an address of another link of the host; IPv6 does not answer for such a one: each end is told the
    # other's MAC.
    requests = [_up(index, veth.name, forwarding.SETTINGS), _neighbour(index, address, veth.mac)]
    if veth.address.version == 4:
        # A link without an address of its own passes no reverse path filter, not even a loose one (net/ipv4/
        # fib_frontend.c, __fib_validate_source).  Of link scope it is one of the host's own, on one more link.
        requests.append(address_request(index, ip_interface(veth.gateway), rt.RT_SCOPE_LINK))
    host.transact(requests)
    route.add(host, index, {ip_network(address): None})
    if ready:
        await_ready(host, veth.name)


def _forward_request(name: str) -> Request:
    """Let a bridge's port forward again; a new one does.  Without a carrier it has no state to put back, and an older
    kernel takes it only by itself.
    """
    state = rt.link_body(text(rt.IFLA_IFNAME, name), bridge_options.port_state())
    return Request("configure port", name, rt.RTM_NEWLINK, 0, state, (errno.ENETDOWN, errno.EBUSY))


def _up(index: int, name: str, *settings: bytes) -> Request:
    return Request("set up", name, rt.RTM_SETLINK, 0, rt.link_body(*settings, index=index, up=True))


def _neighbour(index: int, address: Address, mac: bytes) -> Request:
    body = rt.neighbour_body(index, address, mac)
    return Request("add neighbour", str(address), rt.RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body)
