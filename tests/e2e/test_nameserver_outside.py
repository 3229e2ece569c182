"""Guests and edge peers are told a name server that is served, and that they reach through their tunnel."""

from collections.abc import Iterator
from typing import Any

import pytest
from lab import CommandFailed, Lab, Node, roamer
from lab.cluster import CLUSTER, CLUSTER6, Member

HOUR = 3600
TELLING = ("dns_server", "dns_domain")


class Place:
    """A node with a service, a machine outside, and the address of a registered name."""

    def __init__(self, lab: Lab, cluster: str) -> None:
        self.member = Member(lab, 1, "alpha", cluster)
        self.machine = lab.node("laptop")
        self.type = "AAAA" if ":" in cluster else "A"
        self.member.start()
        self.node_address = str(self.member.set_up()["node_ip"])
        self.container = lab.container()

    def set_up_service(self) -> str:
        """Register the container of service `web` as a name; return the service's gateway."""
        self.member.set_up_service("web")
        self.address = self.member.attach(self.container, "web")
        self.member.request("register_dns", name="web", ip=self.address)
        return self.member.gateway(self.address)

    def guest(self, id: str, service: str) -> dict[str, Any]:
        handle = {"platform": "guest_managed", "id": id}
        return self.member.request("attach_container", handle=handle, service=service, join_global=False)

    def edge(self, name: str, *allow: str) -> dict[str, Any]:
        self.member.request("revoke_edge_peer", name=name)
        return self.member.request("mint_edge_peer", name=name, ttl_secs=HOUR, allow=list(allow))

    def ask(self, config: dict[str, Any], *servers: str, seconds: int = 20) -> list[list[str]]:
        """What the machine hears from these servers with this configuration and no other network to them."""
        roamer.bring_up(self.machine, config)
        try:
            for peer in config["peers"]:  # an edge peer's address is a host's: wg-quick adds these routes
                for cidr in peer["allowed_ips"].split(","):
                    self.machine.run(["ip", "route", "replace", cidr, "dev", roamer.INTERFACE])
            roamer.wait_until_connected(self.machine)
            ways = [(server, way) for server in servers for way in ("+notcp", "+tcp")]
            return [lookup(self.machine, server, self.type, way, seconds) for server, way in ways]
        finally:
            roamer.shut_down(self.machine)


def lookup(machine: Node, server: str, type: str, way: str, seconds: int) -> list[str]:
    try:
        tries = ("+tries=2", f"+time={seconds}")
        return machine.run(["dig", "+short", *tries, way, f"@{server}", "web", type]).split()
    except CommandFailed:
        return []


def told(config: dict[str, Any]) -> tuple[str | None, str | None]:
    return config.get(TELLING[0]), config.get(TELLING[1])


@pytest.fixture(scope="module", params=[CLUSTER, CLUSTER6], ids=["IPv4", "IPv6"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with Lab(ipv6=":" in request.param) as lab:
        yield Place(lab, request.param)


def test_who_is_told_what(place: Place) -> None:
    """One story, since each step builds on the one before it."""
    member = place.member
    for config in (place.guest("early", "web"), place.edge("laptop")):
        assert not set(TELLING) & config.keys(), "nobody serves names yet"

    gateway = place.set_up_service()
    answers = [[place.address]] * 2
    guest, laptop = place.guest("vm", "web"), place.edge("laptop", "web")
    for config in (guest, laptop):
        assert told(config) == (gateway, "overlay.local")
        assert place.ask(config, gateway) == answers
    everything = place.edge("everything")
    assert everything["peers"][0]["allowed_ips"] == member.cluster
    assert told(everything) == told(place.guest("elsewhere", "not here")) == (gateway, "overlay.local")
    assert place.ask(everything, gateway) == answers
    narrow = place.edge("narrow", place.address)
    assert not set(TELLING) & narrow.keys(), "the gateway was not granted"
    assert place.ask(narrow, gateway, seconds=2) == [[], []]

    member.node.stop()
    member.start("--dns-node-address")
    assert told(place.guest("vm", "web")) == (place.node_address, "overlay.local")
    assert place.ask(place.guest("vm", "web"), place.node_address, gateway) == answers * 2
    assert told(place.edge("everything")) == (place.node_address, "overlay.local")
    assert told(place.edge("laptop", "web")) == (gateway, "overlay.local"), "the node address was not granted"
    assert told(place.edge("desk", place.node_address)) == (place.node_address, "overlay.local")
    assert place.ask(place.edge("desk", place.node_address), place.node_address) == answers

    member.node.kill()
    member.start()
    assert told(place.guest("vm", "web")) == (gateway, "overlay.local")
    assert not set(TELLING) & place.edge("desk", place.node_address).keys()

    member.request("teardown_service_overlay", service="web")
    for config in (place.guest("late", "web"), place.edge("everything")):
        assert not set(TELLING) & config.keys(), "nobody serves names any more"


@pytest.mark.parametrize("options", [["--dns-port", "0"], ["--dns-port", "5353", "--dns-node-address"]], ids=" ".join)
def test_a_server_that_nobody_can_ask_at_port_53_is_not_told_of(lab: Lab, options: list[str]) -> None:
    member = Member(lab, 1, f"port{options[1]}")
    member.start(*options)
    member.set_up()
    member.set_up_service("web")
    handle = {"platform": "guest_managed", "id": "vm"}
    guest = member.request("attach_container", handle=handle, service="web", join_global=False)
    laptop = member.request("mint_edge_peer", name="laptop", ttl_secs=HOUR)
    assert not set(TELLING) & (guest.keys() | laptop.keys())


def test_a_gateway_that_another_program_has_taken_is_not_told_of(lab: Lab) -> None:
    member = Member(lab, 1, "taken")
    member.start()
    member.set_up()
    with member.node.open_socket() as other:
        other.bind(("0.0.0.0", 53))
        other.listen()
        member.set_up_service("web")
        assert not set(TELLING) & member.request("mint_edge_peer", name="laptop", ttl_secs=HOUR).keys()
