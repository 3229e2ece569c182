"""The blocks of docs/fleet.md, run on nodes as they stand there; stand-ins are systemctl, apt and /var/lib."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab, ping
from lab.cluster import Member
from lab.patience import LIMIT, until
from pages import blocks

BLOCKS = dict(
    zip(
        ("upgrade", "backup", "restore", "moved", "forget", "away"),
        blocks("fleet"),
        strict=True,
    )
)

# $1: a directory that stands for the host's /var/lib and /var/backups.  An upgrade installs the version that is there.
HOST = """
mount --bind "$1" /var/lib
mount --bind "$1" /var/backups
overlayd() { "$PYTHON" -c 'from overlayd.cli import daemon; daemon()' "$@"; }
overlayctl() { "$PYTHON" -c 'from overlayd.cli import control; control()' "$@"; }
systemctl() {
  case $1 in
    start)
      (overlayd >> "$LOG" 2>&1 & echo $! > /run/overlayd.pid)
      until overlayctl version --timeout 1 > /dev/null 2>&1; do sleep 0.05; done ;;
    stop)
      pid=$(cat /run/overlayd.pid); pkill -TERM -P "$pid" || kill "$pid"
      while [ -e /run/overlayd/overlayd.sock ]; do sleep 0.05; done ;;
  esac
}
apt() { systemctl stop; systemctl start; }
"""


class Host(Member):
    """A member whose daemon is started by the page's own words."""

    def __init__(self, lab: Lab, number: int, name: str, directory: Path) -> None:
        super().__init__(lab, number, name)
        self.node.socket = self.node.run_directory / "overlayd/overlayd.sock"
        self.directory = directory
        directory.mkdir(exist_ok=True)

    def paste(self, script: str, **variables: str) -> str:
        given = {"PYTHON": sys.executable, "LOG": str(self.node.log), **variables}
        assignments = "".join(f"{name}='{value}'\n" for name, value in given.items())
        return self.node.run(["bash", "-euc", f"{assignments}{HOST}{script}", "bash", self.directory])

    def serve(self) -> None:
        self.paste("systemctl start")
        self.connection = self.node.connect()


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def test_a_node_is_upgraded_backed_up_and_replaced(lab: Lab, tmp_path: Path) -> None:
    alpha, beta = Host(lab, 1, "alpha", tmp_path / "alpha"), Host(lab, 2, "beta", tmp_path / "beta")
    for host in (alpha, beta):
        host.serve()
        host.set_up()
    alpha.introduce(beta)
    beta.introduce(alpha)
    beta.set_up_service("web")
    container = lab.container()
    beta.attach(container, "web")
    ping(alpha.node, "10.200.2.1")

    assert "all is" in beta.paste(BLOCKS["upgrade"])
    ping(alpha.node, "10.200.2.1")
    beta.paste(BLOCKS["backup"])
    archive = beta.directory / "overlayd.tgz"
    assert archive.stat().st_mode & 0o077 == 0

    # The machine burns; another one takes its place, at another address, and has its container no longer.
    beta.paste("systemctl stop")
    lab.nodes.remove(beta.node)
    beta.node.run(["ip", "link", "set", "uplink", "down"])
    container.kill()
    place = Host(lab, 2, "gamma", tmp_path / "gamma")
    place.serve()
    archive.rename(place.directory / "overlayd.tgz")
    assert "all is as it should be" in place.paste(BLOCKS["restore"])
    place.connection = place.node.connect()
    assert place.request("status")["public_key"] == beta.public_key
    endpoint = place.node.endpoint(51820)
    alpha.paste(BLOCKS["moved"], OTHER_KEY=beta.public_key, NEW_ENDPOINT=endpoint, SLICE=beta.slice)
    alpha.node.run(["ping", "-c", "1", "-w", str(int(LIMIT)), "10.200.2.1"])

    alpha.paste(BLOCKS["forget"], OTHER_KEY=beta.public_key)
    assert alpha.request("status")["peer_count"] == 0
    place.paste(BLOCKS["away"])
    assert not [each for each in place.node.footprint()["links"] if str(each[1]).startswith("zl-")]  # type: ignore[attr-defined]


def test_the_steps_of_the_migration_remove_what_another_daemon_left(lab: Lab) -> None:
    (block,) = blocks("migration")
    member = Member(lab, 1, "alpha")
    member.node.run(["ip", "link", "add", "zl-lab-alpha-g", "type", "bridge"])
    member.node.run(["ip", "link", "add", "zl-407bb32319-b", "type", "bridge"])
    member.node.run(["sh", "-euc", block])
    assert "zl-" not in member.node.run(["ip", "link"])
    member.start()
    member.set_up()
    until(lambda: member.findings() == [])
