"""Which part of the node an event of the kernel makes suspect.

Owns: the judgement of one event, and the memory of which link is what to us.  Must not know: when a suspect is looked
at, or what is done about it.

An event proves nothing, for our own changes send events too.  Links that come and go with every attach are compared
with the event itself, so that our own work acquits itself; for the rest, looking is cheap enough.
"""

import os
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from overlayd.daemon.change.node import Node
from overlayd.daemon.change.resources import service_lock
from overlayd.linux import bridge as bridges
from overlayd.linux import bridge_options, egress, veth, veth_removal
from overlayd.linux import rtnetlink as rt
from overlayd.linux.monitor import (
    AddressChanged,
    Event,
    LinkChanged,
    MacForgotten,
    MacTold,
    Overrun,
    ParameterChanged,
    PortChanged,
    RouteChanged,
    RulesetChanged,
    is_own_thread,
    process_name,
)
from overlayd.linux.route_messages import KernelRoute
from overlayd.model.labels import container
from overlayd.model.layout import bridge, has_fence, has_way, mac, mac_of
from overlayd.model.names import is_host_end
from overlayd.model.objects import (
    ALIAS,
    GLOBAL,
    GROUP_BRIDGE,
    GROUP_VETH,
    Interface,
    label_of_veth,
    scope_of_alias,
)
from overlayd.model.rows import Service

# linux/threads.h, PID_MAX_LIMIT.  A program's first netlink socket has its pid for a port, the others have higher ones.
PID_MAX = 1 << 22


class Part(NamedTuple):
    """What is looked at together.  kind: "service": its bridge and veths; "device": that of a scope, its peers, routes
    and aliases; "peers": what that device itself shows of its peers; or one of those below.
    """

    kind: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".rstrip()


RULESET, FENCE, FORWARDING = Part("ruleset"), Part("fence"), Part("forwarding")
EGRESS, HOST, EVERYTHING = Part("egress"), Part("host"), Part("everything")
SURROUNDINGS = Part("surroundings")  # the networks that the host reaches without us


class Verdicts(Protocol):
    """Where judgements go.  cause: tells the causes of one suspicion apart; who: who did it, where that is known.
    changing: a request is about to change it: what comes of that may acquit it.  lost: the link of a container, by the
    handle of its attachment, which may have gone with its namespace.
    """

    def suspect(self, part: Part, cause: str, who: str = "", *, changing: bool = False) -> None: ...

    def acquit(self, part: Part, cause: str) -> None: ...

    def lost(self, handle: str) -> None: ...


class Judge:
    """Knows the links of the host; `judge` takes the events in their order."""

    def __init__(self, node: Node, verdicts: Verdicts) -> None:
        self._node = node
        self._verdicts = verdicts
        self._parts: dict[int, Part] = {}  # by link index: ours
        self._macs: dict[int, bytes] = {}  # and theirs
        self._ways_out: set[int] = set()  # indexes of links that may be the uplink

    def remember(self, links: Iterable[rt.Link]) -> None:
        """The links that are there before the first event."""
        for each in links:
            self._remember(each)

    def judge(self, event: Event) -> None:
        suspect = self._verdicts.suspect
        match event:
            case LinkChanged():
                self._judge_link(event.link, event.gone)
            case PortChanged(link=link):
                self._judge_port(link)
            case MacForgotten(ifindex=index, mac=mac):
                if (part := self._parts.get(index)) is not None:
                    if self._is_its_own(index, mac):
                        suspect(part, f"MAC at {index}", changing=True)  # nearly always the port leaves
                    else:  # the one that the kernel made a bridge of ours with
                        self._verdicts.acquit(part, _told(index, mac))
            case MacTold(ifindex=index, mac=mac):
                if (part := self._parts.get(index)) is not None and not self._is_its_own(index, mac):
                    suspect(part, _told(index, mac))
            case AddressChanged(ifindex=index, port=port, added=added):
                if (part := self._parts.get(index)) is not None:
                    if added is None or added != self._address_of(part):
                        suspect(part, f"address {index}", _asker(port))
                else:
                    suspect(SURROUNDINGS, "address")
                    if index in self._ways_out:
                        suspect(EGRESS, "address")
            case RouteChanged(route=route, gone=gone, port=port):
                if route.destination.prefixlen == 0:
                    suspect(EGRESS, "route")
                    suspect(SURROUNDINGS, "route")
                elif gone:
                    self._judge_lost_route(route, port)
            case ParameterChanged(netconf=netconf):
                ours = netconf.ifindex == rt.NETCONFA_IFINDEX_ALL or netconf.ifindex in self._parts
                if ours and (netconf.forwarding == 0 or netconf.rp_filter == 1):
                    suspect(FORWARDING, "parameter")
                elif netconf.ifindex in self._ways_out:
                    suspect(HOST, "parameter")
            case RulesetChanged(ours=True, thread=thread, program=program):
                if not is_own_thread(thread):
                    suspect(RULESET, str(thread), f"{program} (process {thread})")
            case Overrun(ruleset=ruleset):
                suspect(RULESET if ruleset else EVERYTHING, "overrun")

    def _judge_link(self, found: rt.Link, gone: bool) -> None:
        part = self._remember(found)
        renamed = found.ifindex in self._parts and veth_removal.is_marked(found) and not is_host_end(found.name)
        if renamed and not gone:
            # A detach would not find it by its name, and leave the container an address that is free.
            self._verdicts.suspect(EVERYTHING, f"name of {found.ifindex}")
        if gone:
            self._parts.pop(found.ifindex, None)
            self._macs.pop(found.ifindex, None)
            self._ways_out.discard(found.ifindex)
            attachment = self._node.state.of_link(found.name)
            if attachment is not None and attachment.file is not None:
                self._verdicts.lost(attachment.handle)
        if part is None:
            if egress.can_be_uplink(found):
                self._verdicts.suspect(EGRESS, "link")
        elif not gone and part.kind == "service" and self._is_as_wanted(found, part.name):
            self._verdicts.acquit(part, found.name)
        else:
            self._verdicts.suspect(part, found.name, changing=self._is_changing(part, found))

    def _address_of(self, part: Part) -> Interface | None:
        """The address that the bridge of a service should have; None of any other part."""
        service = self._node.state.get(Service, part.name) if part.kind == "service" else None
        return bridge(service, self._node.facts).address if service is not None else None

    def _is_changing(self, part: Part, found: rt.Link) -> bool:
        """Whether a request that makes or changes a link of a service is under way."""
        attachment = self._node.state.of_link(found.name)
        return not self._node.is_settled(attachment.handle if attachment is not None else service_lock(part.name))

    def _judge_port(self, found: rt.Link) -> None:
        part = self._parts.get(found.ifindex)
        if part is None:
            return
        cause = f"port {found.name}"
        if bridge_options.port_faults(found):
            self._verdicts.suspect(part, cause, changing=self._is_changing(part, found))
        else:
            self._verdicts.acquit(part, cause)

    def _is_its_own(self, index: int, mac: bytes) -> bool:
        """Whether a MAC is that of the link, or of the container at a host end: what we tell ourselves."""
        return self._macs.get(index) in (mac, veth.host_mac(mac))

    def _judge_lost_route(self, route: KernelRoute, port: int) -> None:
        """A route of ours, or a connected one, is gone; suspicious unless the peer behind it was removed."""
        destination = route.destination
        if route.type == rt.RTN_UNREACHABLE:
            if has_fence(self._node.state, destination):
                self._verdicts.suspect(FENCE, str(destination), _asker(port))
            return
        for index, _ in route.hops:
            part = self._parts.get(index)
            if part is None:
                continue
            owners = self._node.state.allowed_ips(part.name)
            removed = owners.exact(destination.network_address.packed, destination.prefixlen) is None
            removed = removed and not (part.name == GLOBAL and has_way(self._node.state, destination))
            if part.kind != "device" or not removed or route.protocol == rt.RTPROT_KERNEL:
                self._verdicts.suspect(part, str(destination), _asker(port))

    def _remember(self, found: rt.Link) -> Part | None:
        """What a link is to us: a part of the node, which is returned, or perhaps the way out."""
        part = self._part_of(found)
        if part is not None:
            self._parts[found.ifindex], self._macs[found.ifindex] = part, found.mac
        elif egress.can_be_uplink(found):
            self._ways_out.add(found.ifindex)
        return part

    def _part_of(self, found: rt.Link) -> Part | None:
        """The part of the node that a link, by its name or its mark, belongs to; None when nothing wants it."""
        state = self._node.state
        if is_host_end(found.name):
            attachment = state.of_link(found.name)
            return Part("service", attachment.service) if attachment is not None else None
        # Nearly always the mark tells.
        service = state.get(Service, scope_of_alias(found.alias, "bridge") or "")
        if service is not None:
            return Part("service", service.name)
        scope = scope_of_alias(found.alias, "device")
        service = state.get(Service, scope or "")
        if service is not None and service.dedicated:
            return Part("device", service.name)
        overlay = state.overlay
        names = {found.name, *found.alternative_names}
        if overlay is not None and (scope == GLOBAL or overlay.interface in names):
            return Part("device", GLOBAL)
        for each in state.table(Service).values():
            if each.bridge in names:
                return Part("service", each.name)
            if each.dedicated and each.device in names:
                return Part("device", each.name)
        return None

    def _is_as_wanted(self, found: rt.Link, service: str) -> bool:
        """Whether a bridge's or veth's own words show that it is what the state wants."""
        state, facts = self._node.state, self._node.facts
        row, attachment = state.get(Service, service), state.of_link(found.name)
        if row is None or not found.flags & rt.IFF_UP:
            return False
        if attachment is not None:
            # As `layout.veths` has it, which takes five times as long, for every attach.
            if found.name == attachment.host_end():
                master, inner = Part("service", attachment.service), mac_of(attachment)
            elif attachment.global_address is not None:
                master, inner = None, mac(attachment.global_address)
            else:
                return False
            wanted = (master, facts.mtu, GROUP_VETH, veth.host_mac(inner), container(attachment))
            shown = (self._parts.get(found.master), found.mtu, found.group, found.mac, label_of_veth(found.alias))
            return shown == wanted
        if found.master or bridge_options.bridge_faults(found):
            return False
        want = bridge(row, facts)
        return want.name in (found.name, *found.alternative_names) and (
            (found.kind, found.mtu, found.group, found.mac, found.alias)
            == ("bridge", want.mtu, GROUP_BRIDGE, bridges.mac(want.address.ip), f"{ALIAS} bridge {service}")
        )


def _told(index: int, mac: bytes) -> str:
    """The cause of a suspicion: a bridge was told a MAC that is not its own, or its port's."""
    return f"MAC {mac.hex(':')} at {index}"


def _asker(port: int) -> str:
    """Who asked for a change of an address or a route; empty when the kernel does not tell, and for ourselves."""
    if not 0 < port <= PID_MAX or port == os.getpid():
        return ""
    name = process_name(port)
    return f"{name} (process {port})" if name else f"process {port}"
