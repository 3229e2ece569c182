"""What a way from one end to another looks like: namespaces, links, routes, the device, and who answers pings.

Owns: how each is looked at, in this process and without the daemon.  Must not know: what should be there
(`model.path`), or who asks.
"""

import os
import secrets
import socket
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from pyroute2.iproute.linux import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from overlayd import keys
from overlayd.errors import ProtocolError
from overlayd.inspect import inquiry, journal
from overlayd.inspect.namespaces import inside
from overlayd.inspect.ping import is_refused, ping
from overlayd.model import ends, rows
from overlayd.model.ends import End, Hop, Known, Member, Peer
from overlayd.model.health import FRESH
from overlayd.model.known import known as known_of
from overlayd.model.objects import GLOBAL, Address, Network
from overlayd.model.path import explain
from overlayd.model.seen import Device, DevicePeer, Link, Namespace, OtherSide, Seen, Way
from overlayd.proto import uapi
from overlayd.proto.inquiry import Question

_IFF_UP = 1  # linux/if.h
_ANSWER = 5.0  # seconds that wireguard-go has for its answer
_TRIES = 2  # of a ping through a tunnel: the first may go before the handshake
_MOST_OTHERS = 3  # our own: nodes that are asked to pass a question on
_UNREACHABLE = 7  # linux/rtnetlink.h, RTN_UNREACHABLE

# What stands for the outside as such when a route is asked for, and is never sent to: addresses for documentation (RFC
# 5737, RFC 3849), to which only a default route leads.
_SOMEWHERE: Mapping[int, Address] = {4: ip_address("198.51.100.1"), 6: ip_address("2001:db8::1")}

__all__ = ["Hop", "Known", "Member", "Peer", "explain_way", "known_of_journal"]


def explain_way(known: Known, source_text: str, target_text: str) -> tuple[list[Hop], bool]:
    """The hops of the way from one end to another, up to the first broken one; whether it is the way back, because the
    source is not on this node and the target is.
    """
    source, target = ends.find(known, source_text), ends.find(known, target_text)
    turned = source.kind in ("peer", "outside") and target.kind in ("member", "node")
    if turned:
        source, target = target, source
    with ThreadPoolExecutor(1) as thread:
        said = thread.submit(_other_side, known, source, target)
        seen = _look(known, source, target)
        return explain(known, source, target, seen._replace(other_side=said.result()), time.time()), turned


def known_of_journal(directory: Path) -> Known | None:
    """What the journal of a data directory knows; None without an overlay in it.  StateError: it cannot be read."""
    state = journal.read(directory)
    found = known_of(
        state,
        services=state.table(rows.Service).values(),
        attachments=state.table(rows.Attachment).values(),
        peers=state.table(rows.Peer).values(),
    )
    if found is None:
        return None
    return found._replace(names={each.name: each.addresses for each in state.table(rows.Record).values()})


def _look(known: Known, source: End, target: End) -> Seen:
    """Everything that the decision needs.  Pings come first: they wake a session that sleeps."""
    answers, refused = _pings(known, source, _pinged(known, target))
    address = (
        _SOMEWHERE[known.cluster.version] if (target.kind, target.address) == ("outside", None) else target.address
    )
    host = _namespace(None, address)
    scope = target.peer.scope if target.peer is not None else GLOBAL
    name = known.devices.get(scope, ("", ""))[0]
    device = _device(name) if target.peer is not None and name in host.links else None
    endpoint = _endpoint(device, target.peer)
    bridges = {each.bridge for each in known.services.values()}
    return Seen(
        host=host,
        source=_of_member(source, address),
        target=_of_member(target, source.address or known.node_address),
        device=device,
        forwards=_forwards(known.cluster.version),
        neighbours=_neighbours(bridges),
        answers=answers,
        underlay=_way(endpoint[0]) if endpoint is not None else None,
        refused=refused,
    )


def _pinged(known: Known, target: End) -> End:
    """The end that stands for it in pings: for the outside as such the router to there, if it has an address."""
    if target.kind != "outside" or target.address is not None:
        return target
    via = _way(_SOMEWHERE[known.cluster.version]).via
    router = ip_address(via) if via else None
    return target if router is None or router.is_link_local else target._replace(address=router)


def _other_side(known: Known, source: End, target: End) -> OtherSide | None:
    """What the node of the target says of its side; None when there is no node to ask, or nothing to ask it."""
    peer, own = target.peer, known.devices.get(target.peer.scope if target.peer is not None else GLOBAL)
    if peer is None or own is None or source.address is None or target.address is None:
        return None
    node = next((each for each in known.peers if each.scope == GLOBAL and _is_one_node(each, peer)), None)
    address = ends.node_of(node) if node is not None else None
    if node is None or address is None:
        return OtherSide(problem="its address in the global overlay is not known")
    question = Question(
        id=secrets.randbits(53),
        scope=peer.scope,
        asker=keys.parse(own[1]),
        asked=keys.parse(peer.key),
        near=source.address,
        network=_announced(known, source),
        far=target.address,
    )
    try:
        answer = inquiry.ask(known.node_address, question, address, _others(known, node))
    except PermissionError:
        return OtherSide(problem="only root may ask it")
    except OSError as error:
        return OtherSide(problem=f"it cannot be asked from {known.node_address}: {error.strerror or error}")
    if answer is None:
        return OtherSide(problem="it does not answer (no overlayd is there, an older one, or one that is not to tell)")
    return OtherSide(tuple(Hop(each.where, each.what, each.state, each.remedy) for each in answer.hops))


def _is_one_node(one: Peer, other: Peer) -> bool:
    """Whether two peers, one of them of a service's own device, are the same node."""
    if one.scope == other.scope:
        return one.key == other.key
    if one.name or other.name:
        return one.name == other.name
    host = one.endpoint.rpartition(":")[0]
    return bool(host) and host == other.endpoint.rpartition(":")[0]


def _announced(known: Known, source: End) -> Network:
    """The network around one of our addresses, as other nodes are told of it."""
    service = known.services.get(source.member.service) if source.member is not None else None
    if service is not None and source.address in service.subnet:
        return service.subnet
    return known.slice if known.slice is not None else ip_network(known.node_address)


def _others(known: Known, node: Peer) -> list[Address]:
    """The nodes that may pass a question on: who was heard of last."""
    own = known.devices.get(GLOBAL)
    shown = _device(own[0]).peers if own is not None else {}
    heard = {key: each.last_handshake for key, each in shown.items() if time.time() - each.last_handshake < FRESH}
    others = [each for each in known.peers if each.scope == GLOBAL and each.key in heard and each.key != node.key]
    others.sort(key=lambda each: -heard[each.key])
    return [address for each in others[:_MOST_OTHERS] if (address := ends.node_of(each)) is not None]


def _pings(known: Known, source: End, target: End) -> tuple[dict[str, float | None], bool]:
    """Who answers whom, all asked at once; and whether the endpoint's host refuses its port, if the node is silent."""
    own = _file(source)
    if source.member is not None and own is None:
        return {}, False  # of a guest we cannot send
    asked: dict[str, Future[float | None]] = {}
    other = ends.node_of(target.peer) if target.peer is not None else None
    service = known.services.get(source.member.service) if source.member is not None else None
    at = None
    if target.peer is not None and (name := known.devices.get(target.peer.scope, ("", ""))[0]):
        at = _endpoint(_device(name), target.peer)
    with ThreadPoolExecutor(8) as threads:

        def ask(name: str, address: Address | None, namespace: str | None) -> None:
            if address is not None:
                asked[name] = threads.submit(_quietly, address, namespace)

        ask("target", target.address, own)
        if own is not None:
            ask("gateway", service.gateway if service is not None else None, own)
            ask("other node", other, own)
            ask("target from here", target.address, None)
        ask("other node from here", other, None)
        ask("endpoint", at[0] if at is not None else None, None)
    answers = {name: each.result() for name, each in asked.items()}
    silent = answers.get("other node from here") is None
    return answers, at is not None and silent and is_refused(*at)


def _quietly(address: Address, namespace: str | None) -> float | None:
    try:
        return ping(address, namespace=namespace, tries=_TRIES)
    except OSError:  # what is wrong with the namespace is told by the look at it
        return None


def _file(end: End) -> str | None:
    """The file of the namespace that an end lives in; None for ours."""
    kind, _, pid = end.member.handle.partition(":") if end.member is not None else ("", "", "")
    if kind == "netns" and end.member is not None:
        return end.member.file or "(unknown)"
    return f"/proc/{pid}/ns/net" if kind == "pid" else None


def _of_member(end: End, other: Address | None) -> Namespace | None:
    file = _file(end)
    return _namespace(file, other) if file is not None else None


def _namespace(file: str | None, other: Address | None) -> Namespace:
    try:
        return inside(file, lambda: _shown(other))
    except NetlinkError as error:
        return Namespace({}, {}, Way(), os.strerror(error.code))
    except OSError as error:
        return Namespace({}, {}, Way(), error.strerror or str(error))


def _shown(other: Address | None) -> Namespace:
    with IPRoute() as route:
        messages = list(route.get_links())
        names = {each["index"]: each.get("ifname") for each in messages}
        links = {
            each.get("ifname"): Link(
                up=bool(each["flags"] & _IFF_UP),
                mtu=each.get("mtu"),
                mac=each.get("address") or "",
                master=names.get(each.get("master"), ""),
            )
            for each in messages
        }
        addresses: dict[str, tuple[str, ...]] = {}
        for each in route.get_addr():
            link, text = names.get(each["index"], ""), each.get("local") or each.get("address")
            addresses[link] = (*addresses.get(link, ()), f"{text}/{each['prefixlen']}")
        return Namespace(links, addresses, _asked(route, names, other) if other is not None else Way())


def _way(other: Address) -> Way:
    with IPRoute() as route:
        names = {each["index"]: each.get("ifname") for each in route.get_links()}
        return _asked(route, names, other)


def _asked(route: IPRoute, names: dict[int, Any], other: Address) -> Way:
    try:
        (answer,) = route.route("get", dst=str(other))
    except NetlinkError as error:
        return Way(problem=os.strerror(error.code))
    if answer["type"] == _UNREACHABLE:
        return Way(problem="an unreachable route")
    return Way(link=names.get(answer.get("oif"), ""), via=answer.get("gateway") or "")


def _neighbours(bridges: Iterable[str]) -> dict[tuple[str, str], str]:
    found = {}
    with IPRoute() as route:
        names = {each["index"]: each.get("ifname") for each in route.get_links()}
        for family in (socket.AF_INET, socket.AF_INET6):
            for each in route.get_neighbours(family=family):
                name = names.get(each["ifindex"], "")
                if name in bridges and each.get("lladdr"):
                    found[name, each.get("dst")] = each.get("lladdr")
    return found


def _forwards(version: int) -> bool:
    path = "ipv4/ip_forward" if version == 4 else "ipv6/conf/all/forwarding"
    try:
        return Path("/proc/sys/net", path).read_text().strip() != "0"
    except OSError:
        return True  # a kernel without IPv6 has no such packets either


def _endpoint(device: Device | None, peer: Peer | None) -> tuple[Address, int] | None:
    shown = device.peers.get(peer.key) if device is not None and peer is not None else None
    return shown.endpoint if shown is not None else None


def _device(name: str) -> Device:
    """A device by the socket of its wireguard-go, else by the kernel."""
    for directory in ("/run/wireguard", "/var/run/wireguard"):
        path = Path(directory, f"{name}.sock")
        if path.exists():
            return _of_userspace(str(path))
    return _of_kernel(name)


def _of_userspace(path: str) -> Device:
    try:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(_ANSWER)
            link.connect(path)
            link.sendall(b"get=1\n\n")
            response = uapi.Response()
            while not response.feed(data := link.recv(1 << 16)) and data:
                pass
            _, lines = response.result()
        state = uapi.parse_device(lines)
    except (OSError, ProtocolError) as error:
        return Device("", 0, {}, f"{path}: {error}")
    peers = {
        keys.text(key): DevicePeer(each.endpoint, each.last_handshake, tuple(each.allowed_ips))
        for key, each in state.peers.items()
    }
    own = keys.text(keys.public(state.private_key)) if any(state.private_key) else "none"
    return Device(own, state.listen_port, peers)


def _of_kernel(name: str) -> Device:
    from pyroute2.netlink.generic.wireguard import WireGuard  # noqa: PLC0415 - of a node whose kernel has it

    try:
        with WireGuard() as generic:
            messages = list(generic.info(name))
    except NetlinkError as error:
        return Device("", 0, {}, os.strerror(error.code))
    except OSError as error:
        return Device("", 0, {}, error.strerror or str(error))
    peers: dict[str, DevicePeer] = {}
    for message in messages:
        for each in message.get_attr("WGDEVICE_A_PEERS") or ():
            at = each.get_attr("WGPEER_A_ENDPOINT")
            ours = [ip_network(ip["addr"]) for ip in each.get_attr("WGPEER_A_ALLOWEDIPS") or ()]
            endpoint = (ip_address(at["addr"]), int(at["port"])) if at and at.get("port") else None
            shaken = each.get_attr("WGPEER_A_LAST_HANDSHAKE_TIME") or {}
            peers[_text(each.get_attr("WGPEER_A_PUBLIC_KEY"))] = DevicePeer(
                endpoint, int(shaken.get("tv_sec", 0)), tuple(ours)
            )
    first = messages[0]
    return Device(
        _text(first.get_attr("WGDEVICE_A_PUBLIC_KEY")), int(first.get_attr("WGDEVICE_A_LISTEN_PORT") or 0), peers
    )


def _text(key: object) -> str:
    """A key as text; pyroute2 has it in base64 already, as bytes."""
    return key.decode() if isinstance(key, bytes) else str(key or "")
