"""`overlayd --teardown` removes what is ours and nothing else."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab
from lab.cluster import Member

FOREIGN = """
ip link add zl-foreign-b type bridge
ip link add veth-7-s type bridge
ip link set zl-foreign-b up alias 'overlayd bridge web'
ip address add 10.99.0.1/24 dev zl-foreign-b
ip route add 10.98.0.0/16 dev zl-foreign-b proto 111
nft add table inet foreign
nft add chain inet foreign forward '{ type filter hook forward priority 0; }'
LOG_LEVEL=error wireguard-go zl-foreign-g > /dev/null 2>&1 < /dev/null
"""


@pytest.fixture
def member() -> Iterator[Member]:
    """A node among things that are not ours; without a daemon."""
    with Lab() as lab:
        member = Member(lab, 1, "gamma")
        member.node.run(["sh", "-ec", FOREIGN])
        yield member


def set_up(member: Member) -> None:
    member.start()
    member.set_up()
    member.request("setup_service_overlay", service="web", mode="auto")
    member.request("setup_service_overlay", service="own", mode="dedicated")
    key = "/".join(["A" * 10] * 3) + "A" * 10 + "A="
    member.request("add_peer", public_key=key, endpoint="", allowed_ips="10.201.0.0/16", persistent_keepalive_secs=0)
    for service in ("web", "own"):
        member.attach(member.lab.container(), service, join_global=True, isolation_network="n")
    shared = {"platform": "host_shared", "id": "h"}
    member.request("attach_container", handle=shared, service="web", join_global=False)
    guest = {"platform": "guest_managed", "id": "g"}
    member.request("attach_container", handle=guest, service="web", join_global=False)


def tear_down(member: Member) -> tuple[int, str]:
    return member.node.try_daemon(member.node.daemon_argv("--teardown"))


def test_nothing_of_ours_is_left_and_nothing_else_is_touched(member: Member) -> None:
    bare, serving = member.node.footprint(), member.node.wireguard_pids()
    set_up(member)
    code, said = tear_down(member)
    assert code == os.EX_UNAVAILABLE, said
    assert str(member.node.data_dir) in said
    assert member.request("status")["service_count"] == 2
    member.node.stop()
    assert member.node.footprint() != bare
    for _ in range(2):
        assert tear_down(member) == (0, "")
        assert member.node.footprint() == bare
        assert member.node.wireguard_pids() == serving
        assert [path.name for path in (member.node.run_directory / "wireguard").iterdir()] == ["zl-foreign-g.sock"]
    assert (member.node.data_dir / "journal").exists()


def test_the_state_brings_everything_back(member: Member) -> None:
    set_up(member)
    view = member.node.footprint()
    member.node.stop()
    assert tear_down(member)[0] == 0
    member.start()
    again = member.node.footprint()
    for kind in ("addresses", "routes"):
        assert sorted(again[kind]) == sorted(view[kind])  # type: ignore[call-overload]


@pytest.mark.parametrize("damage", ["journal", "killed", "no directory"])
def test_damage_is_no_obstacle(member: Member, damage: str) -> None:
    bare, serving = member.node.footprint(), member.node.wireguard_pids()
    set_up(member)
    member.node.kill()
    if damage == "journal":
        journal = Path(member.node.data_dir, "journal")
        journal.write_bytes(b"\0" * journal.stat().st_size)
        code, said = member.node.try_daemon(member.node.daemon_argv())
        assert code == os.EX_CONFIG, said
    elif damage == "killed":
        for pid in member.node.wireguard_pids() - serving:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
    else:
        member.node.data_dir.rename(f"{member.node.data_dir}.away")
    assert tear_down(member) == (0, "")
    assert member.node.footprint() == bare
    assert member.node.wireguard_pids() == serving
    assert [path.name for path in (member.node.run_directory / "wireguard").iterdir()] == ["zl-foreign-g.sock"]
    assert member.node.data_dir.exists() == (damage != "no directory")
