"""A port is who was attached there: what a container with CAP_NET_RAW, as most of them have, can make of that."""

import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from ipaddress import ip_address, ip_interface

import pytest
from lab import CommandFailed, Container, Lab, Node, ping
from lab.cluster import CLUSTER, CLUSTER6, Member
from lab.packets import (
    ARP_REPLY,
    ARP_REQUEST,
    EVERYBODY,
    arp,
    datagram,
    eui64,
    frame,
    multicast_mac,
    neighbour_advertisement,
    neighbour_solicitation,
    router_advertisement,
    source_routed,
)
from lab.patience import LIMIT, until

PREFIX = "2001:db8:bad::"  # of a router that is none
SETTLE = 0.5  # seconds after which a frame has done what it does


class Street:
    """Three neighbours on one bridge without isolation: `rogue` sends, the others are sent to."""

    def __init__(self, lab: Lab, cluster: str) -> None:
        self.member = Member(lab, 1, "alpha", cluster)
        self.member.start()
        self.member.set_up()
        self.bridge = self.member.set_up_service("web")
        self.rogue, self.victim, self.third = (lab.container() for _ in range(3))
        self.addresses = {
            each: self.member.attach(each, "web", join_global=each is self.rogue)
            for each in (self.rogue, self.victim, self.third)
        }
        self.version = ip_address(self.addresses[self.victim]).version
        own = json.loads(self.rogue.run(["ip", "-j", "address", "show", "dev", "eth0"]))[0]
        self.prefix = next(each["prefixlen"] for each in own["addr_info"] if each["scope"] == "global")
        network = ip_interface(f"{self.addresses[self.rogue]}/{self.prefix}").network
        self.gateway = str(next(network.hosts()))

    def mac(self, container: Container) -> bytes:
        (link,) = json.loads(container.run(["ip", "-j", "link", "show", "dev", "eth0"]))
        return bytes.fromhex(link["address"].replace(":", ""))

    def neighbours(self, container: Container) -> dict[str, str]:
        """Whom a container knows on eth0, and at which MAC."""
        shown = json.loads(container.run(["ip", "-j", "neigh", "show", "dev", "eth0"]))
        return {each["dst"]: each["lladdr"] for each in shown if "lladdr" in each}

    def send(self, *frames: bytes, interface: str = "eth0") -> None:
        with self.rogue.open_socket(socket.AF_PACKET, socket.SOCK_RAW) as mouth:
            mouth.bind((interface, 0))
            for each in frames:
                mouth.send(each)
        time.sleep(SETTLE)


@pytest.fixture(scope="module", params=[CLUSTER, CLUSTER6], ids=["ipv4", "ipv6"])
def street(request: pytest.FixtureRequest) -> Iterator[Street]:
    with Lab(ipv6=request.param == CLUSTER6) as lab:
        yield Street(lab, request.param)


def lies(street: Street, about: str) -> list[bytes]:
    """Frames that say that an address is at the rogue's MAC."""
    mine, victim = street.mac(street.rogue), street.mac(street.victim)
    if street.version == 4:
        to = (victim, street.addresses[street.victim])
        spoken = [arp(operation, (mine, about), to) for operation in (ARP_REPLY, ARP_REQUEST)]
        spoken.append(arp(ARP_REPLY, (mine, about), (EVERYBODY, about)))
        return [frame(mine, mac, each) for each in spoken for mac in (victim, EVERYBODY)]
    to_victim = street.addresses[street.victim]
    sources = (about, street.addresses[street.rogue], eui64(mine))
    spoken = [neighbour_advertisement(source, to_victim, about, mine) for source in sources]
    return [frame(mine, victim, each) for each in spoken]


@pytest.mark.parametrize("posed", ["gateway", "neighbour"])
def test_no_container_poses_as_the_gateway_or_a_neighbour(street: Street, posed: str) -> None:
    about = street.gateway if posed == "gateway" else street.addresses[street.third]
    ping(street.victim, about)
    known = street.neighbours(street.victim)[about]
    street.send(*lies(street, about))
    assert street.neighbours(street.victim)[about] == known
    ping(street.victim, about)
    host = street.member.node.run(["ip", "neigh", "show", "dev", street.bridge])
    mine = street.mac(street.rogue)
    own = {street.addresses[street.rogue], eui64(mine)}
    assert {line.split()[0] for line in host.splitlines() if mine.hex(":") in line} <= own, host


def test_who_is_asked_still_answers(street: Street) -> None:
    for container, address in street.addresses.items():
        container.run(["ip", "neigh", "flush", "dev", "eth0"])
        for other in street.addresses.values():
            if other != address:
                ping(container, other)


def routers(place: Callable[[list[str]], str]) -> list[str]:
    """What of a router's advertisement was taken."""
    shown = place(["ip", "-6", "route", "show", "table", "all"]) + place(["ip", "-6", "address", "show"])
    return [line for line in shown.splitlines() if "proto ra" in line or "db8:bad" in line]


def advertise(street: Street) -> None:
    for interface in ("eth0", "eth1"):
        (link,) = json.loads(street.rogue.run(["ip", "-j", "link", "show", "dev", interface]))
        mac = bytes.fromhex(link["address"].replace(":", ""))
        packet = router_advertisement(eui64(mac), mac, PREFIX)
        street.send(*[frame(mac, multicast_mac("ff02::1"), packet)] * 3, interface=interface)


def assert_heeds_nobody(street: Street) -> None:
    assert not routers(street.member.node.run)
    for container in (street.victim, street.third):
        assert not routers(container.run)
    script = (
        "cd /proc/sys/net/ipv6/conf && for each in zl-* veth-*; do cat $each/accept_ra $each/accept_redirects; done"
    )
    assert set(street.member.node.run(["sh", "-c", script]).split()) == {"0"}
    ours = "cd /proc/sys/net/ipv4/conf && cat zl-*/accept_redirects veth-*/accept_redirects"
    assert set(street.member.node.run(["sh", "-c", ours]).split()) == {"0"}


def test_nobody_heeds_a_containers_router_advertisement(street: Street) -> None:
    advertise(street)
    assert_heeds_nobody(street)
    # Somebody switches forwarding off, which makes a host of a router; it is put back.
    forwarding = "net/ipv6/conf/all/forwarding"
    street.member.node.write_sysctl(forwarding, "0")
    advertise(street)
    until(lambda: street.member.node.run(["cat", f"/proc/sys/{forwarding}"]).strip() == "1")
    advertise(street)
    assert_heeds_nobody(street)


def test_nor_after_a_start_that_finds_forwarding_off(street: Street) -> None:
    street.member.node.stop()
    street.member.node.write_sysctl("net/ipv6/conf/all/forwarding", "0")
    street.member.start()
    advertise(street)
    assert_heeds_nobody(street)


def test_the_forwarding_database_stays_small(street: Street) -> None:
    show = ["bridge", "-j", "fdb", "show", "br", street.bridge]
    before = len(json.loads(street.member.node.run(show)))
    address, gateway = street.addresses[street.rogue], street.gateway
    packet = datagram(address, gateway, (7, 7), b"flood")
    street.send(*(frame(struct.pack("!HI", 0x0200, n), EVERYBODY, packet) for n in range(3000)))
    assert len(json.loads(street.member.node.run(show))) == before


def entries(street: Street) -> set[tuple[str, str]]:
    """Which MAC the bridge has behind which port."""
    shown = json.loads(street.member.node.run(["bridge", "-j", "fdb", "show", "br", street.bridge]))
    return {(each["mac"], each["ifname"]) for each in shown if "master" in each}


@pytest.mark.parametrize("interface", ["eth0", "eth1"])
@pytest.mark.parametrize("asked", ["host", "neighbour"])
def test_the_neighbour_table_stays_small(street: Street, interface: str, asked: str) -> None:
    """It is one for the host and all its containers: who fills it cuts off everybody who is new."""
    mine, device = address_of(street.rogue, interface), "zl-lab-alpha-g"
    place = street.victim if asked == "neighbour" else street.member.node
    target = street.addresses[street.victim] if asked == "neighbour" else street.gateway
    targets = [target, *(each for each in addresses(street.member.node, device) if asked == "host")]
    host_end = bytes([0xFE]) + mine[1:]
    reserved = [bytes.fromhex(f"0180c20000{last:02x}") for last in (0, 3, 14)]  # taken by the port itself
    around = [street.mac(street.victim), gateway_mac(street), host_end, EVERYBODY, *reserved]
    frames = []
    for n in range(300):
        who = eui64(struct.pack("!HI", 0x0200, n)) if street.version == 6 else f"10.200.{100 + n // 250}.{n % 250}"
        if street.version == 6:
            packets = [neighbour_solicitation(who, to, to, mine) for to in targets]
            packets += [datagram(who, to, (7, 7), b"answer me") for to in targets]
        else:
            packets = [arp(ARP_REQUEST, (mine, who), (bytes(6), to)) for to in targets]
        frames += [frame(mine, mac, packet) for mac in around for packet in packets]
    street.send(*frames, interface=interface)
    known = json.loads(place.run(["ip", "-j", "neigh", "show"]))
    assert len(known) < 60, known[:5]
    ping(street.third, street.gateway)
    ping(street.rogue, street.gateway)


def address_of(container: Container, interface: str) -> bytes:
    (link,) = json.loads(container.run(["ip", "-j", "link", "show", "dev", interface]))
    return bytes.fromhex(link["address"].replace(":", ""))


def addresses(node: Node, interface: str) -> list[str]:
    (link,) = json.loads(node.run(["ip", "-j", "address", "show", "dev", interface]))
    return [str(each["local"]) for each in link["addr_info"]]


def gateway_mac(street: Street) -> bytes:
    (bridge,) = json.loads(street.member.node.run(["ip", "-j", "link", "show", "dev", street.bridge]))
    return bytes.fromhex(bridge["address"].replace(":", ""))


@pytest.mark.parametrize("claimed", ["neighbour", "gateway", "nobody"])
def test_frames_that_a_bridge_keeps_to_itself_take_nobodys_mac(street: Street, claimed: str) -> None:
    """LLDP, spanning tree, 802.1X...: the kernel learns from them before a packet filter sees them."""
    (bridge,) = json.loads(street.member.node.run(["ip", "-j", "link", "show", "dev", street.bridge]))
    gateway = bytes.fromhex(bridge["address"].replace(":", ""))
    mac = {"neighbour": street.mac(street.victim), "gateway": gateway, "nobody": bytes.fromhex("020000000099")}[claimed]
    before = entries(street)
    reserved = [bytes.fromhex(f"0180c20000{last:02x}") for last in range(16)]
    for kind in (0x88CC, 0x888E, 0x0026, 0x0800):
        street.send(*(each + mac + struct.pack("!H", kind) + bytes(60) for each in reserved))
    assert entries(street) == before
    street.third.run(["ip", "neigh", "flush", "dev", "eth0"])
    ping(street.third, street.addresses[street.victim])
    ping(street.victim, street.gateway)


def test_nobody_is_reached_at_a_link_local_address_through_the_gateway(street: Street) -> None:
    """The kernel routes such a packet back into the bridge that it came from, where isolation is between ports."""
    apart = street.member.lab.container()
    street.member.attach(apart, "web", isolation_network="apart")
    apart.run(["sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6"])
    target, mine = eui64(street.mac(apart)), street.mac(street.rogue)
    (bridge,) = json.loads(street.member.node.run(["ip", "-j", "link", "show", "dev", street.bridge]))
    gateway = bytes.fromhex(bridge["address"].replace(":", ""))
    with apart.open_socket(socket.AF_PACKET, socket.SOCK_RAW) as ear:
        ear.bind(("eth0", 0x86DD))
        ear.settimeout(0.5)
        for source in (eui64(mine), eui64(street.mac(street.victim))):
            packet = datagram(source, target, (7, 7777), b"through the gateway")
            street.send(*[frame(mine, gateway, packet)] * 5)
        heard = []
        with suppress(TimeoutError):
            while True:
                heard.append(ear.recv(2000))
    assert not [each for each in heard if b"through the gateway" in each]
    street.member.detach(apart)


def test_a_port_gives_back_what_is_for_its_container_and_not_what_is_for_all(street: Street) -> None:
    """So that NAT may lead a container to itself, and nobody takes its own broadcasts for a neighbour's."""
    mine, address = street.mac(street.rogue), street.addresses[street.rogue]
    everywhere = "255.255.255.255" if street.version == 4 else "ff02::1"
    packets = [datagram(address, everywhere, (7, 7), b"for all")]
    if street.version == 6:
        packets.append(datagram(eui64(mine), everywhere, (7, 7), b"for all"))
    frames = [frame(mine, EVERYBODY, each) for each in packets]
    if street.version == 4:
        frames.append(frame(mine, EVERYBODY, arp(ARP_REQUEST, (mine, address), (bytes(6), street.gateway))))
    with street.rogue.open_socket(socket.AF_PACKET, socket.SOCK_RAW) as ear:
        ear.bind(("eth0", 3))  # ETH_P_ALL
        ear.settimeout(LIMIT)
        street.send(*frames, frame(mine, mine, datagram(address, street.gateway, (7, 7), b"for itself")))
        heard: list[bytes] = []
        while not heard or b"for itself" not in heard[-1]:
            data, about = ear.recvfrom(2000)
            if about[2] != socket.PACKET_OUTGOING and data[6:12] == mine:
                heard.append(data)
    assert len(heard) == 1, heard


def test_a_container_offers_no_addresses(street: Street) -> None:
    family, ports = (socket.AF_INET, (67, 68)) if street.version == 4 else (socket.AF_INET6, (547, 546))  # DHCP, DHCPv6
    mine, victim = street.mac(street.rogue), street.mac(street.victim)
    ends = street.addresses[street.rogue], street.addresses[street.victim]
    with (
        street.victim.open_socket(family, socket.SOCK_DGRAM) as client,
        street.victim.open_socket(family, socket.SOCK_DGRAM) as other,
    ):
        for each, port in ((client, ports[1]), (other, 7777)):
            each.bind(("", port))
            each.settimeout(LIMIT)
        for source in (ports[0], ports[0] + 1000):  # dhclient and udhcpc look at their own port alone
            street.send(frame(mine, victim, datagram(*ends, (source, ports[1]), b"offer")))
        street.send(frame(mine, victim, datagram(*ends, (ports[0], 7777), b"other")))
        assert other.recv(64) == b"other"
        client.settimeout(0)
        with pytest.raises(BlockingIOError):
            client.recv(64)


@pytest.mark.parametrize("kind", [131, 137], ids=["loose", "strict"])
@pytest.mark.parametrize("sender", ["container", "stranger of the LAN"])
def test_a_source_route_leads_into_no_isolation_network(street: Street, kind: int, sender: str) -> None:
    """Where the host takes them (accept_source_route) the destination that filters see is the gateway, or the host."""
    if street.version == 6:
        pytest.skip("Linux takes none of IPv6 that a filter does not see")
    lab, node = street.member.lab, street.member.node
    node.run(["sh", "-c", "for each in /proc/sys/net/ipv4/conf/*/accept_source_route; do echo 1 > $each; done"])
    apart = lab.container()
    target = street.member.attach(apart, "web", isolation_network="apart")
    if sender == "container":
        place, interface, ends = street.rogue, "eth0", (street.addresses[street.rogue], street.gateway)
        own, at = street.mac(street.rogue), street.bridge
    else:
        place, interface = lab.node(f"s{kind}"), "uplink"
        ends, at = (str(place.address), str(node.address)), "uplink"
        (link,) = json.loads(place.run(["ip", "-j", "link", "show", "dev", "uplink"]))
        own = bytes.fromhex(link["address"].replace(":", ""))
    (link,) = json.loads(node.run(["ip", "-j", "link", "show", "dev", at]))
    there = bytes.fromhex(link["address"].replace(":", ""))
    with ExitStack() as stack:
        ears = [
            stack.enter_context(each.open_socket(socket.AF_PACKET, socket.SOCK_RAW)) for each in (apart, street.victim)
        ]
        for each in ears:
            each.bind(("eth0", 0x0800))
            each.setblocking(False)
        mouth = stack.enter_context(place.open_socket(socket.AF_PACKET, socket.SOCK_RAW))
        mouth.bind((interface, 0))
        for hop in (target, street.addresses[street.victim]):
            packet = source_routed(datagram(*ends, (9, 9999), b"by a route"), kind, hop)
            for _ in range(3):
                mouth.send(frame(own, there, packet))
        time.sleep(SETTLE)
        heard = []
        for each in ears:
            with suppress(BlockingIOError):
                while True:
                    heard.append(each.recv(2000))
    assert not [each for each in heard if b"by a route" in each]
    street.member.detach(apart)


VLAN, PROVIDER = 0x8100, 0x88A8  # IEEE 802.1Q
DISGUISES = {
    "a VLAN": [(VLAN, 5)],
    "a priority": [(VLAN, 0)],
    "two VLANs": [(VLAN, 5), (VLAN, 6)],
    "a provider's VLAN": [(PROVIDER, 5), (VLAN, 6)],
}


@pytest.mark.parametrize("tags", DISGUISES.values(), ids=DISGUISES)
@pytest.mark.parametrize("claimed", ["third", "rogue"])
def test_a_tag_hides_no_forged_source_and_crosses_into_no_isolation_network(
    street: Street, tags: list[tuple[int, int]], claimed: str
) -> None:
    apart = street.member.lab.container()
    street.member.attach(apart, "web", isolation_network="apart")
    source = street.addresses[street.third if claimed == "third" else street.rogue]
    target = apart if claimed == "rogue" else street.victim
    to = street.addresses.get(target) or apart_address(street, apart)
    plain = frame(street.mac(street.rogue), street.mac(target), datagram(source, to, (7, 7), b"in disguise"))
    tagged = plain[:12] + b"".join(struct.pack("!HH", *tag) for tag in tags) + plain[12:]
    with target.open_socket(socket.AF_PACKET, socket.SOCK_RAW) as ear:
        ear.bind(("eth0", 3))  # ETH_P_ALL
        ear.setblocking(False)
        street.send(*[tagged] * 3)
        heard = []
        with suppress(BlockingIOError):
            while True:
                heard.append(ear.recv(2000))
    assert not [each for each in heard if b"in disguise" in each]
    street.member.detach(apart)


def apart_address(street: Street, container: Container) -> str:
    shown = json.loads(container.run(["ip", "-j", "address", "show", "dev", "eth0", "scope", "global"]))
    return next(str(each["local"]) for each in shown[0]["addr_info"] if each.get("family"))


def test_links_that_a_container_makes_of_its_own_get_nobody_anywhere(street: Street) -> None:
    """With CAP_NET_ADMIN it makes a bridge of eth0, a link with a MAC of its own, and takes a neighbour's address."""
    ip, address = ("ip", "-6") if street.version == 6 else ("ip",), street.addresses[street.third]
    known = entries(street)
    script = (
        "ip link add own0 link eth0 type macvlan mode bridge; ip link set own0 up;"
        f" ip address add {address}/{street.prefix} dev own0 || true; ping -c 1 -W 1 -I own0 {street.gateway}"
    )
    with pytest.raises(CommandFailed):
        street.rogue.run(["sh", "-c", script])
    assert entries(street) == known
    street.rogue.run(["sh", "-c", "ip link del own0; ip link add own1 type bridge; ip link set own1 up"])
    before = street.rogue.run([*ip, "route", "show", "default"]).strip()
    street.rogue.run(["ip", "link", "set", "eth0", "master", "own1"])
    ping(street.victim, address)
    ping(street.third, street.gateway)
    street.rogue.run(["ip", "link", "del", "own1"])
    assert street.rogue.run([*ip, "route", "show", "default"]).strip() == before
    ping(street.rogue, street.gateway)
    assert street.member.findings() == []


def test_a_source_of_the_outside_does_not_reach_the_uplink(street: Street) -> None:
    foreign = "8.8.8.8" if street.version == 4 else "2001:4860:4860::8888"
    target = str(street.member.lab.outside_address.ip)
    mine = street.mac(street.rogue)
    (link,) = json.loads(street.member.node.run(["ip", "-j", "link", "show", "dev", street.bridge]))
    gateway = bytes.fromhex(link["address"].replace(":", ""))
    with street.member.lab.capture(street.member.node) as capture:
        street.send(*[frame(mine, gateway, datagram(foreign, target, (7, 7), b"?"))] * 10)
        (leg,) = json.loads(street.rogue.run(["ip", "-j", "link", "show", "dev", "eth1"]))
        own = bytes.fromhex(leg["address"].replace(":", ""))
        host = bytes([0xFE]) + own[1:]
        street.send(*[frame(own, host, datagram(foreign, target, (7, 7), b"?"))] * 10, interface="eth1")
    assert not [each for each in capture.packets() if str(each.source) == foreign]


def test_a_container_costs_one_element_and_no_rule(street: Street) -> None:
    def count() -> tuple[int, int]:
        shown = json.loads(street.member.node.run(["nft", "-j", "list", "ruleset"]))["nftables"]
        holders = [holder for each in shown if (holder := each.get("set") or each.get("map"))]
        told = [each.get("elem", ()) for each in holders if "timeout" not in each.get("flags", ())]  # not by packets
        return sum("rule" in each for each in shown), sum(map(len, told))

    rules, elements = count()
    containers = [street.member.lab.container() for _ in range(5)]
    for each in containers:
        street.member.attach(each, "web")
    assert count() == (rules, elements + 5)
    for each in containers:
        street.member.detach(each)
    assert count() == (rules, elements)
