"""A device that gets a newer wireguard-go: it runs on until it is renewed, and what that costs is told and small.

There need not be two versions: a copy of the program at another place is another program.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab, Ping, ping
from lab.cluster import CLUSTER, CLUSTER6, Member, Pair
from lab.patience import FACTOR
from lab.processes import stop

from overlayd.model.wireguard_go import lacks_segments

INSTALLED = shutil.which("wireguard-go") or ""
VERSION = subprocess.check_output([INSTALLED, "--version"], text=True).split()[1].removeprefix("v")


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """Another wireguard-go than the nodes begin with."""
    path = tmp_path / "wireguard-new"
    shutil.copy(INSTALLED, path)
    return path


@pytest.fixture(params=[CLUSTER, CLUSTER6], ids=["ipv4", "ipv6"])
def nodes(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with Lab() as lab:
        yield Pair(lab, request.param)


def configured(member: Member, interface: str) -> list[list[str]]:
    """The device's lines, a peer's allowed IPs in one order."""
    lines = member.node.run(["wg", "showconf", interface]).splitlines()
    return [sorted(re.split(" = |, ", line)) for line in lines]


def served_by(member: Member) -> set[str]:
    """What runs behind the devices of a node."""
    return {str(Path(f"/proc/{pid}/exe").readlink()) for pid in member.node.wireguard_pids()}


def test_a_newer_program_waits_for_a_renewal_that_keeps_the_sessions(nodes: Pair, newer: Path) -> None:
    alpha = nodes.alpha
    alpha.request("setup_service_overlay", service="own", mode="dedicated")
    before = alpha.node.footprint()
    alpha.node.stop()
    alpha.start("--wireguard-go", str(newer))
    assert served_by(alpha) == {INSTALLED}, "a start leaves the device to what serves it"
    assert {(each["backend"], each["version"]) for each in alpha.request("status")["devices"]} == {
        ("userspace", VERSION)
    }
    ping(nodes.web, nodes.db_address)
    interface = alpha.request("status")["interface"]
    configuration = configured(alpha, interface)
    traffic = Ping(nodes.db, nodes.web_address)
    try:
        traffic.wait_for(20)
        renewed = alpha.request("renew_devices", force=False)["devices"]
        traffic.wait_for(20)
    finally:
        lost = traffic.stop()
    assert served_by(alpha) == {str(newer)}
    assert [each["interface"] for each in renewed] == [each["interface"] for each in alpha.request("status")["devices"]]
    assert [(each["before"], each["after"]) for each in renewed] == [(VERSION, VERSION)] * 2
    assert (renewed[0]["sessions"], renewed[0]["answered"]) == (1, 1), renewed
    # What is lost is what was sent until the peer's handshake, 10 ms apart, and what waited for the process to end.
    # A handshake that nobody answers would cost five seconds.
    assert len(lost) * 10 <= renewed[0]["restored_ms"] + 3000 * FACTOR, (len(lost), renewed)
    assert configured(alpha, interface) == configuration, "no peer is kept awake that may sleep"
    assert _without_indexes(alpha.node.footprint()) == _without_indexes(before)
    ping(nodes.web, nodes.db_address)
    assert alpha.request("renew_devices", force=False)["devices"] == [], "there is nothing newer"
    assert alpha.findings() == []


def test_one_that_was_found_elsewhere_is_answered_where_it_is(nodes: Pair) -> None:
    """Beta dials, and alpha knows of no endpoint but what it hears."""
    alpha, beta = nodes.alpha, nodes.beta
    alpha.request("remove_peer", pubkey=beta.public_key)
    alpha.request(
        "add_peer", public_key=beta.public_key, endpoint="", allowed_ips=beta.slice, persistent_keepalive_secs=0
    )
    beta.announce(alpha, nodes.db_address)
    ping(nodes.db, nodes.web_address)
    (renewed,) = alpha.request("renew_devices", force=True)["devices"]
    assert (renewed["sessions"], renewed["answered"]) == (1, 1)
    ping(nodes.web, nodes.db_address)


def test_a_device_whose_process_hangs_is_renewed(nodes: Pair) -> None:
    alpha = nodes.alpha
    (pid,) = alpha.node.wireguard_pids()
    stop(pid)
    (renewed,) = alpha.request("renew_devices", force=True)["devices"]
    assert (renewed["sessions"], alpha.node.wireguard_pids() & {pid}) == (0, set())
    ping(nodes.web, nodes.db_address)


def test_the_command_and_the_doctor_speak_of_versions(nodes: Pair) -> None:
    alpha = nodes.alpha
    assert f"wireguard-go, version {VERSION} ({alpha.request('status')['interface']})" in alpha.node.overlayctl(
        "status"
    )
    said = alpha.node.overlayctl("device", "renew", "--all")
    assert re.search(rf"{VERSION} +{VERSION} +[0-9]+ ms", said), said
    assert alpha.node.overlayctl("device", "renew") == "every device is served by the newest already\n"
    if lacks_segments(VERSION):
        hints = alpha.request("doctor")["findings"]
        assert [(each["code"], VERSION in each["problem"]) for each in hints] == [("device-without-segmentation", True)]


def test_the_newest_of_those_in_path_is_started(tmp_path: Path) -> None:
    old, new = tmp_path / "a", tmp_path / "b"
    for place, version in ((old, "0.0.20180613"), (new, "9.9.9")):
        place.mkdir()
        program = place / "wireguard-go"
        program.write_text(
            f'#!/bin/sh\n[ "$1" = --version ] && echo wireguard-go v{version} && exit\n'
            f'touch {place}/ran\nexec {INSTALLED} "$@"\n'
        )
        program.chmod(0o755)
    with Lab() as lab:
        member = Member(lab, 1, "alpha")
        member.node.program = ["env", f"PATH={old}:{new}:{os.environ['PATH']}", *member.node.program]
        member.start()
        member.set_up()
        assert (new / "ran").exists()
        assert not (old / "ran").exists()


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with Lab() as lab:
        member = Member(lab, 1, "alpha")
        missing = tmp_path / "nothing"
        code, said = member.node.try_daemon(
            [*member.node.daemon_argv("--wireguard", "userspace", "--wireguard-go", str(missing))]
        )
        assert code != 0
        assert f"{missing} is no executable file" in said
        code, said = member.node.try_daemon(member.node.daemon_argv("--wireguard-go", "bin/wireguard-go"))
        assert (code, "not an absolute path" in said) == (78, True)


def _without_indexes(footprint: dict[str, object]) -> dict[str, object]:
    """A device that was made anew is another link of the same name, and stands elsewhere in the lists."""
    links = footprint["links"]
    assert isinstance(links, list)
    addresses = footprint["addresses"]
    assert isinstance(addresses, list)
    return {**footprint, "links": sorted([each[1:] for each in links], key=str), "addresses": sorted(addresses)}
