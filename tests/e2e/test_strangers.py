"""A start that does not know what is on the host leaves it alone; what a start removes is told."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab, ping
from lab.cluster import Member

BAD_CONFIGURATION = os.EX_CONFIG  # 78


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def serving(member: Member) -> tuple[str, str]:
    """Two containers of a service; returns the addresses.  The daemon has stopped."""
    member.start()
    member.set_up({"enabled": False})
    member.set_up_service("web")
    containers = member.lab.container(), member.lab.container()
    addresses = [member.attach(each, "web") for each in containers]
    member.node.stop()
    return addresses[0], addresses[1]


def refused(member: Member, directory: Path) -> str:
    """What a start with that data directory says, which leaves host and directory as they are."""
    node = member.node
    before, state = node.footprint(), {path.name: path.read_bytes() for path in directory.glob("journal*")}
    argv = [*node.program, "--data-dir", str(directory), "--socket", str(node.socket)]
    code, said = node.try_daemon(argv)
    assert code == BAD_CONFIGURATION, said
    assert node.footprint() == before
    assert {path.name: path.read_bytes() for path in directory.glob("journal*")} == state
    assert "wrong --data-dir" in said
    assert "overlayd --teardown" in said
    return said


def test_an_empty_directory_leaves_living_containers_alone(lab: Lab, tmp_path: Path) -> None:
    member = Member(lab, 1, "alpha")
    first, second = serving(member)
    said = refused(member, tmp_path / "typo")
    assert "carries 4 links" in said
    ping(member.node, first)
    ping(member.node, second)
    member.start()
    assert member.request("status")["service_count"] == 1


@pytest.mark.parametrize("alive", [True, False], ids=["tunnel alive", "tunnel gone"])
def test_the_state_of_another_node_is_told_from_this_ones(lab: Lab, tmp_path: Path, alive: bool) -> None:
    alpha, beta = Member(lab, 1, "alpha"), Member(lab, 2, "beta")
    serving(beta)
    serving(alpha)
    shutil.copytree(beta.node.data_dir, tmp_path / "foreign")
    if alive:
        assert "has the public key" in refused(alpha, tmp_path / "foreign")
    alpha.start()
    assert alpha.request("status")["service_count"] == 1


def test_after_a_teardown_an_empty_directory_is_a_fresh_start(lab: Lab, tmp_path: Path) -> None:
    member = Member(lab, 1, "alpha")
    serving(member)
    refused(member, tmp_path / "new")
    code, said = member.node.try_daemon(member.node.daemon_argv("--teardown"))
    assert code == 0, said
    member.node.data_dir = tmp_path / "new"
    member.start()
    member.set_up({"enabled": False})


def test_what_a_start_removes_is_told_one_line_each(lab: Lab, tmp_path: Path) -> None:
    """The state is an older backup, from before one of the services."""
    member = Member(lab, 1, "alpha")
    serving(member)
    backup = (member.node.data_dir / "journal").read_bytes()
    member.start()
    bridge = member.set_up_service("later")
    member.node.kill()
    (member.node.data_dir / "journal").write_bytes(backup)
    (member.node.data_dir / "journal").chmod(0o600)
    mark = len(member.node.log.read_text())
    member.start()
    said = [line for line in member.node.log.read_text()[mark:].splitlines() if "removed" in line]
    assert [f"start: bridge {bridge} is not wanted: removed" in line for line in said].count(True) == 1, said
