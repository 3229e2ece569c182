"""A packet's way from one end to another, hop by hop: which hops are right, and the first that is not.

Owns: the hops, what each needs, and the words and remedies.  Must not know: how anything was looked at
(`inspect.way`), who is meant (`ends`), or who asks.

What another node does is told by itself (`own_side`), if it was asked and answers; else by what comes back from it: by
who answers a ping that was sent from where.
"""

from collections.abc import Iterator, Mapping
from ipaddress import ip_interface, ip_network
from typing import NamedTuple

from overlayd.model.ends import End, Hop, Known, Member, Peer, State, apart, missing
from overlayd.model.objects import Address, Network

FRESH = 180  # seconds for which a session lives (the WireGuard paper, section 6.1)


class Link(NamedTuple):
    """mtu: bytes.  master: of which bridge it is a port, empty for none."""

    up: bool
    mtu: int
    mac: str
    master: str


class Way(NamedTuple):
    """The kernel's route to an address.  problem: why there is none, else empty.  via: empty on link."""

    link: str = ""
    via: str = ""
    problem: str = ""


class Namespace(NamedTuple):
    """What a network namespace shows.  problem: why it could not be looked at, else empty.  addresses: in CIDR
    notation, by link.  way: to the other end.
    """

    links: Mapping[str, Link]
    addresses: Mapping[str, tuple[str, ...]]
    way: Way
    problem: str = ""


class DevicePeer(NamedTuple):
    """endpoint: None when unknown.  last_handshake: Unix seconds, 0 = never."""

    endpoint: tuple[Address, int] | None
    last_handshake: int
    allowed_ips: tuple[Network, ...]


class Device(NamedTuple):
    """A WireGuard device.  problem: why it could not be read.  peers: by key in base64."""

    public_key: str
    port: int
    peers: Mapping[str, DevicePeer]
    problem: str = ""


class OtherSide(NamedTuple):
    """What another node says of its side.  problem: why that is not known, else empty."""

    hops: tuple[Hop, ...] = ()
    problem: str = ""


class Seen(NamedTuple):
    """host, source, target: the namespaces of this node and of both ends, None for ends without one here.  device: the
    one that leads to the target.  forwards: whether this host forwards packets of the overlay's IP version.
    neighbours: whose MAC an address has, as a bridge of ours has it.  answers: to pings from the source ("target",
    "gateway", "other node") and from this node ("target from here", "other node from here", "endpoint"), in seconds,
    None for no answer; those that were not sent are left out.  underlay: the way to the peer's endpoint.  refused:
    whether the endpoint's host says that nobody is at its port.  other_side: what the node there says of its own side,
    None when it was not asked.
    """

    host: Namespace
    source: Namespace | None = None
    target: Namespace | None = None
    device: Device | None = None
    forwards: bool = True
    neighbours: Mapping[tuple[str, str], str] = {}
    answers: Mapping[str, float | None] = {}
    underlay: Way | None = None
    refused: bool = False
    other_side: OtherSide | None = None


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
        yield from _device_link(known, target.peer, seen)
    yield from _host(known, source, target, seen)
    if target.member is not None:
        yield from _inside(known, target.member, seen.target, seen, sends=False)
    elif target.peer is not None:
        yield from _tunnel(known, target, target.peer, seen, now)
    elif target.kind == "outside":
        yield from _outside(seen)
    if seen.answers.get("target", 0.0) is None:
        yield from _filtered(known)
    if seen.answers.get("target") is None and _forwarded(source, target):
        yield from _forwarding_doubts(known, seen)
    yield _arrival(known, source, target, seen)


def _filtered(known: Known) -> Iterator[Hop]:
    """What may have lost a packet on a link, and nobody can judge: on one of ours it is the likeliest, when all else is
    well.
    """
    names = {name for name, _key in known.devices.values()} | {each.bridge for each in known.services.values()}
    for code, object, problem, remedy in known.doubts:
        if code == "link-filtered":
            link = object.removeprefix("link ")
            yield Hop(object, problem, "broken" if link in names or link.startswith("veth-") else "unknown", remedy)


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
        yield Hop("routes of this host", f"have no way to {target.address}: {way.problem}", "broken", _AGAIN)
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
    "link-closed",
)
_OF_TUNNELS = ("wireguard-blocked", "endpoint-unreachable", "endpoint-diverted", "ipsec-diverted")
_AGAIN = "restart overlayd, which puts it right; overlayctl doctor says why it did not"


def _expected(known: Known, target: End) -> str:
    """The link that should lead to a target, empty for any."""
    if target.member is not None and target.member.service in known.services and target.member.link:
        second = target.address == target.member.global_address
        return "" if second else known.services[target.member.service].bridge
    if target.peer is not None:
        return known.devices.get(target.peer.scope, ("", ""))[0]
    return ""


def _device_link(known: Known, peer: Peer, seen: Seen) -> Iterator[Hop]:
    """This node's device as a link, on which its routes hang."""
    name, _ = known.devices.get(peer.scope, ("", ""))
    where, link = f"device {name}", seen.host.links.get(name)
    if not name:
        yield Hop(
            "device", "there is none: the overlay is not set up, or this node has no WireGuard", "broken", _SET_UP
        )
    elif link is None:
        yield Hop(where, "is missing", "broken", _AGAIN)
    elif not link.up:
        yield Hop(
            where, "is down", "broken", "restart overlayd, which puts it up; overlayctl doctor says why it did not"
        )
    elif known.mtu and link.mtu > known.mtu:
        remedy = f"ip link set {name} mtu {known.mtu}"
        yield Hop(where, f"has an MTU of {link.mtu}; the way out carries {known.mtu}", "broken", remedy)


def _tunnel(known: Known, target: End, peer: Peer, seen: Seen, now: float) -> Iterator[Hop]:
    """From this node's device to the other node's."""
    name, own_key = known.devices.get(peer.scope, ("", ""))
    where, device = f"device {name}", seen.device
    if device is None or device.problem:
        problem = device.problem if device is not None else "was not looked at"
        state: State = "unknown" if "ermission" in problem else "broken"
        yield Hop(where, f"does not tell its peers: {problem}", state, "overlayd restarts what serves it; see its log")
        if state == "unknown":
            return
    elif own_key and device.public_key != own_key:
        problem = f"has the key of {device.public_key}, and this node's is {own_key}: others refuse it"
        yield Hop(where, problem, "broken", "restart overlayd, which sets its key again")
    else:
        yield Hop(where, f"is up, UDP port {device.port}")
    assert device is not None
    yield from _peer(known, target, peer, device)
    yield from _session(known, peer, device.peers[peer.key], seen, now)
    yield from _other_side(peer, seen)


_SET_UP = "overlayctl status says which; set it up, or install wireguard-go"


def _peer(known: Known, target: End, peer: Peer, device: Device) -> Iterator[Hop]:
    where = f"allowed IPs of {peer.called}"
    if peer.key not in device.peers:
        remedy = "somebody removed it with wg: overlayd adds it again within seconds, or at its next start"
        yield Hop(f"peer {peer.called}", "is not on the device", "broken", remedy)
    best, length = "", -1
    for key, each in device.peers.items():
        for network in each.allowed_ips:
            if target.address is not None and target.address in network and network.prefixlen > length:
                best, length = key, network.prefixlen
    if not best:
        remedy = "overlayctl doctor; within five minutes, or at a restart, overlayd gives it back to the device"
        yield Hop(where, f"do not have {target.address} on the device, though they should", "broken", remedy)
    elif best != peer.key:
        other = next((each.called for each in known.peers if each.key == best), best)
        remedy = "have one of the two announce it; overlayctl doctor tells of conflicts"
        yield Hop(where, f"lost {target.address} to {other} on the device", "broken", remedy)
    else:
        yield Hop(where, f"have {target.address}")


def _session(known: Known, peer: Peer, shown: DevicePeer, seen: Seen, now: float) -> Iterator[Hop]:
    where = f"session with {peer.called}"
    age = now - shown.last_handshake
    lives = bool(shown.last_handshake) and age < FRESH
    if shown.endpoint is None and not lives:
        remedy = "give it one (endpoint of add_peer), or wait until the peer calls"
        yield Hop(f"endpoint of {peer.called}", f"is not known ({peer.endpoint or 'none was given'})", "broken", remedy)
        return
    endpoint = f"{shown.endpoint[0]}, UDP port {shown.endpoint[1]}" if shown.endpoint is not None else "where it called"
    if shown.endpoint is not None and seen.underlay is not None and seen.underlay.problem:
        remedy = f"give this host a route to {shown.endpoint[0]}, or the peer another endpoint"
        yield Hop(f"endpoint {endpoint}", f"cannot be sent to: {seen.underlay.problem}", "broken", remedy)
    if lives:
        yield Hop(where, f"lives: last handshake {max(0, int(age))} s ago, at {endpoint}")
        return
    for code, object, problem, remedy in known.findings:
        if code in _OF_TUNNELS:
            yield Hop(object, problem, "broken", remedy)
    since = f"for {int(age)} s" if shown.last_handshake else "ever"
    problem = f"no handshake with {endpoint} {since}"
    yield from _filtered(known)
    there = [*_other_side(peer, seen)]
    if there and there[-1].state == "broken":
        yield Hop(where, problem, "unknown")
    yield from there
    if seen.refused:
        yield Hop(where, f"{problem}: that host says that nobody is at its port", "broken", _NOBODY_THERE)
    elif "endpoint" not in seen.answers:
        yield Hop(where, problem, "unknown")
    elif seen.answers["endpoint"] is None:
        remedy = "see whether that host runs and is reached (ping, traceroute), and whether this is its address still"
        yield Hop(where, f"{problem}, and that host does not answer a ping either", "broken", remedy)
    else:
        own = known.devices.get(peer.scope, ("", ""))[1]
        assert shown.endpoint is not None
        remedy = (
            f"there: let UDP port {shown.endpoint[1]} in (its input chain drops it), and see that peer {own} is there "
            f"(overlayctl peers) and that its own key is {peer.key} (overlayctl status); here: add_peer with what it is"
        )
        what = "its firewall drops the port, it removed this node's key from its peers, or its own key has changed"
        yield Hop(where, f"{problem}, though that host answers pings: {what}", "broken", remedy)


_NOBODY_THERE = "start overlayd there, which puts its device up, or give the peer the endpoint that it listens at"


def _other_side(peer: Peer, seen: Seen) -> Iterator[Hop]:
    """What the node there says of its own side."""
    if seen.other_side is None:
        return
    if seen.other_side.problem:
        yield Hop(f"the side of node {peer.called}", f"is not known: {seen.other_side.problem}", "unknown")
    for hop in seen.other_side.hops:
        remedy = f"on node {peer.called}: {hop.remedy}" if hop.remedy else ""
        yield Hop(f"on node {peer.called}: {hop.where}", hop.what, hop.state, remedy)


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
        return _there(known, source, target, target.peer, seen)
    if answers.get("target from here") is not None and source.member is not None:
        remedy = "overlayctl doctor; and see whether a program in the container filters"
        return Hop(where, "answers this node, but not that container", "broken", remedy)
    return Hop(where, "answers no ping; it may filter them", "unknown", "see whether a program in it filters pings")


def _there(known: Known, source: End, target: End, peer: Peer, seen: Seen) -> Hop:
    """What is wrong beyond a session that lives, by who answers whom; a firewall may have closed it just now."""
    for code, object, problem, remedy in known.findings:
        if code in _OF_TUNNELS:
            return Hop(object, problem, "broken", remedy)
    answers, own = seen.answers, known.devices.get(peer.scope, ("", ""))[1]
    at_home = answers.get("other node from here")
    if at_home is None and seen.refused:
        problem = "is lost, though its last handshake is young: that host says that nobody is at its port"
        return Hop(f"session with {peer.called}", problem, "broken", _NOBODY_THERE)
    if source.member is not None and at_home is not None and answers.get("other node", 0.0) is None:
        service = known.services.get(source.member.service)
        subnet = str(service.subnet) if service is not None else str(ip_network(source.member.address))
        remedy = f"on that node: overlayctl call add_allowed_ip pubkey={own} cidr={subnet}"
        problem = f"answers this node, but nobody of {subnet}: that node lacks it among the allowed IPs of this one"
        return Hop(f"node {peer.called}", problem, "broken", remedy)
    if at_home is None and "other node from here" in answers:
        slice = str(known.slice or known.node_address)
        remedy = f"on that node: overlayctl call add_allowed_ip pubkey={own} cidr={slice}"
        may = "it may lack that among this node's allowed IPs, or its device be down"
        problem = f"holds a session, and answers nothing of {slice}: {may}"
        return Hop(f"node {peer.called}", problem, "broken", remedy)
    remedy = f"on that node: overlayctl why {target.address} {source.address}"
    problem = (
        f"is not answered for, though node {peer.called} answers: nobody has it there, or it is kept from it there"
    )
    return Hop(str(target.address), problem, "broken", remedy)
