"""Kernel parameters of a host as people set them: strict filters, a read-only /proc/sys, IPv6 switched off."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab, Refused, ping
from lab.cluster import CLUSTER6, Member, Pair
from lab.container import Container
from lab.lab import OUTSIDE
from lab.node import CONTROL, DAEMON
from lab.processes import environment

# As a container engine mounts it for a container that is not privileged.
READ_ONLY = 'mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec "$@"'
# And again under another name, where it can be written.
ELSEWHERE = "mkdir -p /run/sys && mount --bind /proc/sys /run/sys && " + READ_ONLY


def findings(member: Member) -> list[dict[str, str]]:
    argv = member.node.command([*CONTROL, "--socket", str(member.node.socket), "doctor", "-o", "json"])
    done = subprocess.run(argv, capture_output=True, text=True, env=environment(), timeout=60, check=False)
    found: list[dict[str, str]] = json.loads(done.stdout)
    return found


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
    while pair.alpha.node.run(["cat", shown]).strip() != "2":
        pass  # the test's time-out ends it
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
    assert findings(member) == []
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
