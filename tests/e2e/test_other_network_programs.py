"""systemd-networkd and NetworkManager leave our links alone with the files of deploy/, and do not without them.

Both run on a node beside the daemon, told by another file to configure whatever they see.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lab import Lab, Node
from lab.cluster import Member
from lab.patience import until
from lab.processes import ROOT, environment

DEPLOY = ROOT / "deploy"
UNPACKED = ROOT / "build" / "clients" / "networkmanager"
LIBRARIES = ":".join(map(str, UNPACKED.glob("**/lib/*-linux-gnu")))
READ_ONLY_SYS = "mount -o remount,bind,ro /sys"  # as in a container: both then do not wait for udev
NETWORKD = "/lib/systemd/systemd-networkd"
MARK = "192.0.2.77/24"  # what networkd gives to every link that it configures

_KINDS = ("method_call", "signal", "method_return", "error")
_ALLOWED = "".join(f'<allow send_type="{each}"/><allow receive_type="{each}"/>' for each in _KINDS)
BUS = f"""\
<busconfig><type>session</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/>{_ALLOWED}</policy></busconfig>
"""


@pytest.fixture
def member() -> Iterator[Member]:
    """A node with a device, a bridge, and a container with both legs."""
    with Lab() as lab:
        member = Member(lab, 1, "alpha")
        member.start()
        member.set_up()
        member.set_up_service("web")
        member.attach(lab.container(), "web", join_global=True)
        yield member


@contextmanager
def beside(node: Node, script: str) -> Iterator[None]:
    """Run a shell script on the node until the block ends."""
    command = node.command(["sh", "-euc", script])
    program = subprocess.Popen(command, env=environment(node.prefix), start_new_session=True)
    try:
        yield
    finally:
        program.terminate()
        program.wait()


def our_links(node: Node) -> set[str]:
    names = {each["ifname"] for each in json.loads(node.run(["ip", "-j", "link"]))}
    return names - {"lo", "uplink"}


def by_networkd(node: Node) -> dict[str, str]:
    """What it does with each link, as `networkctl` shows it."""
    found = {}
    for each in json.loads(node.run(["ip", "-j", "link"])):
        file = node.run_directory / "systemd/netif/links" / str(each["ifindex"])
        try:
            text = file.read_text()
        except FileNotFoundError:  # networkd puts another in its place
            text = ""
        found[each["ifname"]] = text.partition("ADMIN_STATE=")[2].partition("\n")[0] or "pending"
    return found


@pytest.mark.parametrize("told", [True, False])
def test_networkd(member: Member, told: bool) -> None:
    node, settings = member.node, member.node.run_directory / "systemd/network"
    settings.mkdir(parents=True)
    (settings / "90-everything.network").write_text(f"[Match]\nName=!lo uplink\n[Network]\nAddress={MARK}\n")
    if told:
        shutil.copy(DEPLOY / "overlayd.network", settings / "10-overlayd.network")
    state = "mkdir -p /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp"
    before = node.footprint()
    ours = our_links(node)
    assert {each.partition("-")[0] for each in ours} == {"zl", "veth"}
    with beside(
        node, f"{READ_ONLY_SYS}; {state}; chown -R systemd-network:systemd-network /run/systemd/netif; exec {NETWORKD}"
    ):
        wanted = {"unmanaged"} if told else {"configuring", "configured"}
        until(lambda: {by_networkd(node)[each] for each in ours} <= wanted, lambda: str(by_networkd(node)))
        if told:
            assert node.footprint() == before
        else:
            until(lambda: MARK.partition("/")[0] in node.run(["ip", "address"]), "networkd gives no address")


def nmcli(node: Node) -> dict[str, str]:
    """What NetworkManager does with each link; nothing while it does not answer."""
    program = ["env", f"LD_LIBRARY_PATH={LIBRARIES}", str(UNPACKED / "usr/bin/nmcli")]
    argv = node.command([*program, "-t", "-f", "DEVICE,STATE", "device"])
    done = subprocess.run(argv, capture_output=True, text=True, env=environment(node.prefix), check=False)
    return dict(line.split(":", 1) for line in done.stdout.splitlines())


@pytest.mark.skipif(not UNPACKED.exists(), reason="NetworkManager is unpacked by make test")
@pytest.mark.parametrize("told", [True, False])
def test_networkmanager(member: Member, told: bool) -> None:
    node, settings = member.node, member.node.run_directory / "NetworkManager/conf.d"
    settings.mkdir(parents=True)
    main = "[main]\nplugins=keyfile\nauth-polkit=false\nrc-manager=unmanaged\n"
    # Somebody's own list, which a later file's list of the same name would replace.
    (settings / "a.conf").write_text(f"{main}[keyfile]\nunmanaged-devices=interface-name:uplink\n")
    if told:
        shutil.copy(DEPLOY / "overlayd.networkmanager.conf", settings / "overlayd.conf")
    (node.run_directory / "bus.conf").write_text(BUS)
    bus = shutil.which("dbus-daemon") or UNPACKED / "usr/bin/dbus-daemon"
    program = UNPACKED / "usr/sbin/NetworkManager"
    script = f"""
        {READ_ONLY_SYS}; mount -t tmpfs tmpfs /var/lib; mkdir -p /run/dbus
        export LD_LIBRARY_PATH='{LIBRARIES}'
        '{bus}' --config-file=/run/bus.conf --fork
        exec '{program}' --no-daemon --config=/run/NetworkManager/conf.d/a.conf \
            --config-dir=/run/NetworkManager/conf.d --log-level=WARN
    """
    before = node.footprint()
    ours = our_links(node)
    with beside(node, script):
        until(lambda: ours <= nmcli(node).keys(), lambda: str(nmcli(node)))
        if told:
            assert {nmcli(node)[each] for each in ours} == {"unmanaged"}
            assert node.footprint() == before
        else:
            until(lambda: any(nmcli(node)[each].startswith("connect") for each in ours), lambda: str(nmcli(node)))


def test_the_group_and_the_directories(tmp_path: Path) -> None:
    for name, place in (("sysusers", "usr/lib/sysusers.d"), ("tmpfiles", "usr/lib/tmpfiles.d")):
        (tmp_path / place).mkdir(parents=True)
        shutil.copy(DEPLOY / f"overlayd.{name}", tmp_path / place / "overlayd.conf")
    (tmp_path / "etc").mkdir()
    subprocess.run(["systemd-sysusers", f"--root={tmp_path}"], check=True)
    assert "\noverlayd:" in "\n" + (tmp_path / "etc/group").read_text()
    (tmp_path / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    subprocess.run(["systemd-tmpfiles", f"--root={tmp_path}", "--create", "overlayd.conf"], check=True)
    modes = {each: (tmp_path / each).stat().st_mode & 0o7777 for each in ("run/overlayd", "var/lib/overlayd")}
    assert modes == {"run/overlayd": 0o755, "var/lib/overlayd": 0o700}
