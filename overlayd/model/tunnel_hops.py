"""The hops of a packet's way from this node's device to another node.

Owns: what the device, the peer on it and the session need, and the words and remedies.  Must not know: the hops before
and behind (`path`), or how anything was looked at.
"""

from collections.abc import Iterator
from ipaddress import ip_network

from overlayd.model.ends import End, Hop, Known, Peer, State
from overlayd.model.health import FRESH
from overlayd.model.seen import Device, DevicePeer, Seen

AGAIN = "restart overlayd, which puts it right; overlayctl doctor says why it did not"
OF_TUNNELS = ("wireguard-blocked", "endpoint-unreachable", "endpoint-diverted", "ipsec-diverted")
_SET_UP = "overlayctl status says which; set it up, or install wireguard-go"
_NOBODY_THERE = "start overlayd there, which puts its device up, or give the peer the endpoint that it listens at"


def device_link(known: Known, peer: Peer, seen: Seen) -> Iterator[Hop]:
    """This node's device as a link, on which its routes hang."""
    name, _ = known.devices.get(peer.scope, ("", ""))
    where, link = f"device {name}", seen.host.links.get(name)
    if not name:
        yield Hop(
            "device", "there is none: the overlay is not set up, or this node has no WireGuard", "broken", _SET_UP
        )
    elif link is None:
        yield Hop(where, "is missing", "broken", AGAIN)
    elif not link.up:
        yield Hop(
            where, "is down", "broken", "restart overlayd, which puts it up; overlayctl doctor says why it did not"
        )
    elif known.mtu and link.mtu > known.mtu:
        remedy = f"ip link set {name} mtu {known.mtu}"
        yield Hop(where, f"has an MTU of {link.mtu}; the way out carries {known.mtu}", "broken", remedy)


def tunnel(known: Known, target: End, peer: Peer, seen: Seen, now: float) -> Iterator[Hop]:
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
    yield from other_side(peer, seen)


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
        if code in OF_TUNNELS:
            yield Hop(object, problem, "broken", remedy)
    since = f"for {int(age)} s" if shown.last_handshake else "ever"
    problem = f"no handshake with {endpoint} {since}"
    yield from filtered(known)
    there = [*other_side(peer, seen)]
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


def other_side(peer: Peer, seen: Seen) -> Iterator[Hop]:
    """What the node there says of its own side."""
    if seen.other_side is None:
        return
    if seen.other_side.problem:
        yield Hop(f"the side of node {peer.called}", f"is not known: {seen.other_side.problem}", "unknown")
    for hop in seen.other_side.hops:
        remedy = f"on node {peer.called}: {hop.remedy}" if hop.remedy else ""
        yield Hop(f"on node {peer.called}: {hop.where}", hop.what, hop.state, remedy)


def beyond(known: Known, source: End, target: End, peer: Peer, seen: Seen) -> Hop:
    """What is wrong beyond a session that lives, by who answers whom; a firewall may have closed it just now."""
    for code, object, problem, remedy in known.findings:
        if code in OF_TUNNELS:
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


def filtered(known: Known) -> Iterator[Hop]:
    """What may have lost a packet on a link, and nobody can judge: on one of ours it is the likeliest, when all else is
    well.
    """
    names = {name for name, _key in known.devices.values()} | {each.bridge for each in known.services.values()}
    for code, object, problem, remedy in known.doubts:
        if code == "link-filtered":
            link = object.removeprefix("link ")
            yield Hop(object, problem, "broken" if link in names or link.startswith("veth-") else "unknown", remedy)
