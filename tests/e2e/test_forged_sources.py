"""Who reaches whom when everybody lies about who they are: containers on every port, and a host of the LAN.

Three nodes, two isolation networks, plain containers and one in the global overlay too.  Everybody sends datagrams
from every address and MAC there is, to everybody, straight to the neighbour and through the gateway.  What may arrive
is reckoned from who was attached where: a datagram from another address or MAC than the sender's own never does, and
an honest one does as the isolation networks have it.
"""

import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_network

import pytest
from lab import Container, Lab, Node, ping
from lab.cluster import CLUSTER, CLUSTER6, Member
from lab.packets import datagram, frame
from lab.patience import LIMIT, until

PORT = 9999
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
ANYBODY = {4: "198.51.100.77", 6: "2001:db8:51::77"}  # an address of the outside that nobody has
GLOBAL = "j in the global overlay"  # the other address of j
# Name -> node, service, isolation network.
CONTAINERS = {
    "a1": ("alpha", "web", "blue"),
    "a2": ("alpha", "api", "blue"),
    "b1": ("alpha", "web", "green"),
    "b2": ("alpha", "web", "green"),
    "p1": ("alpha", "web", ""),
    "p2": ("alpha", "api", ""),
    "j": ("alpha", "web", ""),
    "r1": ("beta", "db", ""),
    "r2": ("beta", "db", "blue"),
    "g1": ("gamma", "db", ""),
}
# To itself; and what a host of the LAN claims outside of the overlay, and sends there, is not the overlay's affair.
LEFT_OUT = {("j", GLOBAL), ("stranger", "outside"), ("stranger", "anybody")}


@dataclass(frozen=True)
class Sent:
    """One datagram.  claims: the address that it comes from, and the MAC, by the name of whose they are.  way: whose
    MAC it is sent to.
    """

    sender: str
    claims: tuple[str, str]
    target: str
    way: str

    @property
    def is_honest(self) -> bool:
        return self.claims == (self.sender, self.sender)


class World:
    """Everybody, their addresses and MACs, and an ear at each place."""

    def __init__(self, lab: Lab, cluster: str, stack: ExitStack) -> None:
        self.lab = lab
        self.version = ip_network(cluster).version
        self.family = socket.AF_INET if self.version == 4 else socket.AF_INET6
        self.members = {name: Member(lab, n, name, cluster) for n, name in enumerate(("alpha", "beta", "gamma"), 1)}
        for member in self.members.values():
            member.start()
            member.set_up()
        for one, other in itertools.permutations(self.members.values(), 2):
            one.introduce(other)
        self.places: dict[str, Container | Node] = {}
        self.addresses: dict[str, str] = {}
        self.macs: dict[str, bytes] = {}
        for name, (node, service, network) in CONTAINERS.items():
            self._attach(name, self.members[node], service, network)
        self.alpha = self.members["alpha"]
        self.stranger = lab.node("stranger")
        self._learn("stranger", self.stranger, str(self.stranger.address), "uplink")
        self._learn("node", self.alpha.node, str(ip_network(self.alpha.slice)[1]), "uplink")
        for service, fellow in (("web", "p1"), ("api", "p2")):
            gateway = str(next(ip_network(f"{self.addresses[fellow]}/{self._prefix}", strict=False).hosts()))
            self._learn(service, self.alpha.node, gateway, self.alpha.set_up_service(service))
        self.addresses["outside"] = str(lab.outside_address.ip)
        self.addresses["anybody"] = ANYBODY[self.version]
        self.ears = {
            name: stack.enter_context(place.open_socket(self.family, socket.SOCK_DGRAM))
            for name, place in self.places.items()
        }
        self.ears["outside"] = stack.enter_context(lab.open_outside(self.family, socket.SOCK_DGRAM))
        for name, ear in self.ears.items():
            ear.setblocking(False)
            ear.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
            ear.bind((self.addresses[name], PORT))
        self.mouths = {name: stack.enter_context(self._open_link(name)) for name in (*CONTAINERS, "stranger")}

    def _attach(self, name: str, member: Member, service: str, network: str) -> None:
        member.set_up_service(service)
        container = self.lab.container()
        keys = {"isolation_network": network} if network else {}
        address = member.attach(container, service, join_global=name == "j", **keys)
        self._prefix = {4: 26, 6: 120}[self.version]
        self._learn(name, container, address, "eth0")
        if name == "j":
            shown = json.loads(container.run(["ip", "-j", "address", "show", "dev", "eth1", "scope", "global"]))
            self.places[GLOBAL], self.addresses[GLOBAL] = container, shown[0]["addr_info"][0]["local"]
        for other in self.members.values():
            if other is not member:
                subnet = str(ip_network(f"{address}/{self._prefix}", strict=False))
                other.request("add_allowed_ip", pubkey=member.public_key, cidr=subnet)

    def _learn(self, name: str, place: Container | Node, address: str, interface: str) -> None:
        self.places[name], self.addresses[name] = place, address
        self.macs[name] = mac_of(place, interface)

    def _open_link(self, name: str) -> socket.socket:
        opened = self.places[name].open_socket(socket.AF_PACKET, socket.SOCK_RAW)
        opened.bind(("uplink" if name == "stranger" else "eth0", 0))
        return opened

    def plan(self) -> list[Sent]:
        """Every lie there is, and what is true."""
        found = []
        for sender in self.mouths:
            addresses = [name for name in self.addresses if name != "outside" and (sender, name) not in LEFT_OUT]
            macs = ["stranger"] if sender == "stranger" else [*CONTAINERS, "web", "api"]
            local = sender == "stranger" or CONTAINERS[sender][0] == "alpha"
            for claims in itertools.product(addresses, macs):
                if not local and claims[1] not in (sender, "web"):
                    continue  # no neighbour of his
                for target in self.ears:
                    if target not in (sender, claims[0]) and (sender, target) not in LEFT_OUT:
                        found += [Sent(sender, claims, target, way) for way in self._ways(sender, target)]
        return found

    def _ways(self, sender: str, target: str) -> list[str]:
        """Whose MAC may lead there: the gateway's, and a neighbour's own."""
        if sender == "stranger":
            return ["node"]
        node, service, _ = CONTAINERS[sender]
        ways = [service if node == "alpha" else f"gateway of {sender}"]
        if target in CONTAINERS and CONTAINERS[target][:2] == (node, service):
            ways.append(target)
        return ways

    def send(self, plan: list[Sent]) -> None:
        for number, each in enumerate(plan):
            packet = datagram(self.addresses[each.claims[0]], self.addresses[each.target], (7777, PORT), b"%d" % number)
            with_frame = frame(self.macs[each.claims[1]], self.mac_of(each.way), packet)
            try:
                self.mouths[each.sender].send(with_frame)
            except OSError as error:
                raise AssertionError(f"{each}: {error}") from error

    def mac_of(self, way: str) -> bytes:
        if way not in self.macs:  # the gateway of a container on another node
            name = way.removeprefix("gateway of ")
            node, service, _ = CONTAINERS[name]
            bridge = self.members[node].set_up_service(service)
            self.macs[way] = mac_of(self.members[node].node, bridge)
        return self.macs[way]

    def heard(self, plan: list[Sent]) -> set[Sent]:
        """What has arrived so far, where it was to arrive."""
        found = set()
        for name, ear in self.ears.items():
            while True:
                try:
                    sent = plan[int(ear.recv(64))]
                except BlockingIOError:
                    break
                assert sent.target == name, f"{sent} went to {name}"
                found.add(sent)
        return found


def mac_of(place: Container | Node, interface: str) -> bytes:
    (shown,) = json.loads(place.run(["ip", "-j", "link", "show", "dev", interface]))
    return bytes.fromhex(shown["address"].replace(":", ""))


def may_arrive(sent: Sent) -> bool:
    """As the model has it."""
    if sent.sender == "stranger":
        node, _, network = CONTAINERS.get(sent.target, ("alpha", "", ""))
        return sent.is_honest and node == "alpha" and not network
    own = ("j", GLOBAL) if sent.sender == "j" else (sent.sender,)
    if sent.claims[0] not in own or sent.claims[1] != sent.sender:
        return False
    network = CONTAINERS[sent.sender][2]
    if sent.target in (*CONTAINERS, GLOBAL):
        node, _, other = CONTAINERS["j" if sent.target == GLOBAL else sent.target]
        return network == other and (not network or node == CONTAINERS[sent.sender][0])
    if sent.target == "outside":
        return True
    return not network or CONTAINERS[sent.sender][0] == "alpha" or sent.target == "stranger"


@pytest.fixture(scope="module", params=[CLUSTER, CLUSTER6], ids=["ipv4", "ipv6"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with Lab(ipv6=request.param == CLUSTER6) as lab, ExitStack() as stack:
        world = World(lab, request.param, stack)
        for source, target in (("r1", "p1"), ("r1", "g1"), ("g1", "p1")):  # one handshake each, before all at once
            ping(world.places[source], world.addresses[target], 2)
        yield world


def settle(world: World, plan: list[Sent], wanted: set[Sent]) -> set[Sent]:
    """Send everything; what arrived.  Honest ones that wait for a neighbour's MAC may be lost, and are sent again."""
    world.send(plan)
    heard = world.heard(plan)
    deadline = time.monotonic() + LIMIT
    while wanted - heard and time.monotonic() < deadline:
        time.sleep(0.2)
        numbers = {sent: number for number, sent in enumerate(plan)}
        for sent in wanted - heard:
            packet = datagram(
                world.addresses[sent.claims[0]], world.addresses[sent.target], (7777, PORT), b"%d" % numbers[sent]
            )
            world.mouths[sent.sender].send(frame(world.macs[sent.claims[1]], world.mac_of(sent.way), packet))
        time.sleep(0.2)
        heard |= world.heard(plan)
    time.sleep(0.3)
    return heard | world.heard(plan)


def differences(plan: list[Sent], heard: set[Sent]) -> list[str]:
    return [
        f"{sent} {'arrived' if sent in heard else 'did not arrive'}"
        for sent in plan
        if (sent in heard) != may_arrive(sent)
    ]


def test_who_reaches_whom_whatever_they_claim(world: World) -> None:
    plan = world.plan()
    wanted = {sent for sent in plan if may_arrive(sent)}
    assert len(plan) > 3000 and len(wanted) > 60
    found = differences(plan, settle(world, plan, wanted))
    assert not found, f"{len(found)} of {len(plan)}: {found[:20]}"


def test_after_a_crash_and_a_restart_as_before(world: World) -> None:
    world.alpha.node.kill()
    world.alpha.start()
    plan = world.plan()
    found = differences(plan, settle(world, plan, {sent for sent in plan if may_arrive(sent)}))
    assert not found, f"{len(found)} of {len(plan)}: {found[:20]}"


def test_while_the_rules_are_flushed_again_and_again_no_mac_is_forged_and_then_all_is_as_before(world: World) -> None:
    """Without rules the bridges' locked ports still tell whose frames they are; an address they do not know."""
    plan = world.plan()
    heard: set[Sent] = set()
    ended = threading.Event()

    def flush() -> None:
        while not ended.wait(0.2):
            for member in world.members.values():
                member.node.run(["nft", "flush", "ruleset"])

    flushing = threading.Thread(target=flush)
    flushing.start()
    try:
        for _ in range(2):
            world.send(plan)
            heard |= world.heard(plan)
    finally:
        ended.set()
        flushing.join()
    wanted = {sent for sent in plan if may_arrive(sent)}
    assert len(heard & wanted) > len(wanted) / 2
    forged = [sent for sent in heard if sent.claims[1] != sent.sender]
    assert not forged, forged[:20]
    for member in world.members.values():
        until_ruled(member)
    time.sleep(0.3)
    world.heard(plan)
    found = differences(plan, settle(world, plan, wanted))
    assert not found, f"{len(found)} of {len(plan)}: {found[:20]}"


def until_ruled(member: Member) -> None:
    until(lambda: "port_arp" in member.node.run(["nft", "list", "ruleset"]), member.node.log_tail)
