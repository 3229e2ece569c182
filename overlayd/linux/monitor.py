"""Hearing what changes in a network namespace: links, addresses, routes, parameters, the MACs that bridges and hosts
are told of, and the nftables ruleset.

Owns: the subscriptions, and turning notifications into events.  Must not know: what is ours, or what to do about it.

The kernel sends a notification for everybody's changes, ours too.  Sources: linux/rtnetlink.h, linux/netlink.h,
linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h.
"""

import ctypes
import errno
import os
import socket
import struct
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from overlayd.errors import MechanismError
from overlayd.linux import neighbours
from overlayd.linux import rtnetlink as rt
from overlayd.linux.netlink import NETLINK_NETFILTER, SOL_NETLINK, connected
from overlayd.linux.route_messages import KernelRoute, parse_route
from overlayd.linux.syscalls import drain
from overlayd.model.objects import NFT_TABLE, ROUTE_PROTOCOL, Interface
from overlayd.proto.netlink import Message, attributes, messages, string

# linux/netlink.h, asm-generic/socket.h, linux/filter.h
_NETLINK_ADD_MEMBERSHIP, _SO_RCVBUFFORCE, _SO_ATTACH_FILTER = 1, 33, 26
# BPF_LD | BPF_W | BPF_ABS, the same with BPF_H and BPF_B; BPF_JMP | BPF_JEQ | BPF_K; BPF_RET | BPF_K
_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE, _JUMP_EQUAL, _RETURN = 0x20, 0x28, 0x30, 0x15, 0x06
# linux/netfilter/nfnetlink.h: the subsystem is the high byte of a message's type
_NFNLGRP_NFTABLES, _NFTABLES = 7, 10
# linux/netfilter/nf_tables.h
_NEWGEN = _NFTABLES << 8 | 15
_TABLE_NAME = 1  # NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, NFTA_SET_TABLE, NFTA_SET_ELEM_LIST_TABLE
_GEN_PROC_PID, _GEN_PROC_NAME = 2, 3
_NFGENMSG = 4  # bytes: family, version, resource id
_OUR_FAMILIES = (1, 7)  # NFPROTO_INET, NFPROTO_BRIDGE

# Our own: room for a few thousand notifications, while something else keeps us busy.
_BUFFER = 16 << 20
_READS = 128  # datagrams taken at a time, in some 2 ms: a flood must not keep the caller from its other work

_GROUPS = (
    rt.RTNLGRP_LINK,
    rt.RTNLGRP_NEIGH,
    rt.RTNLGRP_IPV4_IFADDR,
    rt.RTNLGRP_IPV6_IFADDR,
    rt.RTNLGRP_IPV4_ROUTE,
    rt.RTNLGRP_IPV6_ROUTE,
    rt.RTNLGRP_IPV4_NETCONF,
    rt.RTNLGRP_IPV6_NETCONF,
)


class LinkChanged(NamedTuple):
    """A link was made, changed, or deleted (`gone`).  The kernel does not tell by whom."""

    link: rt.Link
    gone: bool


class PortChanged(NamedTuple):
    """The options of a bridge's port were set, or its state changed; of the link only what such a message shows."""

    link: rt.Link


class MacForgotten(NamedTuple):
    """A bridge forgot a MAC that it had been told, of the port with that index, or its own, by the index of the bridge:
    it was made to, the port leaves, or it has another MAC.
    """

    ifindex: int
    mac: bytes


class MacTold(NamedTuple):
    """Somebody told, for good, that a MAC is behind the link with that index: a bridge of a frame's way, or the host of
    a neighbour.  The kernel does not tell who.
    """

    ifindex: int
    mac: bytes


class AddressChanged(NamedTuple):
    """An address, IPv6 link-local ones excepted, was added to the link with that index, or removed from it.

    port: see `netlink.Message`; a program's first netlink socket has its pid for a port.  added: the address; None for
    one that was removed.
    """

    ifindex: int
    port: int
    added: Interface | None = None


class RouteChanged(NamedTuple):
    """A default route was added or removed; or one of our protocol, or to a link's network, IPv6 link-local ones
    excepted, which the kernel had made of an address, was removed.  port: as of an address.
    """

    route: KernelRoute
    gone: bool
    port: int


class ParameterChanged(NamedTuple):
    """Forwarding or reverse path filtering was set, for a link or for the host; not for a link that is being made."""

    netconf: rt.Netconf


class RulesetChanged(NamedTuple):
    """A transaction changed the nftables ruleset.  ours: one of our tables with it.  thread, program: who did it: the
    id of its thread in the initial pid namespace, and that thread's name.
    """

    ours: bool
    thread: int
    program: str


class Overrun(NamedTuple):
    """More happened than the socket holds: some was not heard of.  ruleset: of nftables, else of the rest."""

    ruleset: bool


Event = (
    LinkChanged
    | PortChanged
    | MacForgotten
    | MacTold
    | AddressChanged
    | RouteChanged
    | ParameterChanged
    | RulesetChanged
    | Overrun
)


class Monitor:
    """The subscriptions of the namespace that the calling thread is in; for one thread.

    sockets: those to wait on until readable; `read` takes what is there.  behind: the last read may have left some.
    Raises MechanismError when the kernel refuses a subscription.
    """

    def __init__(self) -> None:
        self.behind = False  # the last read has left something
        self._touched = False  # the transaction being read has touched a table of ours
        self.sockets: list[socket.socket] = []
        try:
            self.sockets.append(_subscribe(socket.NETLINK_ROUTE, _GROUPS))
            self.sockets.append(_subscribe(NETLINK_NETFILTER, (_NFNLGRP_NFTABLES,)))
        except OSError as error:
            self.close()
            raise MechanismError("subscribe to", "kernel notifications", error.errno or 0) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the sockets; idempotent."""
        for each in self.sockets:
            each.close()

    def read(self, source: socket.socket) -> list[Event]:
        """What one of the sockets has for us now, or a good part of it when there is much; never waits.

        Of several events about one link only the last is told: an attach alone sends half a dozen.  Links come first.
        """
        ruleset = source is not self.sockets[0]
        links: dict[int, Message] = {}  # by index
        ports: dict[int, Message] = {}
        events: list[Event] = []
        datagrams, number = drain(source.fileno(), _READS)
        self.behind = len(datagrams) == _READS
        if number == errno.ENOBUFS:
            self._touched = False
            events.append(Overrun(ruleset))
        elif number:
            raise MechanismError("read", "kernel notifications", number)
        for message in chain.from_iterable(map(messages, datagrams)):
            if not ruleset and message.type in (rt.RTM_NEWLINK, rt.RTM_DELLINK):
                # With family AF_BRIDGE it is about a port of a bridge, with AF_INET6 about IPv6 on the link.
                if message.body[0] == socket.AF_UNSPEC:
                    links[rt.link_index(message.body)] = message
                elif message.body[0] == socket.AF_BRIDGE and message.type == rt.RTM_NEWLINK:
                    ports[rt.link_index(message.body)] = message
            elif (event := self._ruleset_event(message) if ruleset else _event(message)) is not None:
                events.append(event)
        told = [LinkChanged(rt.parse_link(each.body), each.type == rt.RTM_DELLINK) for each in links.values()]
        return [*told, *(PortChanged(rt.parse_port(each.body)) for each in ports.values()), *events]

    def _ruleset_event(self, message: Message) -> Event | None:
        """A transaction's notifications come together; the new generation's number, with who made it, comes last."""
        if len(message.body) < _NFGENMSG or message.type >> 8 != _NFTABLES:
            return None
        found = attributes(message.body[_NFGENMSG:])
        if message.type != _NEWGEN:
            if not self._touched and message.body[0] in _OUR_FAMILIES:
                self._touched = any(kind == _TABLE_NAME and string(value) == NFT_TABLE for kind, value in found)
            return None
        about = dict(found)
        ours, self._touched = self._touched, False
        thread = int.from_bytes(about.get(_GEN_PROC_PID, b""), "big")
        return RulesetChanged(ours, thread, string(about[_GEN_PROC_NAME]) if _GEN_PROC_NAME in about else "")


def is_own_thread(thread: int) -> bool:
    """Whether a `RulesetChanged` is by a thread of this process, which changes members of sets itself, and rules by
    nft(8); never true in a pid namespace other than the initial one, where threads have other numbers.
    """
    return os.path.exists(f"/proc/self/task/{thread}")  # noqa: PTH110 - a fifth of the time of Path.exists


def process_name(port: int) -> str:
    """The program whose pid is `port`, if it still runs; empty when there is none."""
    try:
        return Path(f"/proc/{port}/comm").read_text(errors="backslashreplace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _event(message: Message) -> Event | None:
    kind, body, port = message.type, message.body, message.port
    if kind in (rt.RTM_NEWADDR, rt.RTM_DELADDR):
        address = rt.parse_address(body)
        if address is None or address.scope != rt.RT_SCOPE_UNIVERSE:
            return None
        return AddressChanged(address.ifindex, port, address.interface if kind == rt.RTM_NEWADDR else None)
    if kind in (rt.RTM_NEWROUTE, rt.RTM_DELROUTE):
        route = parse_route(body)
        if route is None or (route.protocol == rt.RTPROT_KERNEL and route.destination.is_link_local):
            return None
        return RouteChanged(route, kind == rt.RTM_DELROUTE, port)
    if kind == rt.RTM_DELNEIGH:
        told = rt.parse_forwarding(body)
        return MacForgotten(*told) if told is not None else None
    if kind == rt.RTM_NEWNEIGH:
        told = rt.parse_forwarding(body) if body[0] == socket.AF_BRIDGE else neighbours.parse_told(body)
        return MacTold(*told) if told is not None else None
    if kind == rt.RTM_NEWNETCONF:
        return ParameterChanged(rt.parse_netconf(body))
    return None


def _subscribe(protocol: int, groups: tuple[int, ...]) -> socket.socket:
    opened = connected(protocol)
    try:
        opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        if protocol == socket.NETLINK_ROUTE:
            _attach_filter(opened)
        for group in groups:
            opened.setsockopt(SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
    except BaseException:
        opened.close()
        raise
    return opened


def _attach_filter(opened: socket.socket) -> None:
    """Let through less: of routes the default ones, since a router's full table must not wake us, and the end of ours,
    of which a peer may have a thousand, and of those that the kernel makes of addresses; of parameters those that were
    set, not those that a new link starts with; of neighbours what a bridge forgets, and what is told for good.

    A classic BPF program (linux/filter.h); it reads numbers of more than a byte in network byte order.
    """
    new, old, netconf = map(socket.htons, (rt.RTM_NEWROUTE, rt.RTM_DELROUTE, rt.RTM_NEWNETCONF))
    known, forgotten = map(socket.htons, (rt.RTM_NEWNEIGH, rt.RTM_DELNEIGH))
    told, of_its_own = map(socket.htons, (rt.NUD_NOARP, rt.NUD_PERMANENT))
    length, kind = 0, 4  # offsets in nlmsghdr
    family, state = 16, 16 + 8  # in ndmsg behind it
    destination_length, table, protocol = 16 + 1, 16 + 4, 16 + 5  # and in rtmsg
    one_parameter = socket.htonl(16 + 4 + 8 + 8)  # nlmsghdr, netconfmsg, the link's index, one value
    program = (
        (_LOAD_HALF, 0, 0, kind),
        (_JUMP_EQUAL, 3, 0, known),
        (_JUMP_EQUAL, 0, 5, forgotten),
        (_LOAD_BYTE, 0, 0, family),
        (_JUMP_EQUAL, 16, 15, socket.AF_BRIDGE),
        (_LOAD_HALF, 0, 0, state),  # of a neighbour that is known
        (_JUMP_EQUAL, 14, 0, of_its_own),
        (_JUMP_EQUAL, 13, 12, told),
        (_JUMP_EQUAL, 4, 0, old),
        (_JUMP_EQUAL, 8, 0, new),
        (_JUMP_EQUAL, 0, 10, netconf),  # nor about a parameter: pass
        (_LOAD_WORD, 0, 0, length),
        (_JUMP_EQUAL, 8, 7, one_parameter),
        (_LOAD_BYTE, 0, 0, protocol),  # of a route that was removed
        (_JUMP_EQUAL, 0, 2, rt.RTPROT_KERNEL),
        (_LOAD_BYTE, 0, 0, table),
        (_JUMP_EQUAL, 4, 3, rt.RT_TABLE_MAIN),
        (_JUMP_EQUAL, 3, 0, ROUTE_PROTOCOL),
        (_LOAD_BYTE, 0, 0, destination_length),  # of any other one, and of one that was added
        (_JUMP_EQUAL, 1, 0, 0),
        (_RETURN, 0, 0, 0),
        (_RETURN, 0, 0, 0xFFFFFFFF),
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *instruction) for instruction in program))
    fprog = struct.pack("@HP", len(program), ctypes.addressof(code))
    opened.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)
