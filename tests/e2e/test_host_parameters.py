"""Kernel parameters of a host as people set them: strict filters, a read-only /proc/sys, IPv6 switched off."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab, Refused, ping
from lab.cluster import CLUSTER, CLUSTER6, Member, Pair, besides_version
from lab.container import Container
from lab.lab import OUTSIDE
from lab.node import DAEMON
from lab.patience import until

# As a container engine mounts it for a container that is not privileged.
READ_ONLY = 'mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec "$@"'
# And again under another name, where it can be written.
ELSEWHERE = "mkdir -p /run/sys && mount --bind /proc/sys /run/sys && " + READ_ONLY


def findings(member: Member) -> list[dict[str, str]]:
    return besides_version(json.loads(member.node.try_overlayctl("doctor", "-o", "json")[1]))


def global_address(container: Container) -> str:
    (shown,) = json.loads(container.run(["ip", "-j", "-4", "address", "show", "eth1"]))
    return str(shown["addr_info"][0]["local"])


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def test_strict_reverse_path_filters_let_both_addresses_of_a_container_answer(lab: Lab) -> None:
    pair = Pair(lab)
    for node in (pair.alpha.node, pair.beta.node):
        for which in ("all", "default", "uplink"):
            node.write_sysctl(f"net/ipv4/conf/{which}/rp_filter", "1")
    both = lab.container()
    both.run(["sh", "-c", "for f in all default; do echo 1 > /proc/sys/net/ipv4/conf/$f/rp_filter; done"])
    address = pair.alpha.attach(both, "web", join_global=True)

    def everything_answers() -> None:
        for there in (address, global_address(both)):
            ping(pair.db, there, count=2)
            ping(pair.web, there, count=2)
        ping(both, pair.db_address, count=2)
        ping(both, str(OUTSIDE.ip), count=2)

    everything_answers()
    pair.alpha.node.kill()
    pair.alpha.start()
    everything_answers()
    leg = f"veth-{both.pid}-g"
    pair.alpha.node.write_sysctl(f"net/ipv4/conf/{leg}/rp_filter", "1")
    pair.alpha.node.run(["ip", "address", "flush", "dev", leg])
    shown = Path("/proc/sys/net/ipv4/conf", leg, "rp_filter")
    until(lambda: pair.alpha.node.run(["cat", shown]).strip() == "2")
    pair.alpha.node.stop()
    pair.alpha.start()
    everything_answers()
    assert {each["severity"] for each in findings(pair.alpha)} <= {"hint"}


@pytest.mark.parametrize("ipv6", [False, True])
def test_a_read_only_proc_sys_is_enough_once_the_host_forwards(lab: Lab, ipv6: bool) -> None:
    member = Member(lab, 1, "alpha", *([CLUSTER6] if ipv6 else []))
    for which in ("all", "default"):
        member.node.write_sysctl(f"net/ipv4/conf/{which}/rp_filter", "1")
    member.node.program = ["sh", "-c", READ_ONLY, "sh", *DAEMON]
    member.start()
    with pytest.raises(Refused, match=r"net/ipv4/ip_forward.*it must be 1: set it on the host beforehand"):
        member.set_up()
    member.node.write_sysctl("net/ipv4/ip_forward", "1")
    member.node.write_sysctl("net/ipv6/conf/all/forwarding", "1")
    member.set_up()
    member.set_up_service("web")
    member.request("setup_service_overlay", service="own", mode="dedicated")
    one, other = lab.container(), lab.container()
    member.attach(one, "web")
    address = member.attach(other, "own", join_global=True)
    ping(one, address)
    if not ipv6:
        member.request(
            "attach_container", handle={"platform": "guest_managed", "id": "vm"}, service="web", join_global=False
        )
        ping(one, str(OUTSIDE.ip))
    assert [each["code"] for each in findings(member)] == ["uplink-strict"]
    member.node.kill()
    member.start()
    ping(one, address)


def test_parameters_elsewhere(lab: Lab) -> None:
    member = Member(lab, 1, "alpha")
    member.node.program = ["sh", "-c", ELSEWHERE, "sh", *DAEMON]
    member.start("--proc-sys", "/run/sys")
    member.set_up()
    member.set_up_service("web")
    box = lab.container()
    member.attach(box, "web", join_global=True)
    ping(box, str(OUTSIDE.ip))
    assert member.node.run(["cat", "/proc/sys/net/ipv4/ip_forward"]).strip() == "1"
    member.node.kill()
    code, said = member.node.try_daemon(member.node.daemon_argv("--proc-sys", "/nowhere"))
    assert code == 78 and "proc-sys: find kernel parameters in /nowhere" in said


def test_a_container_and_a_host_that_switch_ipv6_off(lab: Lab) -> None:
    member = Member(lab, 1, "alpha", CLUSTER6)
    member.start()
    for which in ("default", "all"):
        member.node.write_sysctl(f"net/ipv6/conf/{which}/disable_ipv6", "1")
    member.set_up()
    member.set_up_service("web")
    one, other = lab.container(), lab.container()
    for box in (one, other):
        box.run(["sh", "-c", "for f in all default lo; do echo 1 > /proc/sys/net/ipv6/conf/$f/disable_ipv6; done"])
    member.attach(one, "web")
    address = member.attach(other, "web", join_global=True)
    ping(one, address)
    ping(one, "::1")
    ping(other, "::1")
    ping(one, str(member.request("status")["node_ip"]))
    assert findings(member) == []


def test_an_uplink_that_does_not_forward_is_named_at_once_and_by_the_doctor(lab: Lab) -> None:
    member = Member(lab, 1, "alpha")
    member.start()
    member.set_up()
    member.set_up_service("web")
    assert findings(member) == []
    member.node.write_sysctl("net/ipv4/conf/uplink/forwarding", "0")
    until(lambda: "net/ipv4/conf/uplink/forwarding is 0" in member.node.log.read_text())
    (found,) = findings(member)
    assert (found["code"], found["severity"]) == ("uplink-not-forwarding", "error")
    member.node.run(found["remedy"].partition(",")[0].split())
    assert findings(member) == []
    gone = "no longer in the overlay's way: net/ipv4/conf/uplink/forwarding"
    until(lambda: gone in member.node.log.read_text(), member.node.log_tail)


def test_links_that_answer_no_arp(lab: Lab) -> None:
    member = Member(lab, 1, "alpha")
    member.start()
    member.set_up()
    box, bridge = lab.container(), member.set_up_service("web")
    member.attach(box, "web")
    for link in ("all", bridge, "uplink"):
        parameter = f"net/ipv4/conf/{link}/arp_ignore"
        for harmless in ("1", "2"):
            member.node.write_sysctl(parameter, harmless)
            assert findings(member) == []
        member.node.write_sysctl(parameter, "8")
        (found,) = findings(member)
        assert (found["code"], found["severity"], found["object"]) == ("arp-ignored", "error", parameter)
        member.node.run(found["remedy"].partition(",")[0].split())
        assert findings(member) == []


def test_a_strict_uplink_is_a_hint_and_a_warning_where_there_are_two(lab: Lab) -> None:
    member = Member(lab, 1, "alpha")
    member.start()
    member.set_up()
    member.node.write_sysctl("net/ipv4/conf/uplink/rp_filter", "1")
    assert [(each["code"], each["severity"]) for each in findings(member)] == [("uplink-strict", "hint")]
    member.node.run(["ip", "link", "add", "uplink2", "type", "veth", "peer", "name", "away"])
    member.node.run(
        ["sh", "-ec", "ip link set uplink2 up; ip link set away up; ip address add 192.0.2.2/24 dev uplink2"]
    )
    member.node.run(["ip", "route", "add", "default", "via", "192.0.2.1", "metric", "500"])
    assert [(each["code"], each["severity"]) for each in findings(member)] == [("uplink-strict", "warning")]


def test_peers_in_ipv6_need_an_uplink_with_ipv6(lab: Lab) -> None:
    member = Member(lab, 1, "alpha")
    member.start()
    member.set_up()
    key = "C" * 42 + "A="
    member.request(
        "add_peer", public_key=key, endpoint="[fd31::9]:1", allowed_ips="10.200.9.0/24", persistent_keepalive_secs=0
    )
    (found,) = findings(member)  # a laboratory of IPv4 switches IPv6 off
    assert (found["code"], found["object"]) == ("ipv6-disabled", "net/ipv6/conf/uplink/disable_ipv6")
    member.node.run(found["remedy"].partition(",")[0].split())
    assert [each["code"] for each in findings(member)] == ["endpoint-unreachable"], "it has no address yet"
    member.node.run(["ip", "address", "add", "fd31::1/64", "dev", "uplink", "nodad"])
    assert findings(member) == []


def test_an_uplink_called_like_a_bridge_is_the_uplink_if_there_is_no_other() -> None:
    with Lab(mtu=1400) as lab:
        pair_of = [Member(lab, number, name) for number, name in enumerate(("alpha", "beta"), 1)]
        for member in pair_of:
            member.node.run(
                ["sh", "-ec", "ip link set uplink down; ip link set uplink name br-lan; ip link set br-lan up"]
            )
            member.node.run(["ip", "route", "add", "default", "via", "172.31.0.254"])
            member.start()
            device = member.set_up()["interface"]
            (shown,) = json.loads(member.node.run(["ip", "-j", "link", "show", device]))
            assert shown["mtu"] == 1340
            assert [each["address"] for each in member.candidates()] == [member.node.endpoint(51820)]
        alpha = pair_of[0]
        alpha.set_up_service("web")
        guest = alpha.request(
            "attach_container", handle={"platform": "guest_managed", "id": "vm"}, service="web", join_global=False
        )
        assert guest["peers"][0]["endpoint"] == alpha.node.endpoint(51820)
        alpha.node.run(["ip", "link", "set", "br-lan", "mtu", "1300"])
        until(lambda: json.loads(alpha.node.run(["ip", "-j", "link", "show", "zl-lab-alpha-g"]))[0]["mtu"] == 1280)


def is_told(member: Member, mtu: int) -> bool:
    found = (each for each in member.findings() if each["code"] == "underlay-narrow")
    return any(f"carries packets of {mtu} bytes" in each["problem"] for each in found)


@pytest.mark.parametrize("ipv6", [False, True])
def test_a_way_to_peers_that_is_too_narrow_for_tunnels(ipv6: bool) -> None:
    with Lab(ipv6=ipv6) as lab:
        pair = Pair(lab, CLUSTER6 if ipv6 else CLUSTER)
        alpha, there = pair.alpha, str(pair.beta.node.address)
        assert alpha.findings() == []
        narrow = 1340 if ipv6 else 1300  # the least that IPv6 lives with inside is 1280
        for change, undo in (
            (f"ip link set uplink mtu {narrow}", "ip link set uplink mtu 1500"),
            (f"ip route add {there} dev uplink mtu {narrow}", f"ip route del {there} dev uplink"),
        ):
            alpha.node.run(["sh", "-ec", change])
            until(lambda: is_told(alpha, narrow), alpha.node.log_tail)
            alpha.node.run(["sh", "-ec", undo])
            until(lambda: alpha.findings() == [], alpha.node.log_tail)
