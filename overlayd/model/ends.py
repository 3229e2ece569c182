"""The ends of a way: what a node knows of who is where, and whom a person means.

Owns: containers, services, peers and names as a way needs them, and finding an end among them.  Must not know: what the
kernel shows, or the way between two ends (`path`).
"""

from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import Literal, NamedTuple

from overlayd.model.endpoints import nobodys
from overlayd.model.objects import Address, Network
from overlayd.model.subnets import node_in
from overlayd.spelling import perhaps_meant

State = Literal["ok", "broken", "unknown"]


class Hop(NamedTuple):
    """where: what is looked at.  what: how it is.  remedy: what to do, of a broken one."""

    where: str
    what: str
    state: State = "ok"
    remedy: str = ""


class Member(NamedTuple):
    """Who is attached: see `rows.Attachment`.  link: the host end of its veth, mac: of its interface, file: of the
    namespace in which that is; all empty of others than containers.
    """

    handle: str
    service: str
    address: Address
    global_address: Address | None
    network: str
    link: str
    mac: str
    interface: str = "eth0"
    file: str = ""

    @property
    def enter(self) -> str:
        """How a person runs a program in its namespace."""
        kind, _, pid = self.handle.partition(":")
        return f"nsenter -t {pid} -n" if kind == "pid" else f"nsenter --net={self.file}"


class Service(NamedTuple):
    """See `rows.Service`.  device: of a dedicated one, else empty."""

    name: str
    subnet: Network
    gateway: Address
    bridge: str
    device: str


class Peer(NamedTuple):
    """See `rows.Peer`.  scope: a service with a device of its own, empty for the global one.  key: in base64."""

    name: str
    key: str
    scope: str
    endpoint: str
    allowed_ips: tuple[Network, ...]

    @property
    def called(self) -> str:
        return self.name or f"{self.key[:8]}..."


class Known(NamedTuple):
    """What a node knows of itself.  public_key: in base64.  mtu: of its links, 0 when that is not known.  devices: the
    names and public keys of its devices by scope.  names: registered ones.  findings: the objects, problems and
    remedies of the doctor's errors, by code; none when no daemon was there to be asked.  doubts: likewise of what may
    lose packets, and cannot be judged.  name: of this node in its cluster on a store.
    """

    cluster: Network
    slice: Network | None
    node_address: Address
    mtu: int
    devices: Mapping[str, tuple[str, str]]
    services: Mapping[str, Service]
    members: tuple[Member, ...]
    peers: tuple[Peer, ...]
    names: Mapping[str, tuple[Address, ...]]
    findings: tuple[tuple[str, str, str, str], ...] = ()
    doubts: tuple[tuple[str, str, str, str], ...] = ()
    name: str = ""


class End(NamedTuple):
    """One end.  text: as it was asked for.  address: None for the outside as such.  member, peer: who it is, or is
    behind.  name: that it was asked for by, and what is wrong with that.
    """

    kind: Literal["member", "node", "peer", "outside", "nobody"]
    text: str
    address: Address | None = None
    member: Member | None = None
    peer: Peer | None = None
    name: Hop | None = None


def find(known: Known, text: str) -> End:
    """The end that a person calls so: an address, a handle or a pid, a registered name, a peer's name or the beginning
    of its key, `node` or `outside`.
    """
    if text == "outside":
        return End("outside", text)
    if text == "node":
        return End("node", text, known.node_address)
    try:
        return _at(known, ip_address(text), text)
    except ValueError:
        pass
    for member in known.members:
        if text in (member.handle, member.handle.partition(":")[2]):
            return End("member", text, member.address, member)
    lower = text.lower()  # as DNS has it
    for name in (lower, lower.partition(".")[0]):
        if name in known.names:
            return _named(known, name, text)
    for peer in known.peers:
        if text == peer.name != "" or (len(text) >= 4 and peer.key.startswith(text.removesuffix("..."))):
            return End("peer", text, node_of(peer), peer=peer)
    if text == known.name != "":  # as the other nodes call it
        return End("node", text, known.node_address)
    meant = perhaps_meant(text, filter(None, (known.name, *(peer.name for peer in known.peers), *known.names)))
    if text in known.services:
        one = next((each.handle for each in known.members if each.service == text), "")
        meant = "it is a service: name one of its containers" + (f", as {one};" if one else ";")
    remedy = f"{meant} see overlayctl containers, dns and peers".lstrip()
    what = "is no container, address, registered name or peer"
    return End("nobody", text, name=Hop(f"{text!r}", what, "broken", remedy))


def _at(known: Known, address: Address, text: str) -> End:
    for member in known.members:
        if address in (member.address, member.global_address):
            return End("member", text, address, member)
    if address == known.node_address or any(address == each.gateway for each in known.services.values()):
        return End("node", text, address)
    if address.is_loopback or address.is_link_local or nobodys(address):
        hop = Hop(text, "means another host at each place, or many", "broken", "name an address that is one host's")
        return End("nobody", text, name=hop)
    peer = owner(known.peers, address)
    if peer is not None:
        return End("peer", text, address, peer=peer)
    if address in known.cluster:
        return End("nobody", text, address)
    return End("outside", text, address)


def _named(known: Known, name: str, text: str) -> End:
    addresses = known.names[name]
    ends = [_at(known, each, text) for each in addresses]
    lost = [str(each) for each, end in zip(addresses, ends, strict=True) if end.kind == "nobody"]
    end = next((each for each in ends if each.kind != "nobody"), ends[0])
    what = f"stands for {', '.join(map(str, addresses))}"
    if lost:
        remedy = f"have the name stand for who has it: overlayctl call unregister_dns name={name} ip={lost[0]}"
        hop = Hop(
            f"name {name}", f"stands for {', '.join(lost)}, which nobody has here or behind a peer", "broken", remedy
        )
        return end._replace(name=hop)
    own = known.services.get(name)
    if own is not None and end.member is not None and end.member.service != name:
        what = f"stands for {end.address}, which is in service {end.member.service}"
        remedy = f"register it for a container of service {name}: overlayctl call register_dns name={name} ip=..."
        return end._replace(name=Hop(f"name {name}", what, "broken", remedy))
    return end._replace(name=Hop(f"name {name}", what))


def apart(known: Known, source: End, target: End) -> Hop | None:
    """Why there is no way between two ends that this node could look at: it has neither (the source is of this node if
    one of them is), or the overlay has no addresses of that kind.
    """
    if source.kind == "nobody":
        return missing(source)
    if source.kind not in ("member", "node"):
        peer = source.peer or target.peer
        remedy = (
            f"ask the node of an end: on {peer.called}, overlayctl why {source.text} {target.text}"
            if peer is not None
            else "name an end that is here: a container (overlayctl containers), or node"
        )
        return Hop("this node", "has neither of the two", "broken", remedy)
    address = target.address
    if source.kind == "member" and address is not None and address.version != known.cluster.version:
        what = f"is of IPv{address.version}, and the overlay has IPv{known.cluster.version} alone"
        return Hop(str(address), what, "broken", f"name an address of IPv{known.cluster.version}")
    return None


def missing(end: End) -> Hop:
    """That nobody has an address of the cluster."""
    remedy = (
        "tell this node which peer has it: overlayctl call add_allowed_ip pubkey=KEY cidr=CIDR (the subnet of the "
        "service there, or the slice of the node), or attach it here"
    )
    return Hop("allowed IPs", f"no container here and no peer has {end.address}", "broken", remedy)


def owner(peers: Iterable[Peer], address: Address) -> Peer | None:
    """The peer that has the narrowest allowed IP around an address."""
    best, length = None, -1
    for peer in peers:
        for network in peer.allowed_ips:
            if address in network and network.prefixlen > length:
                best, length = peer, network.prefixlen
    return best


def node_of(peer: Peer) -> Address | None:
    """The address of the node that a peer is: the first usable one of its first allowed IP, its slice."""
    return next(map(node_in, peer.allowed_ips), None)
