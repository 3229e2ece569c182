"""A disk without room: what has to be remembered is refused and not done, until there is room."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab, Refused
from lab.cluster import Member
from lab.patience import until


@pytest.fixture
def alpha(lab: Lab) -> Iterator[Member]:
    """A node whose data directory is a file system of 256 KiB."""
    member = Member(lab, 11, f"disk{len(lab.nodes)}")
    disk = member.node.data_dir
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", disk], check=True)
    try:
        member.start()
        member.set_up()
        member.set_up_service("web")
        yield member
        member.node.close()
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with pytest.raises(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filler


def exhaust(member: Member) -> Path:
    """Fill the disk, and the last page of the journal: with ever smaller changes."""
    names = [f"{number}.example" for number in range(9)]
    for name in names:
        member.request("register_dns", name=name, ip="10.200.0.9")
    filler = fill(member.node.data_dir)
    with pytest.raises(Refused, match="free space"):
        for number in range(1, 1000):
            member.request("set_local_node_id", node_id=number % 9)
    with pytest.raises(Refused, match="free space"):
        for name in names:
            member.request("unregister_dns", name=name)
    return filler


def veths(member: Member) -> list[str]:
    return [line.split()[0] for line in member.node.run(["ip", "-br", "link"]).splitlines() if line.startswith("veth-")]


def findings(member: Member) -> str:
    return str(member.request("doctor")["findings"])


def test_requests_are_refused_as_a_whole_and_the_dead_are_buried_when_there_is_room(lab: Lab, alpha: Member) -> None:
    first, second = lab.container(), lab.container()
    address = alpha.attach(first, "web")
    filler = exhaust(alpha)
    before = alpha.node.footprint()
    for op, keys in {
        "attach_container": {"handle": second.handle, "service": "web", "join_global": True},
        "detach_container": {"handle": first.handle},
        "setup_service_overlay": {"service": "api", "mode": "auto"},
        "teardown_service_overlay": {"service": "web"},
        "add_peer": {
            "public_key": "A" * 43 + "=",
            "endpoint": "",
            "allowed_ips": "10.200.99.0/24",
            "persistent_keepalive_secs": 0,
        },
        "teardown_global_overlay": {},
    }.items():
        with pytest.raises(Refused, match=r"No space left on device.*free space"):
            alpha.request(op, **keys)
    assert alpha.request("status")["service_count"] == 1
    assert alpha.node.footprint() == before
    first.kill()
    until(lambda: f"has ended, and still holds {address}" in findings(alpha), alpha.node.log_tail)
    filler.unlink()
    until(lambda: "still holds" not in findings(alpha), alpha.node.log_tail)
    assert alpha.attach(second, "web") != address, "which was released and is reused last"


def test_a_start_without_room_forgets_the_dead_and_writes_it_later(lab: Lab, alpha: Member) -> None:
    gone, stays = lab.container(), lab.container()
    alpha.attach(gone, "web")
    address = alpha.attach(stays, "web")
    filler = exhaust(alpha)
    alpha.node.stop()
    gone.kill()
    alpha.start()
    assert veths(alpha) == [f"veth-{stays.pid}-s@if2"]
    assert "otherwise than they are" in findings(alpha)
    filler.unlink()
    alpha.request("set_local_node_id", node_id=5)
    assert "otherwise than they are" not in findings(alpha)
    alpha.node.kill()
    alpha.start()
    assert alpha.attach(stays, "web") == address
    assert alpha.request("status")["service_count"] == 1
