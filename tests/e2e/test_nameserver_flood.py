"""Containers that want the name server for themselves: forged sources, many containers at once, and connections.

An upstream keeps silent about the names that the flood asks for, so that each query waits for 4.5 s: two thousand of
them are twice as many as may wait.  Whoever asks meanwhile is answered, in the same service and in others.
"""

import itertools
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_network

import dns.message
import pytest
from lab import Container, Lab
from lab.cluster import CLUSTER, CLUSTER6, Member
from lab.packets import datagram, frame
from lab.upstreams import ADDRESS, Upstream, cases

UPSTREAM = "127.0.0.21"
ATTACKERS = 8
QUERIES = 250  # of each, or of each forged address


class Place:
    """A node whose service web has attackers and a victim, and db a victim; asked: the names that came upstream."""

    def __init__(self, lab: Lab, cluster: str, stack: ExitStack) -> None:
        self.asked: set[str] = set()
        self.member = Member(lab, 1, "alpha", cluster)
        self.member.node.resolv_conf.write_text(f"nameserver {UPSTREAM}\n")
        self.member.start()
        self.member.set_up()
        good = cases()["dead"].second
        assert good is not None

        def behave(query: dns.message.Message, stream: bool, before: int) -> list[tuple[float, bytes]]:
            name = str(query.question[0].name)
            self.asked.add(name)
            return [] if name.startswith("nobody") else good(query, stream, before)

        stack.callback(Upstream(self.member, UPSTREAM, behave).close)
        self.addresses: dict[Container, str] = {}
        self.attackers = [self.attach(lab, "web") for _ in range(ATTACKERS)]
        self.victims = [self.attach(lab, "web"), self.attach(lab, "db")]
        self.family = socket.AF_INET6 if ":" in self.addresses[self.victims[0]] else socket.AF_INET
        self.member.request("register_dns", name="own", ip=self.addresses[self.victims[0]])

    def attach(self, lab: Lab, service: str) -> Container:
        self.member.set_up_service(service)
        container = lab.container()
        self.addresses[container] = self.member.attach(container, service)
        return container

    def gateway(self, container: Container) -> str:
        return self.member.gateway(self.addresses[container])

    def victims_are_answered(self, numbers: Iterator[int]) -> None:
        """By datagram and by connection, names of our own and of the outside, within what a program waits for."""
        for victim in self.victims:
            for way in ("+notcp", "+tcp"):
                own, outside = "own.overlay.local", f"n{next(numbers)}.example.org"
                type = "A" if self.family == socket.AF_INET else "AAAA"
                argv = ["dig", "+short", "+tries=1", "+time=4", way, f"@{self.gateway(victim)}"]
                said = victim.run([*argv, own, type, outside, "A"]).split()
                assert said == [self.addresses[self.victims[0]], ADDRESS]


@pytest.fixture(scope="module", params=[CLUSTER, CLUSTER6], ids=["IPv4", "IPv6"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with Lab(ipv6=request.param == CLUSTER6) as lab, ExitStack() as stack:
        yield Place(lab, request.param, stack)


def nobody(name: str) -> bytes:
    return dns.message.make_query(f"nobody-{name}.example.org", "A").to_wire()


def test_forged_sources_take_no_places(place: Place) -> None:
    attacker, victim = place.attackers[0], place.victims[0]
    own, gateway = place.addresses[attacker], place.gateway(attacker)
    attacker.run(["ping", "-c", "1", gateway])
    (neighbour,) = json.loads(attacker.run(["ip", "-j", "neigh", "show", gateway, "dev", "eth0"]))
    there = bytes.fromhex(neighbour["lladdr"].replace(":", ""))
    here = bytes.fromhex(json.loads(attacker.run(["ip", "-j", "link", "show", "eth0"]))[0]["address"].replace(":", ""))
    subnet = ip_network(place.member.subnet_of(own))
    unused = [str(subnet[number]) for number in range(40, 40 + ATTACKERS - 3)]
    forged = [*unused, place.addresses[victim], place.addresses[place.victims[1]], gateway]
    numbers = itertools.count()
    with attacker.open_socket(socket.AF_PACKET, socket.SOCK_RAW) as mouth:
        mouth.bind(("eth0", 0))
        for number in range(QUERIES):
            for index, source in enumerate(forged):
                packet = datagram(source, gateway, (40000 + index, 53), nobody(f"forged-{index}-{number}"))
                mouth.send(frame(here, there, packet))
            if number % 100 == 0:
                place.victims_are_answered(numbers)
        mouth.send(frame(here, there, datagram(own, gateway, (40999, 53), nobody("honest"))))
    place.victims_are_answered(numbers)
    assert "nobody-honest.example.org." in place.asked, "frames of its own pass"
    assert not [name for name in place.asked if name.startswith("nobody-forged")]


def test_eight_containers_leave_room_for_the_others(place: Place) -> None:
    numbers = itertools.count(100)
    with ExitStack() as stack:
        mouths = []
        for attacker in place.attackers:
            mouth = stack.enter_context(attacker.open_socket(place.family, socket.SOCK_DGRAM))
            mouth.connect((place.gateway(attacker), 53))
            mouths.append(mouth)
        for number in range(QUERIES):
            for index, mouth in enumerate(mouths):
                mouth.send(nobody(f"flood-{index}-{number}"))
            if number % 50 == 49:
                place.victims_are_answered(numbers)
    flood = [name for name in place.asked if name.startswith("nobody-flood")]
    assert len(flood) > 1024, "more than may wait"


def test_connections_of_one_service_leave_room_for_the_others(place: Place) -> None:
    numbers = itertools.count(200)
    with ExitStack() as stack:
        for number in range(50):
            for attacker in place.attackers[:5]:
                mouth = stack.enter_context(attacker.open_socket(place.family))
                mouth.connect((place.gateway(attacker), 53))
                query = nobody(f"stream-{number}")
                mouth.send(len(query).to_bytes(2) + query)
            if number % 10 == 9:
                place.victims_are_answered(numbers)
