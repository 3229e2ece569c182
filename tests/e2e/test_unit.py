"""The unit of systemd: well formed, closed as far as it can be, and not closed to what the daemon does."""

import re
import subprocess
from pathlib import Path

import pytest
from lab import Lab
from lab.cluster import Member
from lab.traffic import ping

UNIT = Path(__file__).resolve().parents[2] / "deploy" / "overlayd.service"
MOST_EXPOSED = 35  # tenths of the ten points of `systemd-analyze security`

# Called by strace(1)'s way of starting a program, or a name that the kernel has for a call of another number.
NOT_THE_DAEMONS = {"restart_syscall"}


def analyze(*arguments: str) -> str:
    done = subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_it_is_well_formed(tmp_path: Path) -> None:
    unit = tmp_path / "overlayd.service"
    unit.write_text(re.sub("^ExecStart=.*", "ExecStart=/bin/true", UNIT.read_text(), flags=re.MULTILINE))
    held = tmp_path / "overlayd.socket"
    held.write_text(UNIT.with_suffix(".socket").read_text())
    assert analyze("verify", str(unit), str(held)) == ""


def test_it_is_closed_as_far_as_it_can_be() -> None:
    analyze("security", "--offline=true", f"--threshold={MOST_EXPOSED}", str(UNIT))


def allowed() -> set[str]:
    """The system calls that the unit lets through."""
    (line,) = re.findall("^SystemCallFilter=(.*)", UNIT.read_text(), flags=re.MULTILINE)
    calls, groups = set(), line.split()
    while groups:
        name = groups.pop()
        if not name.startswith("@"):
            calls.add(name)
            continue
        _, *listed = analyze("syscall-filter", name).splitlines()
        groups += [each.strip() for each in listed if not each.strip().startswith("#")]
    return calls


@pytest.mark.timeout(300)
def test_it_lets_through_every_system_call_of_a_life(tmp_path: Path) -> None:
    """A node with a tunnel, services of both kinds, containers and an isolation network, by whatever it starts."""
    trace = tmp_path / "trace"
    with Lab() as lab:
        member = Member(lab, 1, "alpha")
        member.node.program = ["strace", "-f", "-qq", "-o", str(trace), *member.node.program]
        member.start()
        member.set_up()
        member.set_up_service("web")
        member.request("setup_service_overlay", service="own", mode="dedicated")
        containers = [lab.container() for _ in range(3)]
        addresses = [member.attach(each, "web", isolation_network="blue", join_global=True) for each in containers[:2]]
        member.attach(containers[2], "own")
        ping(containers[0], addresses[1])
        member.request("register_dns", name="web", ip=addresses[0])
        member.request("doctor")
        member.detach(containers[0])
        member.request("teardown_service_overlay", service="own")
        member.request("shutdown")
        assert member.node.daemon is not None
        assert member.node.daemon.wait(60) == 0
        member.node.daemon = None
    used = set(re.findall(r"^\d+ +([a-z]\w*)\(", trace.read_text(errors="replace"), flags=re.MULTILINE))
    assert {"setns", "capset", "sendmsg", "fdatasync"} <= used, "the trace is one of the daemon"
    assert used - NOT_THE_DAEMONS - allowed() == set()
