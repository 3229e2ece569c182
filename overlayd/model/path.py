"""A packet's way from one end to another, hop by hop: which hops are right, and the first that is not.

Owns: the order of the hops, what containers and this host need, and the words and remedies.  Must not know: what a
tunnel needs (`tunnel_hops`), how anything was looked at (`inspect.way`), who is meant (`ends`), or who asks.

Another node tells what it does itself (`own_side`), if it was asked and answers; else what comes back from it tells:
who answers a ping that was sent from where.
"""

from collections.abc import Iterator
from ipaddress import ip_interface

from overlayd.model.ends import End, Hop, Known, Member, apart, missing
from overlayd.model.seen import Namespace, Seen, Way
from overlayd.model.tunnel_hops import AGAIN, beyond, device_link, filtered, tunnel


def explain(known: Known, source: End, target: End, seen: Seen, now: float) -> list[Hop]:
    """The hops from a source on this node to a target, up to the first broken one.  now: Unix seconds."""
    found = []
    for hop in _way(known, source, target, seen, now):
        found.append(hop)
        if hop.state == "broken":
            break
    return found


def _way(known: Known, source: End, target: End, seen: Seen, now: float) -> Iterator[Hop]:
    for end in (source, target):
        if end.name is not None:
            yield end.name
    if (hop := apart(known, source, target)) is not None:
        yield hop
    if source.member is not None:
        yield from _inside(known, source.member, seen.source, seen, sends=True)
        yield from _isolation(source.member, target)
    if target.kind == "nobody":
        yield missing(target)
    if target.peer is not None:
        yield from device_link(known, target.peer, seen)
    yield from _host(known, source, target, seen)
    if target.member is not None:
        yield from _inside(known, target.member, seen.target, seen, sends=False)
    elif target.peer is not None:
        yield from tunnel(known, target, target.peer, seen, now)
    elif target.kind == "outside":
        yield from _outside(seen)
    if seen.answers.get("target", 0.0) is None:
        yield from filtered(known)
    if seen.answers.get("target") is None and _forwarded(source, target):
        yield from _forwarding_doubts(known, seen)
    yield _arrival(known, source, target, seen)


def _forwarding_doubts(known: Known, seen: Seen) -> Iterator[Hop]:
    """What may have lost a packet that this host forwards, and nobody can judge: the likeliest, when all else is well
    and what this host itself sends arrives.
    """
    arrives = any(seen.answers.get(each) is not None for each in ("target from here", "other node from here"))
    for code, object, problem, remedy in known.doubts:
        if code in ("forward-blocked", "route-diverted"):
            yield Hop(object, problem, "broken" if arrives and "target" in seen.answers else "unknown", remedy)


def _inside(known: Known, member: Member, shown: Namespace | None, seen: Seen, *, sends: bool) -> Iterator[Hop]:
    """A container, from its own end of the veth to its bridge."""
    name = member.handle
    if not member.link:
        yield Hop(name, f"has {member.address}, and no link on this host that could be looked at", "unknown")
        return
    detach = "detach it and attach it again (overlayctl call detach_container, attach_container)"
    if shown is None or shown.problem:
        problem = shown.problem if shown is not None else "was not looked at"
        gone = "No such" in problem
        remedy = "its process has ended: detach it, and attach the next one" if gone else "run overlayctl as root"
        yield Hop(name, f"cannot be looked at: {problem}", "broken" if gone else "unknown", remedy)
        return
    interface = f"{member.interface} of {name}"
    eth0 = shown.links.get(member.interface)
    addresses = [ip_interface(each) for each in shown.addresses.get(member.interface, ())]
    if eth0 is None:
        others = ", ".join(each for each in shown.links if each != "lo") or "only lo"
        yield Hop(interface, f"is missing; there is {others}", "broken", detach)
    elif not eth0.up:
        yield Hop(interface, "is down", "broken", f"{member.enter} ip link set {member.interface} up")
    elif member.mac and eth0.mac != member.mac:
        problem = f"has the MAC {eth0.mac}, and its port of the bridge takes {member.mac} only"
        yield Hop(interface, problem, "broken", f"{member.enter} ip link set {member.interface} address {member.mac}")
    elif not any(each.ip == member.address for each in addresses):
        has = ", ".join(str(each) for each in addresses if not each.is_link_local) or "none"
        yield Hop(interface, f"lacks its address {member.address}; it has {has}", "broken", detach)
    elif known.mtu and eth0.mtu > known.mtu:
        problem = f"has an MTU of {eth0.mtu}, and tunnels carry {known.mtu}: large packets are lost"
        yield Hop(interface, problem, "broken", f"{member.enter} ip link set {member.interface} mtu {known.mtu}")
    else:
        yield Hop(interface, f"is up, with {member.address}, MTU {eth0.mtu}")
    yield _route_inside(known, member, shown.way, sends=sends)
    yield from _port(known, member, seen)


def _route_inside(known: Known, member: Member, way: Way, *, sends: bool) -> Hop:
    service = known.services.get(member.service)
    gateway = str(service.gateway) if service is not None else "its gateway"
    where, own = f"routes of {member.handle}", member.interface
    repair = f"{member.enter} ip route replace default via {gateway} dev {own}"
    aim = "to the other end" if sends else "back"
    if way.problem:
        return Hop(where, f"have no way {aim}: {way.problem}", "broken", repair)
    if way.link not in (own, "eth1", f"{own[:13]}-g", "lo"):
        return Hop(where, f"lead {way.link}, not through {own} {aim}", "broken", repair)
    if way.via and way.via != gateway and way.link == own:
        return Hop(where, f"lead {aim} via {way.via}, and the gateway is {gateway}", "broken", repair)
    return Hop(where, f"lead {aim} through {way.link}" + (f" via {way.via}" if way.via else ""))


def _port(known: Known, member: Member, seen: Seen) -> Iterator[Hop]:
    """The host end of its veth, and the bridge that this is a port of."""
    service = known.services.get(member.service)
    link = seen.host.links.get(member.link)
    repair = "restart overlayd, which puts it right; overlayctl doctor says why it did not"
    if link is None:
        yield Hop(member.link, "is missing on this host", "broken", repair)
    elif not link.up:
        yield Hop(member.link, "is down", "broken", repair)
    elif service is not None and link.master != service.bridge:
        on = f"is a port of {link.master}" if link.master else "is on no bridge"
        yield Hop(member.link, f"{on}, not of {service.bridge}", "broken", repair)
    else:
        yield Hop(member.link, f"is up, a port of {link.master or 'no bridge'}")
    if service is None:
        return
    bridge = seen.host.links.get(service.bridge)
    if bridge is None:
        yield Hop(f"bridge {service.bridge}", "is missing", "broken", repair)
    elif not bridge.up:
        yield Hop(f"bridge {service.bridge}", "is down", "broken", repair)
    elif not any(ip_interface(each).ip == service.gateway for each in seen.host.addresses.get(service.bridge, ())):
        yield Hop(f"bridge {service.bridge}", f"lacks the gateway's address {service.gateway}", "broken", repair)
    else:
        mac = seen.neighbours.get((service.bridge, str(member.address)), "")
        if mac and member.mac and mac != member.mac:
            problem = f"is answered for by {mac}, which is not {member.handle} ({member.mac}): another has taken it"
            remedy = "find who has it (bridge fdb show), and take it from there"
            yield Hop(f"address {member.address}", problem, "broken", remedy)
        else:
            yield Hop(f"bridge {service.bridge}", f"is up, with the gateway {service.gateway}")


def _isolation(source: Member, target: End) -> Iterator[Hop]:
    other = target.member
    mine, theirs = source.network, other.network if other is not None else ""
    if other is not None and mine != theirs:
        both = f"{source.handle} is in {_network(mine)}, {other.handle} in {_network(theirs)}"
        yield Hop("isolation", both, "broken", "attach both with the same isolation_network, or both without one")
    elif mine and target.kind in ("peer", "nobody"):
        problem = f"{source.handle} is in the isolation network {mine}, which ends at this node"
        yield Hop("isolation", problem, "broken", "attach it without an isolation_network to reach other nodes")
    elif mine:
        yield Hop("isolation", f"lets it pass: both are in {mine}" if other is not None else "lets it pass")


def _network(name: str) -> str:
    return f"the isolation network {name}" if name else "none"


def _forwarded(source: End, target: End) -> bool:
    """Whether this host forwards what goes from one end to the other."""
    if source.member is None or target.kind == "node":
        return False
    return target.member is None or source.member.service != target.member.service


def _host(known: Known, source: End, target: End, seen: Seen) -> Iterator[Hop]:
    """What this host does with packets that are not its own."""
    if _forwarded(source, target):
        if not seen.forwards:
            remedy = "find who switched it off (/etc/sysctl.d); restart overlayd, which switches it on"
            yield Hop("forwarding", "is off on this host", "broken", remedy)
        for code, object, problem, remedy in known.findings:
            if code in _OF_FORWARDING:
                yield Hop(object, problem, "broken", remedy)
        yield Hop("forwarding", "is on")
    if target.address is None or (source.kind == "node" and target.kind == "node"):
        return
    way = seen.host.way
    through = _expected(known, target)
    if way.problem:
        yield Hop("routes of this host", f"have no way to {target.address}: {way.problem}", "broken", AGAIN)
    elif through and way.link not in (through, "lo"):
        remedy = f"remove the route that leads to {way.link} (ip route get {target.address}), or announce another CIDR"
        yield Hop(
            "routes of this host", f"lead to {target.address} through {way.link}, not {through}", "broken", remedy
        )
    else:
        yield Hop("routes of this host", f"lead to {target.address} through {way.link or 'this host'}")


# Codes of the doctor: what keeps packets from being passed on, and what keeps tunnels from peers.
_OF_FORWARDING = (
    "forward-blocked",
    "forwarding-off",
    "uplink-not-forwarding",
    "route-diverted",
    "ipsec-diverted",
    "overlay-translated",
    "connections-untracked",
    "arp-blocked",
    "discovery-blocked",
    "link-closed",
)


def _expected(known: Known, target: End) -> str:
    """The link that should lead to a target, empty for any."""
    if target.member is not None and target.member.service in known.services and target.member.link:
        second = target.address == target.member.global_address
        return "" if second else known.services[target.member.service].bridge
    if target.peer is not None:
        return known.devices.get(target.peer.scope, ("", ""))[0]
    return ""


def _outside(seen: Seen) -> Iterator[Hop]:
    if seen.host.way.problem:
        remedy = "give this host a default route: containers leave by it"
        yield Hop("way out of this host", f"there is none: {seen.host.way.problem}", "broken", remedy)


NOT_TRIED = Hop("arrival", "was not tried: nobody is there to ping; name an address, for one", "unknown")


def _arrival(known: Known, source: End, target: End, seen: Seen) -> Hop:
    answers = seen.answers
    if "target" not in answers:
        return NOT_TRIED
    seconds = answers["target"]
    where = f"{target.address or f'router {seen.host.way.via}'}"
    if seconds is not None:
        return Hop(where, f"answers a ping in {seconds * 1000:.1f} ms")
    if target.kind == "outside":
        if answers.get("target from here") is not None:
            remedy = "overlayctl doctor: the masquerade, or the host's own firewall, is in the way"
            return Hop(where, "answers this host, but not the container", "broken", remedy)
        return Hop(where, "answers no ping, of this host neither: name an address that does", "unknown")
    if target.peer is not None:
        return beyond(known, source, target, target.peer, seen)
    if answers.get("target from here") is not None and source.member is not None:
        remedy = "overlayctl doctor; and see whether a program in the container filters"
        return Hop(where, "answers this node, but not that container", "broken", remedy)
    return Hop(where, "answers no ping; it may filter them", "unknown", "see whether a program in it filters pings")
