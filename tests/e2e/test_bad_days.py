"""A host on a bad day: a disk that becomes read-only, little memory, a daemon that gets no processor for a second."""

import base64
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from lab import Lab, Refused
from lab.cluster import Member, Pair
from lab.memory import limited
from lab.patience import until
from lab.traffic import ping

MIB = 1 << 20
PEERS = 1_000
STALL, PERIOD = 1.0, 0.5  # seconds: of each stop, and between two


@pytest.fixture
def disk(lab: Lab) -> Iterator[Member]:
    """A node whose data directory is a file system of its own."""
    member = Member(lab, 13, f"ro{len(lab.nodes)}")
    member.node.data_dir.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", member.node.data_dir], check=True)
    try:
        yield member
        member.node.close()
    finally:
        subprocess.run(["umount", "--lazy", member.node.data_dir], check=True)


def remount(directory: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", directory], check=True)


def test_a_file_system_that_has_become_read_only_is_named_and_gone_on_with_afterwards(disk: Member, lab: Lab) -> None:
    disk.start()
    disk.set_up()
    disk.set_up_service("web")
    container = lab.container()
    address = disk.attach(container, "web")
    disk.node.stop()
    remount(disk.node.data_dir, "ro")
    code, said = disk.node.try_daemon(disk.node.daemon_argv())
    assert code == 1, said
    assert "Read-only file system (errno 30)" in said
    assert "remount it writable" in said
    ping(disk.node, address)
    remount(disk.node.data_dir, "rw")
    disk.start()
    assert disk.attach(container, "web") == address


def test_the_doctor_tells_of_a_disk_before_a_request_is_refused(disk: Member) -> None:
    def codes() -> list[str]:
        return [each["code"] for each in disk.findings()]

    disk.start()
    assert codes() == []
    filler = disk.node.data_dir / "filler"
    with suppress(OSError):
        filler.write_bytes(bytes(MIB))
    (found,) = disk.findings()
    assert (found["code"], found["severity"]) == ("journal-unwritable", "error")
    assert re.search(r"cannot be written: its file system has room for \d+ bytes", found["problem"])
    filler.unlink()
    assert codes() == []


@pytest.mark.parametrize("attribute", ["i", "a"])  # appending is not enough: a start cuts what is torn
def test_an_attribute_of_the_journal_that_forbids_to_write_it_is_told(member: Member, attribute: str) -> None:
    node = member.node
    journal = node.data_dir / "journal"
    subprocess.run(["chattr", f"+{attribute}", journal], check=True)
    try:
        if attribute == "i":
            with pytest.raises(Refused, match=r"Operation not permitted .*lsattr, chattr -i"):
                member.request("register_dns", name="web", ip="10.200.1.9")
        (found,) = member.findings()
        assert (found["code"], found["severity"]) == ("journal-unwritable", "error")
        assert "cannot be opened: Operation not permitted (errno 1); look at its attributes" in found["problem"]
    finally:
        subprocess.run(["chattr", f"-{attribute}", journal], check=True)
    assert member.findings() == []
    member.request("register_dns", name="web", ip="10.200.1.9")


def test_a_thousand_peers_fit_into_96_mib_without_swap(lab: Lab) -> None:
    with limited(96 * MIB) as enter:
        member = Member(lab, 14, f"small{len(lab.nodes)}")
        member.node.program = [*enter, *member.node.program]
        member.start()
        member.set_up({"enabled": False})
        member.set_up_service("web")
        for number in range(PEERS):
            member.request(
                "add_peer",
                public_key=base64.b64encode(os.urandom(32)).decode(),
                endpoint=f"172.31.{number // 250}.{number % 250 + 1}:51820",
                allowed_ips=f"10.201.{number // 64}.{number % 64 * 4}/30",
                persistent_keepalive_secs=0,
            )
        address = member.attach(lab.container(), "web")
        ping(member.node, address)
        assert member.request("status")["peer_count"] == PEERS
        member.node.kill()
        member.start()
        assert member.request("status")["peer_count"] == PEERS
        ping(member.node, address)
        member.node.close()


def test_a_daemon_without_a_processor_for_a_second_now_and_then_breaks_nothing(lab: Lab) -> None:
    """Nothing is taken for hung, lost or unhealthy; every request is answered."""
    with Lab() as own:
        pair = Pair(own)
        node = pair.alpha.node
        assert node.daemon is not None
        serving = node.wireguard_pids()
        for _ in range(4):
            os.kill(node.daemon.pid, signal.SIGSTOP)
            time.sleep(STALL)  # what is tried, not what is waited for
            os.kill(node.daemon.pid, signal.SIGCONT)
            container = own.container()
            address = pair.alpha.attach(container, "web")
            ping(pair.alpha.node, address)
            ping(pair.web, pair.db_address)
            pair.alpha.detach(container)
            time.sleep(PERIOD)
        assert node.wireguard_pids() == serving
        findings = pair.alpha.request("doctor")["findings"]
        assert [finding for finding in findings if finding["severity"] == "error"] == []
        log = node.log.read_text()
        assert "does not answer" not in log
        assert "put right" not in log


def test_a_request_that_the_disk_refuses_says_what_to_do(disk: Member) -> None:
    """Under a daemon that runs: the directory is taken away from it, as a lost mount is."""
    disk.start()
    disk.set_up()
    assert disk.node.daemon is not None
    there = ["nsenter", "--target", str(disk.node.daemon.pid), "--mount"]
    subprocess.run([*there, "mount", "--bind", "-o", "ro", "/usr", disk.node.data_dir], check=True)
    try:
        with pytest.raises(Refused, match="errno"):
            disk.request("register_dns", name="web", ip="10.200.1.9")
        assert disk.request("status")["node_ip"]
    finally:
        subprocess.run([*there, "umount", disk.node.data_dir], check=True)
    until(lambda: disk.request("register_dns", name="web", ip="10.200.1.9")["result"] == "ok")
