"""Who reaches whom: real packets between real namespaces, as one table.

One node with two bridges, a device that leads to the rest of the overlay (a veth in the device's link group), and an
outside.  Everybody listens everywhere, everybody tries everybody, all at once, over TCP and UDP, IPv4 and IPv6.
"""

import contextlib
import selectors
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from lab.patience import LIMIT
from throwaway import Namespace

from overlayd.linux.nft import Nft
from overlayd.model import set_members
from overlayd.model.objects import GROUP_BRIDGE, GROUP_DEVICE, GROUP_VETH, Element, Step

# Rows start a connection, columns answer it: "+" passes, "-" does not, "." is not tried.
#   a1 a2 a3 ax  network A: two on bridge web, one on bridge db, one on a veth without a bridge
#   b1 b2        network B: on web, on db
#   p1 p2 p3     containers without a network: on web, on db, on web
#   re si        behind the device: a remote overlay address, an address outside of the cluster CIDR
#   e1 e2        edge peers behind the device: e1 may reach p1, bridge web's gateway, b1 and ou; e2 nothing
#   gw gd no     the node: gateway of web, gateway of db, node address
#   hp ha        host_shared containers, addresses on the device: without a network, in network A
#   ou oc        the outside: an address outside of the cluster CIDR, and one inside that strayed there
#   ph           the node's physical address
TABLE = """
       a1 a2 a3 ax b1 b2 p1 p2 p3 re si gw gd no hp ha ou oc ph
    a1  .  +  +  +  -  -  -  -  -  -  -  +  +  +  -  +  +  -  +
    a2  +  .  +  +  -  -  -  -  -  -  -  +  +  +  -  +  +  -  +
    a3  +  +  .  +  -  -  -  -  -  -  -  +  +  +  -  +  +  -  +
    ax  +  +  +  .  -  -  -  -  -  -  -  +  +  +  -  +  +  -  +
    b1  -  -  -  -  .  +  -  -  -  -  -  +  +  +  -  -  +  -  +
    b2  -  -  -  -  +  .  -  -  -  -  -  +  +  +  -  -  +  -  +
    p1  -  -  -  -  -  -  .  +  +  +  +  +  +  +  +  -  +  -  +
    p2  -  -  -  -  -  -  +  .  +  +  +  +  +  +  +  -  +  -  +
    re  -  -  -  -  -  -  +  +  +  .  .  +  +  +  +  -  +  -  +
    e1  -  -  -  -  -  -  +  -  -  .  .  +  -  -  -  -  +  -  -
    e2  -  -  -  -  -  -  -  -  -  .  .  -  -  -  -  -  -  -  -
    no  +  +  +  +  +  +  +  +  +  +  +  +  +  +  +  +  +  +  +
    hp  +  +  +  +  +  +  +  +  +  +  +  +  +  +  +  +  +  +  +
    ou  -  -  -  -  -  -  +  +  +  +  .  +  +  +  +  -  .  .  +
"""

HOSTS = """
    a1=10.200.1.2  a2=10.200.1.3  b1=10.200.1.4  p1=10.200.1.5  p3=10.200.1.6  gw=10.200.1.1
    a3=10.200.2.2  b2=10.200.2.3  p2=10.200.2.4  gd=10.200.2.1
    no=10.200.0.1  ax=10.200.0.9  hp=10.200.0.20  ha=10.200.0.21
    re=10.200.77.7  e1=10.200.99.1  e2=10.200.99.2
    ph=192.0.2.1  ou=192.0.2.2  oc=10.200.50.5  si=192.0.3.5
"""
V4 = dict(entry.split("=") for entry in HOSTS.split())
V6 = {
    name: str(ip_address(text.replace("10.200.", "fd00:200::").replace("192.0.", "2001:db8::").replace(".", ":")))
    for name, text in V4.items()
}
ADDRESSES = {4: V4, 6: V6}
BRIDGES = {"web": ("a1", "a2", "b1", "p1", "p3"), "db": ("a3", "b2", "p2")}
NETWORK = {"a1": 6, "a2": 6, "a3": 6, "ax": 6, "ha": 6, "b1": 0x1_0000, "b2": 0x1_0000}
AT_NODE = ("gw", "gd", "no", "hp", "ha", "ph")
AT_REMOTE = ("re", "si", "e1", "e2")
NODE_MAC, REMOTE_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
IP_FREEBIND, IPV6_FREEBIND = 15, 78  # linux/in.h, linux/in6.h
PORT = 7


def expected() -> dict[tuple[str, str], bool]:
    head, *rows = (line.split() for line in TABLE.strip().splitlines())
    return {(row[0], to): mark == "+" for row in rows for to, mark in zip(head, row[1:], strict=True) if mark != "."}


def mac(name: str) -> bytes:
    return b"\2\0\0\0\1" + bytes([list(V4).index(name)])


def members() -> list[Element]:
    elements = []
    for version, cidr, outside in ((4, "10.200.0.0/16", "192.0.2.2/31"), (6, "fd00:200::/64", "2001:db8::2:2/127")):
        address = {name: ip_address(text) for name, text in ADDRESSES[version].items()}
        elements += set_members.cluster(ip_network(cidr))
        for name in ("no", "gw", "gd"):
            elements += set_members.node(address[name])
        for name, number in NETWORK.items():
            bridged = name not in ("ax", "ha")
            elements += set_members.member(address[name], number, f"v{name}" if bridged else None)
        for names in BRIDGES.values():
            for name in names:
                elements += set_members.port(f"v{name}", mac(name), [address[name]])
        elements += set_members.leg("vax", [address["ax"]])
        granted = [ip_network(address[name]) for name in ("p1", "gw", "b1")]
        elements += set_members.edge(address["e1"], [*granted, ip_network(outside)])
        elements += set_members.edge(address["e2"], [])
    return list(dict.fromkeys(elements))


@dataclass
class Topology:
    node: Namespace
    spaces: dict[str, Namespace] = field(default_factory=dict)  # by the names of the table
    listeners: list[socket.socket] = field(default_factory=list)


def build(topology: Topology, stack: contextlib.ExitStack) -> None:
    """Wire the node as overlayd would: only the link groups, addresses and routes matter."""
    node = topology.node
    node.sysctl("ipv4/ip_forward=1", "ipv6/conf/all/forwarding=1")
    topology.spaces |= dict.fromkeys(AT_NODE, node)

    def namespace(*names: str) -> Namespace:
        space = stack.enter_context(Namespace())
        space.sysctl("ipv6/conf/default/accept_dad=0")
        topology.spaces |= dict.fromkeys(names, space)
        return space

    def connect(space: Namespace, host: str, inner: str, options: str) -> None:
        node.ip(f"link add {host} {options} type veth peer name {inner} netns {space.name}", f"link set {host} up")
        space.ip(f"link set {inner} up")

    remote, outside = namespace(*AT_REMOTE), namespace("ou", "oc")
    connect(remote, "wg", "wg", f"address {NODE_MAC} group {GROUP_DEVICE}")
    connect(outside, "eth9", "eth9", "")
    node.ip(
        *(f"address add {V4[name]}/{length} dev wg" for name, length in (("no", 16), ("hp", 32), ("ha", 32))),
        *(f"address add {V6[name]}/{length} dev wg" for name, length in (("no", 64), ("hp", 128), ("ha", 128))),
        f"address add {V4['ph']}/24 dev eth9",
        f"address add {V6['ph']}/112 dev eth9",
        *(f"route add {each['si']} dev wg" for each in (V4, V6)),
        *(f"route add {each['oc']} via {each['ou']}" for each in (V4, V6)),
    )
    remote.ip(
        *(f"address add {V4[name]}/32 dev wg" for name in AT_REMOTE),
        *(f"address add {V6[name]}/128 dev wg" for name in AT_REMOTE),
        f"route add default via {V4['no']} dev wg onlink",
        f"route add default via {V6['no']} dev wg onlink",
        f"link set wg address {REMOTE_MAC}",
        f"neighbour add {V6['no']} lladdr {NODE_MAC} dev wg",
    )
    # WireGuard has no neighbours to discover, and an edge peer would need a grant to answer: the veth is told.
    node.ip(*(f"neighbour add {V6[name]} lladdr {REMOTE_MAC} dev wg" for name in AT_REMOTE))
    outside.ip(
        f"address add {V4['ou']}/24 dev eth9",
        f"address add {V6['ou']}/112 dev eth9",
        f"address add {V4['oc']}/32 dev eth9",
        f"address add {V6['oc']}/128 dev eth9",
        f"route add 10.200.0.0/16 via {V4['ph']}",
        f"route add fd00:200::/64 via {V6['ph']}",
    )
    for bridge, names in BRIDGES.items():
        gateway = "g" + bridge[0]
        node.ip(
            f"link add {bridge} group {GROUP_BRIDGE} type bridge",
            f"link set {bridge} up",
            f"address add {V4[gateway]}/28 dev {bridge}",
            f"address add {V6[gateway]}/112 dev {bridge}",
        )
        for name in names:
            connect(namespace(name), f"v{name}", "eth0", f"group {GROUP_VETH} master {bridge}")
            topology.spaces[name].ip(
                f"link set eth0 address {mac(name).hex(':')}",
                f"address add {V4[name]}/28 dev eth0",
                f"address add {V6[name]}/112 dev eth0",
                f"route add default via {V4[gateway]}",
                f"route add default via {V6[gateway]}",
            )
    connect(namespace("ax"), "vax", "eth1", f"group {GROUP_VETH}")
    node.ip(f"route add {V4['ax']} dev vax", f"route add {V6['ax']} dev vax", f"address add {V6['no']}/128 dev vax")
    topology.spaces["ax"].ip(
        f"address add {V4['ax']}/32 dev eth1",
        f"address add {V6['ax']}/128 dev eth1",
        f"route add default via {V4['no']} dev eth1 onlink",
        f"route add default via {V6['no']} dev eth1 onlink",
    )


def listen(topology: Topology) -> None:
    for name, space in topology.spaces.items():
        with space.entered():
            for family, text in ((socket.AF_INET, V4[name]), (socket.AF_INET6, V6[name])):
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    listener = socket.socket(family, kind | socket.SOCK_NONBLOCK)
                    if family == socket.AF_INET6:  # on a busy machine the address may not be ready yet
                        listener.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
                    else:
                        listener.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
                    listener.bind((text, PORT))
                    if kind == socket.SOCK_STREAM:
                        listener.listen(64)
                    topology.listeners.append(listener)


@pytest.fixture(scope="module")
def wired() -> Iterator[Topology]:
    with contextlib.ExitStack() as stack:
        node = stack.enter_context(Namespace())
        node.sysctl("ipv6/conf/default/accept_dad=0")
        topology = Topology(node)
        build(topology, stack)
        listen(topology)
        stack.callback(lambda: [listener.close() for listener in topology.listeners])
        with node.entered():
            nft = Nft()
        stack.callback(nft.close)
        nft.ensure()
        nft.apply([Step(None, element) for element in members()])
        yield topology


@pytest.fixture(scope="module", params=["bridged frames unseen by inet", "br_netfilter", "links renamed"])
def topology(wired: Topology, request: pytest.FixtureRequest) -> Topology:
    seen = int(request.param == "br_netfilter")
    wired.node.sysctl(f"bridge/bridge-nf-call-iptables={seen}", f"bridge/bridge-nf-call-ip6tables={seen}")
    if request.param == "links renamed":
        wired.node.ip(*(f"link set {name} name re-{name}" for name in ("wg", *BRIDGES)))
    for space in set(wired.spaces.values()):
        space.ip("neighbour flush all")  # discovery has to get through again
    return wired


def probe(
    topology: Topology, version: int, kind: int, cells: dict[tuple[str, str], bool]
) -> dict[tuple[str, str], str]:
    """Try all `cells` at once: what each got as an answer, the sender's address as the receiver saw it.

    Waits for those that are expected to answer, and a little longer for those that are not; 5 s when none is.
    """
    address = ADDRESSES[version]
    answers: dict[tuple[str, str], str] = {}
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for listener in topology.listeners:
            if listener.type == kind:
                selector.register(listener, selectors.EVENT_READ, None)
        clients: dict[tuple[str, str], socket.socket] = {}
        for source, target in cells:
            with topology.spaces[source].entered():
                client = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, kind | socket.SOCK_NONBLOCK)
            stack.callback(client.close)
            client.bind((address[source], 0))
            clients[source, target] = client
            client.connect_ex((address[target], PORT))
            selector.register(client, selectors.EVENT_READ, (source, target))

        def serve(until: float) -> None:
            for key, _ in selector.select(max(0.0, min(0.2, until - time.monotonic()))):
                here = key.fileobj
                assert isinstance(here, socket.socket)
                with contextlib.suppress(OSError):  # refused and unreachable are no answers
                    if key.data is not None:
                        selector.unregister(here)
                        answers[key.data] = here.recv(64).decode()
                    elif kind == socket.SOCK_STREAM:
                        connection, peer = here.accept()
                        with connection:
                            connection.send(peer[0].encode())
                    else:
                        _, peer = here.recvfrom(64)
                        here.sendto(peer[0].encode(), peer)

        wanted = {cell for cell, passes in cells.items() if passes}
        end = time.monotonic() + (LIMIT if wanted else 5)
        resend = 0.0
        while time.monotonic() < end:
            if kind == socket.SOCK_DGRAM and time.monotonic() >= resend:
                for cell, client in clients.items():
                    if cell not in answers:
                        with contextlib.suppress(OSError):
                            client.send(b"?")
                resend = time.monotonic() + 0.2
            serve(end)
            if wanted and wanted <= answers.keys():
                wanted = set()
                end = time.monotonic() + 0.3
    return {cell: text for cell, text in answers.items() if text}


def drawn(cells: dict[tuple[str, str], bool]) -> str:
    """`cells` in the form of TABLE."""
    head = TABLE.split("\n")[1].split()
    sources = list(dict.fromkeys(source for source, _ in expected()))
    marks = {True: "+", False: "-", None: "."}
    lines = ["   " + "".join(f" {name}" for name in head)]
    lines += [
        f"{source} " + "".join(f"  {marks[cells.get((source, target))]}" for target in head) for source in sources
    ]
    return "\n".join(lines)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_the_table(topology: Topology, version: int, kind: int) -> None:
    cells = expected()
    answers = probe(topology, version, kind, cells)
    got = {cell: cell in answers for cell in cells}
    assert got == cells, f"\n{drawn(got)}"


@pytest.mark.parametrize("version", [4, 6])
def test_what_leaves_the_overlay_is_masqueraded_and_nothing_else(topology: Topology, version: int) -> None:
    address = ADDRESSES[version]
    seen_as = {(source, "ou"): address["ph"] for source in ("a1", "ax", "p1", "re", "e1")}
    for pair in ("a1 a2", "a1 a3", "ax a1", "p1 p2", "p1 re", "re p1", "p1 ph", "ou p1", "ou re", "p1 si", "no ph"):
        source, target = pair.split()
        seen_as[source, target] = address[source]
    assert probe(topology, version, socket.SOCK_STREAM, dict.fromkeys(seen_as, True)) == seen_as


def link_local(space: Namespace) -> tuple[str, int]:
    """The IPv6 link-local address of eth0 there, and its interface index."""
    with space.entered(), Path("/proc/thread-self/net/if_inet6").open() as table:
        for digits, index, _, scope, _, name in map(str.split, table):
            if name == "eth0" and scope == "20":
                return str(ip_address(bytes.fromhex(digits))), int(index, 16)
    raise LookupError("no link-local address on eth0")


def test_link_local_addresses_and_multicast_are_no_way_around(topology: Topology) -> None:
    """On one bridge, what is never routed: only fellow members hear a member, and plain containers each other."""
    names = BRIDGES["web"]
    fellows = {(a, b) for a in names for b in names if a != b and NETWORK.get(a) == NETWORK.get(b)}
    ways = {"own to link-local", "own to all", "link-local to link-local", "link-local to all", "own to all, IPv4"}
    expected = {(*pair, way) for pair in fellows for way in ways}
    heard: set[tuple[str, str, str]] = set()
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        where = {name: link_local(topology.spaces[name]) for name in names}

        def open_socket(name: str, family: int, bound: tuple[str | int, ...]) -> socket.socket:
            with topology.spaces[name].entered():
                here = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
            here.bind(bound)
            return here

        senders: dict[tuple[str, str], socket.socket] = {}
        for name in names:
            link, index = where[name]
            selector.register(open_socket(name, socket.AF_INET6, ("::", PORT + 1)), selectors.EVENT_READ, name)
            listener = open_socket(name, socket.AF_INET, ("0.0.0.0", PORT + 2))
            group = socket.inet_aton("224.0.0.251") + socket.inet_aton(V4[name])
            listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
            selector.register(listener, selectors.EVENT_READ, name)
            senders[name, "own"] = open_socket(name, socket.AF_INET6, (V6[name], 0))
            senders[name, "link-local"] = open_socket(name, socket.AF_INET6, (link, 0, 0, index))
            senders[name, "IPv4"] = open_socket(name, socket.AF_INET, (V4[name], 0))
        end = time.monotonic() + LIMIT
        complete = False
        while time.monotonic() < end:
            for (name, kind), sender in senders.items():
                index = where[name][1]
                with contextlib.suppress(OSError):  # an unreachable neighbour is what is hoped for
                    if kind == "IPv4":
                        sender.sendto(f"{name}|own to all, IPv4".encode(), ("224.0.0.251", PORT + 2))
                        continue
                    sender.sendto(f"{name}|{kind} to all".encode(), ("ff02::1", PORT + 1, 0, index))
                    for target in set(names) - {name}:
                        text = f"{name}|{kind} to link-local"
                        sender.sendto(text.encode(), (where[target][0], PORT + 1, 0, index))
            while ready := selector.select(0.1):
                for key, _ in ready:
                    receiver = key.fileobj
                    assert isinstance(receiver, socket.socket)
                    source, _, way = receiver.recv(64).decode().partition("|")
                    if source != key.data:
                        heard.add((source, key.data, way))
            if not complete and expected <= heard:
                complete, end = True, time.monotonic() + 0.3
    assert heard == expected
