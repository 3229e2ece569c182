"""A host that forwards only because overlayd switched that on is no router between its other networks."""

import json
import subprocess
from collections.abc import Iterator

import pytest
from lab import Lab, Node, ping
from lab.cluster import Member
from lab.container import Container
from lab.patience import until
from lab.processes import run

INSIDE, GATEWAY = "192.0.2.2", "192.0.2.1"  # of a network that is not ours


class Neighbour:
    """A network behind a bridge of the host, with a machine in it, and routes to it from the outside."""

    def __init__(self, lab: Lab, member: Member, bridge: str) -> None:
        self.lab, self.member = lab, member
        self.machine: Container = lab.container()
        for command in (
            f"link add {bridge} type bridge",
            f"address add {GATEWAY}/24 dev {bridge}",
            f"link set {bridge} up",
            f"link add lan0 type veth peer name eth0 netns {self.machine.pid}",
            f"link set lan0 master {bridge} up",
        ):
            member.node.run(["ip", *command.split()])
        for command in ("link set lo up", f"address add {INSIDE}/24 dev eth0", "link set eth0 up"):
            self.machine.run(["ip", *command.split()])
        self.machine.run(["ip", "route", "add", "default", "via", GATEWAY])
        run(["ip", "-n", lab.outside, "route", "add", "192.0.2.0/24", "via", "198.51.100.254"])
        run(["ip", "-n", lab.router, "route", "add", "192.0.2.0/24", "via", str(member.node.address)])

    def is_reached(self) -> bool:
        """Whether the outside gets an answer."""
        echo = ["ping", "-c", "1", "-W", "1", INSIDE]
        done = subprocess.run(["ip", "netns", "exec", self.lab.outside, *echo], capture_output=True, check=False)
        return done.returncode == 0

    def gets_out(self) -> bool:
        """Whether the machine gets an answer from the outside."""
        echo = self.machine.command(["ping", "-c", "1", "-W", "1", "198.51.100.1"])
        return subprocess.run(echo, capture_output=True, check=False).returncode == 0


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def set_up(member: Member) -> Container:
    member.start()
    member.set_up()
    member.set_up_service("web")
    box = member.lab.container()
    member.attach(box, "web")
    return box


def test_another_network_stays_closed_also_after_restarts_and_a_flush(lab: Lab) -> None:
    member = Member(lab, 1, "alpha")
    other = Neighbour(lab, member, "lan")
    member.node.write_sysctl("net/ipv4/ip_forward", "0")
    member.node.write_sysctl("net/ipv6/conf/all/forwarding", "0")
    box = set_up(member)
    ping(box, "198.51.100.1")
    assert not other.is_reached() and not other.gets_out()
    member.node.kill()
    assert not other.is_reached()
    member.node.run(["nft", "flush", "ruleset"])
    member.start()
    assert not other.is_reached() and not other.gets_out()
    member.node.run(["nft", "flush", "ruleset"])
    until(lambda: "closed" in member.node.run(["nft", "list", "ruleset"]))
    assert not other.is_reached()
    ping(box, "198.51.100.1")
    assert member.node.overlayctl("doctor").startswith("all is as it should be\n")

    member.node.stop()
    code, _ = member.node.try_daemon(member.node.daemon_argv("--teardown"))
    assert code == 0
    forwards = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")
    assert [member.node.run(["cat", f"/proc/sys/{each}"]).strip() for each in forwards] == ["0", "0"]
    assert not other.is_reached(), "nobody forwards any more"


def test_a_host_that_was_a_router_stays_one(lab: Lab) -> None:
    member = Member(lab, 1, "alpha")
    other = Neighbour(lab, member, "lan")
    member.start()
    member.node.write_sysctl("net/ipv4/ip_forward", "1")  # by somebody else, before there was an overlay
    set_up_only(member)
    until(other.is_reached)
    until(other.gets_out)
    member.node.stop()
    assert member.node.try_daemon(member.node.daemon_argv("--teardown"))[0] == 0
    until(other.is_reached)


def set_up_only(member: Member) -> None:
    member.set_up()
    member.set_up_service("web")


@pytest.mark.parametrize("bridge", ["docker0", "br-1a2b3c4d5e6f", "podman1"])
def test_containers_of_an_engine_keep_their_way_out_and_nobody_gets_in(lab: Lab, bridge: str) -> None:
    member = Member(lab, 1, "alpha")
    other = Neighbour(lab, member, bridge)
    member.node.write_sysctl("net/ipv4/ip_forward", "0")
    set_up(member)
    until(other.gets_out)
    assert not other.is_reached()


def test_two_machines_on_one_bridge_of_somebody_else_still_meet(lab: Lab) -> None:
    member = Member(lab, 1, "alpha")
    Neighbour(lab, member, "lan")
    member.node.write_sysctl("net/ipv4/ip_forward", "0")
    set_up(member)
    second = lab.container()
    member.node.run(["ip", *f"link add lan1 type veth peer name eth0 netns {second.pid}".split()])
    member.node.run(["ip", "link", "set", "lan1", "master", "lan", "up"])
    for command in ("address add 192.0.2.3/24 dev eth0", "link set eth0 up"):
        second.run(["ip", *command.split()])
    ping(second, INSIDE, count=3)


def test_a_link_that_comes_later_goes_on_taking_router_advertisements(lab: Lab) -> None:
    member = Member(lab, 1, "alpha")
    member.node.write_sysctl("net/ipv6/conf/all/forwarding", "0")
    set_up(member)
    member.node.run(["ip", *["link", "add", "eth7", "type", "veth", "peer", "name", "away"]])
    until(lambda: member.node.run(["cat", "/proc/sys/net/ipv6/conf/eth7/accept_ra"]).strip() == "2")
    until(lambda: "eth7 goes on taking router advertisements" in member.node.log.read_text(), member.node.log_tail)


def test_a_bridge_of_others_is_reached_at_its_link_local_address(lab: Lab) -> None:
    """Our table of the bridge family sees every bridge of the host."""
    member = Member(lab, 1, "alpha")
    set_up(member)
    neighbour = Neighbour(lab, member, "virbr0")
    for place, interface in ((member.node, "virbr0"), (neighbour.machine, "eth0")):
        place.run(["sh", "-c", f"echo 0 > /proc/sys/net/ipv6/conf/{interface}/disable_ipv6"])
    echo = neighbour.machine.command(["ping", "-c", "1", "-W", "1", f"{link_local(member.node, 'virbr0')}%eth0"])
    until(lambda: subprocess.run(echo, capture_output=True, check=False).returncode == 0, member.node.log_tail)


def link_local(node: Node, interface: str) -> str:
    """The kernel gives it when the link has a carrier."""
    show = ["ip", "-j", "-6", "address", "show", "dev", interface, "scope", "link"]
    return until(lambda: next((str(each["local"]) for each in json.loads(node.run(show))[0].get("addr_info", ())), ""))
