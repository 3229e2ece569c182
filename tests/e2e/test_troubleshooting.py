"""Every code of docs/troubleshooting.md is a finding of a fault that a test plants: here, or where it says."""

import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from lab import Lab
from lab.cluster import Member
from lab.node import DAEMON
from lab.patience import until
from lab.processes import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
ENTRIES = re.findall(r"^\| `([a-z0-9-]+)` \|", PAGE, re.MULTILINE)
KEY = "C" * 42 + "A="


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def _wall(member: Member, *rules: str) -> None:
    """A firewall of the host's own."""
    member.node.run(["nft", "add table ip walls"])
    for rule in rules:
        member.node.run(["nft", rule])


def forward_blocked(member: Member, _: ExitStack) -> None:
    _wall(member, "add chain ip walls f { type filter hook forward priority 0; policy drop; }")


def wireguard_blocked(member: Member, _: ExitStack) -> None:
    chain = "add chain ip walls i { type filter hook input priority 0; }"
    _wall(member, chain, "add rule ip walls i udp dport 51820 drop")


def dns_blocked(member: Member, _: ExitStack) -> None:
    chain = "add chain ip walls i { type filter hook input priority 0; }"
    _wall(member, chain, "add rule ip walls i udp dport 53 drop")


def route_diverted(member: Member, _: ExitStack) -> None:
    _peer(member)
    member.node.run(["ip", "rule", "add", "pref", "100", "to", "10.200.9.0/24", "blackhole"])


def endpoint_unreachable(member: Member, _: ExitStack) -> None:
    _peer(member, endpoint="192.0.2.9:51820")
    member.node.run(["ip", "route", "del", "default"])


def no_way_out(member: Member, _: ExitStack) -> None:
    member.node.run(["ip", "address", "flush", "dev", "uplink"])


def uplink_not_forwarding(member: Member, _: ExitStack) -> None:
    member.node.write_sysctl("net/ipv4/conf/uplink/forwarding", "0")


def uplink_strict(member: Member, _: ExitStack) -> None:
    member.node.write_sysctl("net/ipv4/conf/uplink/rp_filter", "1")


def ipv6_disabled(member: Member, _: ExitStack) -> None:
    _peer(member, endpoint="[2001:db8::9]:51820")


def _peer(member: Member, **keys: object) -> None:
    peer = {"public_key": KEY, "endpoint": "", "allowed_ips": "10.200.9.0/24", "persistent_keepalive_secs": 0}
    member.request("add_peer", **{**peer, **keys})


def drift(member: Member, stack: ExitStack) -> None:
    """Again and again: the daemon looks every second, and adds it again."""
    _peer(member)
    again = f"while :; do wg set {member.request('status')['interface']} peer {KEY} remove; sleep 0.05; done"
    somebody = subprocess.Popen(member.node.command(["sh", "-c", again]))
    stack.callback(somebody.wait)
    stack.callback(somebody.kill)


def endpoint_unresolved(member: Member, _: ExitStack) -> None:
    _peer(member, endpoint="no.such.invalid:51820")


def key_nobodys(member: Member, _: ExitStack) -> None:
    keys = {"public_key": "A" * 43 + "=", "endpoint": "", "allowed_ips": "", "persistent_keepalive_secs": 0}
    member.request("add_peer", **keys)
    assert "this is no node's key" in member.node.log_tail()


def key_mismatch(member: Member, _: ExitStack) -> None:
    member.request("set_local_wg_pubkey", pubkey=KEY)


def allowed_ip_conflict(member: Member, _: ExitStack) -> None:
    _peer(member, allowed_ips=f"{member.slice},10.200.9.0/24")


def network_overlap(member: Member, _: ExitStack) -> None:
    member.node.run(["ip", "link", "add", "lan", "type", "bridge"])
    member.node.run(["ip", "address", "add", "10.200.77.1/24", "dev", "lan"])
    member.node.run(["ip", "link", "set", "lan", "up"])


def not_isolated(member: Member, _: ExitStack) -> None:
    member.request("setup_service_overlay", service="apart", mode="isolated")
    member.attach(member.lab.container(), "apart")


def grant_lost(member: Member, _: ExitStack) -> None:
    member.request("mint_edge_peer", name="laptop", ttl_secs=3600, allow=["web"])
    member.request("teardown_service_overlay", service="web")


def dns_unserved(member: Member, stack: ExitStack) -> None:
    """A program that listens at the wildcard address, and was there first."""
    member.node.stop()
    stack.enter_context(member.node.open_socket(kind=socket.SOCK_DGRAM)).bind(("0.0.0.0", 53))
    member.start()


def journal_displaced(member: Member, _: ExitStack) -> None:
    (member.node.data_dir / "journal").unlink()


def underlay_narrow(member: Member, _: ExitStack) -> None:
    member.node.run(["ip", "link", "set", "uplink", "mtu", "1300"])


def arp_ignored(member: Member, _: ExitStack) -> None:
    member.node.write_sysctl("net/ipv4/conf/all/arp_ignore", "8")


def interface_moved(member: Member, _: ExitStack) -> None:
    container, other = member.lab.container(), member.lab.container()
    member.attach(container, "web", join_global=True)
    container.run(["ip", "link", "set", "eth1", "netns", str(other.pid)])


def port_unmapped(member: Member, _: ExitStack) -> None:
    member.set_up({"stun_servers": ["none"], "port_mapping": True})


def relay_unreachable(member: Member, _: ExitStack) -> None:
    nobody = f"{member.lab.underlay.ip}:3478"
    member.set_up({"stun_servers": ["none"], "turn_servers": [{"addr": nobody, "username": "u", "credential": "c"}]})


def relay_down(member: Member, stack: ExitStack) -> None:
    relay = {"listen_port": 3478, "external_addr": str(member.node.address), "auth_credential": "c"}
    member.set_up({"stun_servers": ["none"], "relay_server": relay})
    member.node.stop()
    stack.enter_context(member.node.open_socket(kind=socket.SOCK_DGRAM)).bind((str(member.node.address), 3478))
    member.start()


def capability_missing(member: Member, _: ExitStack) -> None:
    member.node.stop()
    member.node.program = ["setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw", *DAEMON]
    member.start()


def device_silent(member: Member, stack: ExitStack) -> None:
    (pid,) = member.node.wireguard_pids()
    member.node.run(["kill", "-STOP", str(pid)])
    stack.callback(member.node.run, ["sh", "-c", f"kill -CONT {pid} || true"])


def cluster_disconnected(member: Member, _: ExitStack) -> None:
    member.node.stop()
    member.node.data_dir.rename(member.node.data_dir.with_name("old"))
    member.node.run([*DAEMON, "--teardown"])
    member.node.start("--etcd", "unix:/nowhere", "--cluster", "prod")
    member.connection = member.node.connect()


PLANTED: dict[str, Callable[[Member, ExitStack], None]] = {
    name.replace("_", "-"): plant
    for name, plant in dict(globals()).items()
    if name.replace("_", "-") in ENTRIES and callable(plant)
}

# code: the test that plants it, by its name, or a line of it.
ELSEWHERE = {
    "wireguard-unknown": "wireguard-unknown",
    "endpoint-misplaced": "endpoint-misplaced",
    "peer-silent": "peer-silent",
    "neighbour-silent": "neighbour-silent",
    "discovery-blocked": "discovery-blocked",
    "uplink-address": "uplink-address",
    "reverse-path-filtered": "reverse-path-filtered",
    "neighbour-told": "neighbour-told",
    "interface-mac": "interface-mac",
    "forwarding-off": "forwarding",
    "not-repaired": "test_what_the_sentinel_cannot_put_back",
    "container-gone": "test_requests_are_refused_as_a_whole_and_the_dead_are_buried_when_there_is_room",
    "journal-unwritable": "test_the_doctor_tells_of_a_disk_before_a_request_is_refused",
    "journal-behind": "test_a_start_without_room_forgets_the_dead_and_writes_it_later",
    "link-filtered": "link-filtered",
    "link-closed": "link-closed",
    "ipsec-diverted": "ipsec-diverted",
    "endpoint-diverted": "endpoint-diverted",
    "overlay-translated": "test_masquerade_of_everything",
    "connections-untracked": "connections-untracked",
    "arp-blocked": "test_arp_that_is_dropped",
    "iptables-unseen": "test_legacy_iptables_is_seen",
    "neighbours-crowded": "crowded(",
    "connections-crowded": "tracked(",
    "wireguard-missing": "no WireGuard on this host",
    "device-renewable": "test_the_command_and_the_doctor_speak_of_versions",
    "device-without-segmentation": "test_the_command_and_the_doctor_speak_of_versions",
    "dns-loop": "forwards to this node",
    "cluster-guarded": "test_an_etcd_that_lost_everything_and_then_went_back_removes_nobody",
    "cluster-conflict": "test_a_second_node_of_a_name_is_refused_and_told_who_has_it",
    "cluster-full": "test_a_cluster_without_free_blocks_is_told_and_nothing_stops",
    "cluster-record": "faults",
    "cluster-untold": "test_a_user_whose_token_expires_and_one_who_may_not",
    "cluster-janitor": "cluster-janitor",
    "cluster-zone": "cluster-zone",
}


@pytest.mark.parametrize("code", sorted(PLANTED))
def test_a_planted_fault_is_a_finding_of_that_code(code: str, stack: ExitStack) -> None:
    lab = stack.enter_context(Lab())
    member = Member(lab, 1, "alpha")
    member.start()
    member.set_up()
    member.set_up_service("web")
    member.attach(lab.container(), "web")
    assert member.findings() == []
    PLANTED[code](member, stack)
    (found, *_) = until(
        lambda: [each for each in member.findings() if each["code"] == code], lambda: str(member.findings())
    )
    assert found["remedy"], "what to do is said"
    if found["severity"] != "hint":
        until(lambda: found["object"] in member.node.overlayctl("call", "doctor"), member.node.log_tail)


def test_each_code_of_the_source_is_in_the_page_once() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "overlayd").rglob("*.py"))
    written = re.findall(r'(?:\bFinding\(\s*|\bcode=)"([a-z0-9-]+)"', source)
    assert len(written) >= 40, "they are found where they are made"
    assert sorted(ENTRIES) == sorted({*written})


def test_each_code_of_the_page_is_planted_by_a_test() -> None:
    assert {*PLANTED} | {*ELSEWHERE} == {*ENTRIES}
    assert not {*PLANTED} & {*ELSEWHERE}
    others = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py") if path.name != Path(__file__).name]
    for code, text in ELSEWHERE.items():
        assert any(text in other for other in others), code
