"""What somebody else changes or removes is put back within moments, and the log says what it was."""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psutil
import pytest
from lab import Lab, ping
from lab.cluster import Member, Pair
from lab.lab import OUTSIDE
from lab.patience import until
from lab.processes import CommandFailed

from overlayd.model.backoff import CALM

STRANGER = "c3RyYW5nZXIgc3RyYW5nZXIgc3RyYW5nZXIgc3RyYW4="  # the key of a peer that nobody asked for


class Watched:
    """A node alone with a service and two containers, one of them in the global overlay too; and its log."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.member = Member(lab, 1, "alpha")
        self.node = self.member.node
        self.member.start()
        self.device = self.member.set_up()["interface"]
        self.bridge = self.member.set_up_service("web")
        self.box, self.other = lab.container(), lab.container()
        self.address = self.member.attach(self.box, "web", join_global=True, isolation_network="n")
        self.neighbour = self.member.attach(self.other, "web", isolation_network="n")
        self.gateway = str(json.loads(self.box.run(["ip", "-j", "route", "show", "default"]))[0]["gateway"])
        self.view = self.node.footprint()

    def do(self, command: str) -> None:
        self.node.run(["sh", "-c", command])

    def said(self) -> str:
        return self.node.log.read_text()

    def stand(self) -> None:
        """Let what was put back count as standing: else its next loss is one of a series, and waits ever longer, of
        which the log tells the 1st, 2nd, 4th...
        """
        time.sleep(2 * CALM)

    def await_repair(self) -> None:
        """Wait until all is as it was."""
        until(lambda: comparable(self.node.footprint()) == comparable(self.view), self.node.log_tail)


def comparable(view: dict[str, Any]) -> dict[str, Any]:
    """Without the numbers that a link made anew has anew, and whatever table comes first."""
    links = sorted(str(link[1:]) for link in view["links"])
    tables = sorted(view["firewall"], key=lambda statement: str([body.get("family") for body in statement.values()]))
    return {**view, "links": links, "addresses": sorted(view["addresses"]), "firewall": tables}


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    with Lab() as lab:
        yield Watched(lab)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("nft flush ruleset", r"members of nftables sets are missing or differ, by nft"),
        ("nft delete table inet overlayd", "by nft"),
        ("nft flush table bridge overlayd", "by nft"),
        ("nft add rule inet overlayd forward drop", "by nft"),
        ("nft add chain inet overlayd mine '{{ type filter hook forward priority 10; policy drop; }}'", "by nft"),
        ("nft flush map inet overlayd network4", "by nft"),
        ("ip link del {bridge}", "bridge {bridge} is missing"),
        ("ip link set {bridge} down", "bridge {bridge} is broken: it is down"),
        ("ip link set {bridge} mtu 1300", "bridge {bridge} has mtu 1300, not 1440"),
        ("ip link set {bridge} name other", "bridge {bridge} has name other"),
        (
            "ip link set {bridge} type bridge no_linklocal_learn 0",
            "bridge {bridge} is broken: its option no_linklocal_learn is 0, not 1",
        ),
        ("ip link set {bridge} group 0", "bridge {bridge} is missing"),
        ("ip address flush dev {bridge}", "{bridge} does not have the address 10.200.40.65/26 alone, by"),
        (
            "ip address add 10.66.0.1/24 dev {bridge}",
            "bridge {bridge} does not have the address 10.200.40.65/26 alone, by",
        ),
        ("ip link del {veth}-s", "{veth}-s is missing"),
        ("ip link set {veth}-s nomaster", "{veth}-s is not on its bridge"),
        ("ip link set {veth}-s down", "{veth}-s is broken: it is down"),
        ("ip link set {veth}-s mtu 1300", "{veth}-s has mtu 1300, not 1440"),
        (
            "bridge fdb del $(cat /sys/class/net/{bridge}/address) dev {bridge} self",
            "bridge {bridge} is broken: its forwarding database does not have its own MAC",
        ),
        (
            "bridge fdb del {mac} dev {veth}-s master",
            "{veth}-s is broken: its bridge has not been told of the MAC {mac}",
        ),
        (
            "bridge fdb replace {mac} dev {other} master static",
            "{veth}-s is broken: its bridge has not been told of the MAC {mac}",
        ),
        (
            "bridge fdb replace {mac} dev {bridge} self permanent",
            "{veth}-s is broken: its bridge has not been told of the MAC {mac}",
        ),
        (
            "bridge fdb replace $(cat /sys/class/net/{bridge}/address) dev {veth}-s master static",
            "bridge {bridge} is broken: its forwarding database does not have its own MAC",
        ),
        ("ip link del {veth}-g", "{veth}-g is missing"),
        ("ip route flush proto 111", "{veth}-g"),
        ("ip link del {device}", "device {device} is missing"),
        ("ip link set {device} down", "device {device} is broken: it is down"),
        ("ip link set {device} mtu 1300", "device {device} has mtu 1300"),
        ("ip link set {device} name another", "device {device} has name another, not {device}"),
        ("ip link set {device} txqueuelen 0", "device {device} is broken: its txqueuelen is 0, and it drops all"),
        ("ip address flush dev {device}", "device {device} has addresses none, not 10.200.1.1/16, by"),
        ("ip route del 10.200.0.0/16 dev {device}", "device {device} is broken: its route to 10.200.0.0/16 is gone"),
        (
            "ip route del 10.200.40.64/26 dev {bridge}",
            "bridge {bridge} is broken: its route to 10.200.40.64/26 is gone",
        ),
        ("echo 0 > /proc/sys/net/ipv4/ip_forward", "net/ipv4/ip_forward is 0"),
        ("echo 1 > /proc/sys/net/ipv4/conf/{bridge}/rp_filter", "rp_filter is 1"),
        ("echo 0 > /proc/sys/net/ipv4/conf/{device}/forwarding", "forwarding is 0"),
    ],
)
def test_it_is_put_back(watched: Watched, damage: str, told: str) -> None:
    mac = json.loads(watched.box.run(["ip", "-j", "link", "show", "eth0"]))[0]["address"]
    names = {"bridge": watched.bridge, "device": watched.device, "veth": f"veth-{watched.box.pid}", "mac": mac}
    names["other"] = f"veth-{watched.other.pid}-s"
    time.sleep(0.3)  # the last damage, perhaps to the same thing, was long ago
    before = len(watched.said())
    watched.do(damage.format(**names))
    watched.await_repair()
    until(lambda: told.format(**names) in watched.said()[before:])
    ping(watched.box, watched.neighbour, count=2)
    ping(watched.box, str(OUTSIDE.ip), count=2)
    ping(watched.node, watched.address, count=2)
    assert_forwarding(watched)


@pytest.mark.parametrize(
    ("damage", "file", "value"),
    [
        ("ip link set {bridge} type bridge stp_state 1", "{bridge}/bridge/stp_state", "0"),
        ("echo 1 > /sys/class/net/{bridge}/bridge/stp_state", "{bridge}/bridge/stp_state", "0"),
        ("ip link set {bridge} type bridge forward_delay 1500", "{bridge}/bridge/forward_delay", "0"),
        ("ip link set {bridge} type bridge mcast_snooping 1", "{bridge}/bridge/multicast_snooping", "0"),
        ("ip link set {bridge} arp off", "{bridge}/flags", "0x1003"),
        ("ip link set {bridge} multicast off", "{bridge}/flags", "0x1003"),
        ("bridge link set dev {veth}-s isolated on", "{veth}-s/brport/isolated", "0"),
        ("echo 1 > /sys/class/net/{veth}-s/brport/isolated", "{veth}-s/brport/isolated", "0"),
        ("ip link set {veth}-s type bridge_slave isolated on", "{veth}-s/brport/isolated", "0"),
        ("bridge link set dev {veth}-s learning off flood off", "{veth}-s/brport/learning", "1"),
        ("bridge link set dev {veth}-s learning off flood off", "{veth}-s/brport/unicast_flood", "1"),
        ("bridge link set dev {veth}-s mcast_flood off", "{veth}-s/brport/multicast_flood", "1"),
        ("bridge link set dev {veth}-s bcast_flood off", "{veth}-s/brport/broadcast_flood", "1"),
        ("bridge link set dev {veth}-s neigh_suppress on", "{veth}-s/brport/neigh_suppress", "0"),
        ("bridge link set dev {veth}-s guard on", "{veth}-s/brport/bpdu_guard", "0"),
        ("bridge link set dev {veth}-s state 0", "{veth}-s/brport/state", "3"),
        ("bridge link set dev {veth}-s state 4", "{veth}-s/brport/state", "3"),
    ],
)
def test_options_that_cut_containers_off_are_put_back(watched: Watched, damage: str, file: str, value: str) -> None:
    watched.stand()
    names = {"bridge": watched.bridge, "veth": f"veth-{watched.box.pid}"}
    path = "/sys/class/net/" + file.format(**names)
    assert watched.node.run(["cat", path]).strip() == value
    watched.do(damage.format(**names))
    until(lambda: watched.node.run(["cat", path]).strip() == value)
    assert " is broken: its " in watched.said()
    ping(watched.box, watched.neighbour, count=2)
    assert watched.node.overlayctl("doctor").startswith("all is as it should be\n")


@pytest.mark.parametrize("link", ["{bridge}", "{leg}"])
@pytest.mark.parametrize("running", [True, False], ids=["while it runs", "while it does not"])
def test_a_mac_that_somebody_told_the_host_is_forgotten(watched: Watched, link: str, running: bool) -> None:
    watched.stand()
    end = {"{bridge}": ("eth0", "s"), "{leg}": ("eth1", "g")}[link]
    link = link.format(bridge=watched.bridge, leg=f"veth-{watched.box.pid}-g")
    (shown,) = json.loads(watched.box.run(["ip", "-j", "address", "show", end[0]]))
    address = next(each["local"] for each in shown["addr_info"] if each["family"] == "inet")
    if not running:
        watched.node.kill()
    watched.do(f"ip neigh replace {address} lladdr 02:00:00:00:00:99 dev {link} nud permanent")
    if running:
        said = f"{link} was told that {address} is at 02:00:00:00:00:99, not {shown['address']}"
        until(lambda: said in watched.said(), watched.node.log_tail)
    else:
        watched.member.start()
    until(lambda: "02:00:00:00:00:99" not in watched.node.run(["ip", "neigh", "show", "dev", link]))
    assert watched.member.findings() == []
    ping(watched.node, address, count=2)


@pytest.mark.parametrize(
    ("link", "kind"),
    [("{bridge}", "vrf table 7"), ("{device}", "vrf table 7"), ("{leg}", "vrf table 7"), ("{leg}", "bridge")],
)
def test_a_link_that_is_made_a_part_of_another_one_is_taken_out(watched: Watched, link: str, kind: str) -> None:
    names = {"bridge": watched.bridge, "device": watched.device, "leg": f"veth-{watched.box.pid}-g"}
    try:
        watched.do(f"ip link add taker type {kind} && ip link set taker up")
    except CommandFailed:
        pytest.skip(f"this kernel has no link of the kind {kind}")
    try:
        watched.do(f"ip link set {link.format(**names)} master taker")
        until(lambda: "master taker" not in watched.node.run(["ip", "link"]), watched.node.log_tail)
    finally:
        watched.do("ip link del taker")
    watched.await_repair()
    ping(watched.box, watched.neighbour, count=2)
    ping(watched.box, str(OUTSIDE.ip), count=2)
    ping(watched.node, watched.address, count=2)


def test_what_is_changed_while_nobody_watches_is_put_back_at_the_start(watched: Watched) -> None:
    veth = f"veth-{watched.box.pid}-s"
    watched.node.stop()
    watched.do(f"bridge link set dev {veth} isolated on; ip link set {watched.bridge} type bridge stp_state 1")
    watched.member.start()
    shown = watched.node.run(
        ["cat", f"/sys/class/net/{veth}/brport/isolated", f"/sys/class/net/{watched.bridge}/bridge/stp_state"]
    )
    assert shown.split() == ["0", "0"]


@pytest.mark.parametrize("running", [True, False])
def test_a_device_without_a_queue_carries_again(pair: Pair, running: bool) -> None:
    node, interface = pair.alpha.node, pair.alpha.request("status")["interface"]
    if not running:
        node.stop()
    node.run(["ip", "link", "set", interface, "txqueuelen", "0"])
    if not running:
        pair.alpha.start()
    until(lambda: json.loads(node.run(["ip", "-j", "link", "show", interface]))[0].get("txqlen"), node.log_tail)
    ping(pair.web, pair.db_address)
    assert pair.alpha.findings() == []


def test_a_container_that_sets_its_own_end_down_is_let_be(watched: Watched) -> None:
    before = len(watched.said())
    watched.box.run(["ip", "link", "set", "eth0", "down"])
    time.sleep(0.5)
    assert "put right" not in watched.said()[before:]
    watched.box.run(["ip", "link", "set", "eth0", "up"])
    watched.box.run(["ip", "route", "replace", "default", "via", watched.gateway])
    ping(watched.box, watched.neighbour, count=2)


def assert_forwarding(watched: Watched) -> None:
    names = (
        f"{name}/{parameter}" for name in (watched.bridge, watched.device) for parameter in ("forwarding", "rp_filter")
    )
    paths = ["net/ipv4/ip_forward", *(f"net/ipv4/conf/{name}" for name in names)]
    show = ["cat", *(f"/proc/sys/{path}" for path in paths)]
    until(lambda: watched.node.run(show).split() == ["1", "1", "2", "1", "2"], watched.node.log_tail)


def test_a_wireguard_process_that_is_killed_comes_back_with_its_peers(pair: Pair) -> None:
    alpha = pair.alpha
    ping(pair.web, pair.db_address)
    interface = alpha.request("status")["interface"]
    before = alpha.node.run(["wg", "showconf", interface])
    (killed,) = alpha.node.wireguard_pids()
    os.kill(killed, signal.SIGKILL)
    until(lambda: alpha.node.wireguard_pids() not in (set(), {killed}))
    until(lambda: f"device {interface} is missing" in alpha.node.log.read_text())
    until(lambda: shown(alpha, interface) == before, alpha.node.log_tail)
    ping(pair.web, pair.db_address)


def shown(member: Member, interface: str) -> str:
    """The device as wg has it; nothing while no process serves it."""
    with suppress(CommandFailed):
        return member.node.run(["wg", "showconf", interface])
    return ""


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("wg set {device} peer {key} remove", "peer {start} of {device} is missing"),
        (
            "wg set {device} peer {stranger} allowed-ips 10.200.115.0/24",
            "peer c3RyYW5n of {device} is not wanted",
        ),
    ],
)
def test_peers_changed_by_hand_are_put_back(pair: Pair, damage: str, told: str) -> None:
    alpha, key = pair.alpha, pair.beta.public_key
    names = {"device": alpha.request("status")["interface"], "key": key, "start": key[:8], "stranger": STRANGER}
    time.sleep(2.5)  # what has just come is perhaps on its way: two readings
    before, said = alpha.node.run(["wg", "showconf", names["device"]]), len(alpha.node.log.read_text())
    alpha.node.run(damage.format(**names).split())
    until(lambda: told.format(**names) in alpha.node.log.read_text()[said:])
    until(lambda: alpha.node.run(["wg", "showconf", names["device"]]) == before)
    ping(pair.web, pair.db_address)


def test_a_container_that_deletes_its_own_interface_in_a_loop_is_not_fought(watched: Watched, lab: Lab) -> None:
    box = lab.container()
    watched.member.attach(box, "web")
    started = time.monotonic()
    box.run(["sh", "-c", "end=$(($(date +%s) + 2)); while [ $(date +%s) -lt $end ]; do ip link del eth0; done || true"])
    told = until(lambda: watched.said().count(f"veth-{box.pid}-s is missing"), watched.node.log_tail)
    taken = time.monotonic() - started
    watched.member.detach(box)
    # After 50, 100, 200 ms, and when it stood for 250 ms, which it may while the container waits for a processor.
    assert told <= 1 + 4 * (1 + taken / 0.6), "the first time, and then ever more rarely"
    ping(watched.box, watched.neighbour, count=2)


def test_an_adversary_costs_little(watched: Watched) -> None:
    """Somebody who sets the MTU of a bridge back as fast as possible keeps the daemon from doing little else."""
    assert watched.node.daemon is not None
    daemon = psutil.Process(watched.node.daemon.pid)
    used = sum(daemon.cpu_times()[:2])
    with suppress(CommandFailed):
        watched.do(f"timeout 2 sh -c 'while true; do ip link set {watched.bridge} mtu 1300; done'")
    assert sum(daemon.cpu_times()[:2]) - used < 1.0
    watched.await_repair()


def test_the_mtu_follows_the_way_out(watched: Watched) -> None:
    watched.do("ip link set uplink mtu 1400")
    mtu = 1400 - 60
    for place, interface in ((watched.node, watched.bridge), (watched.node, watched.device), (watched.box, "eth0")):
        until(lambda place=place, interface=interface: f"mtu {mtu} " in place.run(["ip", "link", "show", interface]))
    watched.do("ip link set uplink mtu 1500")
    watched.await_repair()
    ping(watched.box, watched.neighbour, count=2, options=["-M", "do", "-s", "1400"])
