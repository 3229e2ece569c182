"""How the daemon ends tells a supervisor why."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from lab import Lab
from lab.cluster import Member
from lab.node import DAEMON, Node
from lab.patience import until

IN_USE = os.EX_UNAVAILABLE  # 69, sysexits.h
NO_PERMISSION = os.EX_NOPERM  # 77
BAD_CONFIGURATION = os.EX_CONFIG  # 78
USAGE = 2
FAILED = 1


def test_a_second_daemon_on_one_data_directory(member: Member) -> None:
    node = member.node
    argv = [*DAEMON, "--data-dir", str(node.data_dir), "--socket", f"{node.socket}.second"]
    code, said = node.try_daemon(argv)
    assert code == IN_USE, said
    assert node.daemon is not None
    assert str(node.data_dir) in said
    assert str(node.daemon.pid) in said
    assert member.request("status")["public_key"] == member.public_key


def test_a_second_daemon_on_one_socket(member: Member, lab: Lab) -> None:
    node, elsewhere = member.node, lab.node("elsewhere")
    code, said = elsewhere.try_daemon([*DAEMON, "--data-dir", str(elsewhere.data_dir), "--socket", str(node.socket)])
    assert code == IN_USE, said
    assert str(node.socket) in said
    assert member.request("status")["public_key"] == member.public_key


def test_a_second_daemon_in_one_network_namespace(member: Member) -> None:
    node = member.node
    node.stop()
    node.cold = True  # its command line is told
    member.start()
    argv = [*DAEMON, "--data-dir", f"{node.data_dir}.second", "--socket", f"{node.socket}.second"]
    code, said = node.try_daemon(argv)
    assert code == IN_USE, said
    assert node.daemon is not None
    assert f"pid {node.daemon.pid} uid 0" in said
    assert f"--data-dir {node.data_dir}" in said
    assert member.request("status")["public_key"] == member.public_key


def test_without_the_right_to_administer_networks(lab: Lab) -> None:
    node = lab.node("weak")
    code, said = node.try_daemon(["setpriv", "--bounding-set", "-net_admin", "--", *node.daemon_argv()])
    assert code == NO_PERMISSION, said
    assert "CAP_NET_ADMIN" in said


def test_a_wrong_option_and_a_wrong_setting(lab: Lab) -> None:
    node = lab.node("wrong")
    code, said = node.try_daemon(node.daemon_argv("--no-such-option"))
    assert (code, "--no-such-option" in said) == (USAGE, True), said
    config = node.run_directory / "overlayd.toml"
    config.write_text('wireguard = "magic"\n')
    code, said = node.try_daemon(node.daemon_argv("--config", str(config)))
    assert (code, "wireguard" in said) == (BAD_CONFIGURATION, True), said


def test_a_disk_that_refuses_is_worth_another_try_and_a_wrong_or_damaged_one_is_not(lab: Lab) -> None:
    node = lab.node("disk")
    disk, journal = node.data_dir, node.data_dir / "journal"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", disk], check=True)
    try:
        filler = disk / "filler"
        filler.write_bytes(bytes(60 * 1024))
        assert_ends(node, FAILED, "No space left on device", node.daemon_argv())
        filler.unlink()
        node.start()
        node.stop()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        assert_ends(node, FAILED, "Read-only file system", node.daemon_argv())
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        nowhere = ["--data-dir", f"{journal}/data", "--socket", str(node.socket)]
        assert_ends(node, BAD_CONFIGURATION, "Not a directory", [*DAEMON, *nowhere])
        for place in (f"{journal}/socket", "/proc/socket"):
            nowhere = ["--data-dir", str(node.data_dir), "--socket", place]
            assert_ends(node, BAD_CONFIGURATION, f"socket {place}: ", [*DAEMON, *nowhere])
        nowhere = ["--identity-file", f"{disk}/missing/id"]
        assert_ends(node, BAD_CONFIGURATION, "missing/id", node.daemon_argv(*nowhere))
        journal.write_bytes(b"?" * 100)
        assert_ends(node, BAD_CONFIGURATION, str(journal), node.daemon_argv())
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.parametrize("kind", ["fifo", "directory", "link", "device", "huge"])
def test_what_is_no_journal_is_told_and_stays(lab: Lab, kind: str) -> None:
    node = lab.node(kind)
    node.data_dir.mkdir(mode=0o700)
    journal = node.data_dir / "journal"
    match kind:
        case "fifo":
            os.mkfifo(journal, 0o600)
        case "directory":
            journal.mkdir()
        case "link":
            journal.symlink_to("/dev/zero")
        case "device":
            os.mknod(journal, 0o600 | stat.S_IFCHR, os.makedev(1, 5))
        case "huge":
            journal.touch(0o600)
            os.truncate(journal, 1 << 33)
    saying = f"{journal} has {1 << 33} bytes" if kind == "huge" else f"{journal} is not a regular file: move it away"
    assert_ends(node, BAD_CONFIGURATION, saying, node.daemon_argv())
    assert [each.name for each in node.data_dir.glob("journal*")] == ["journal"]


def test_a_journal_of_two_names_and_a_program_that_is_no_wireguard_go_are_told(lab: Lab) -> None:
    node = lab.node("doubtful")
    node.start()
    node.stop()
    os.link(node.data_dir / "journal", node.data_dir.with_name("other"))
    node.start("--wireguard", "userspace", "--wireguard-go", "/bin/false")
    log = node.log_tail()
    assert "journal has 2 names" in log
    assert "wireguard-go is gone, or is another program" in log
    with node.connect() as connection:
        found = {each["code"]: each for each in connection.request("doctor")["findings"]}
    assert "--wireguard-go" in found["wireguard-unknown"]["remedy"]


def assert_ends(node: Node, code: int, saying: str, argv: list[str]) -> None:
    ended, said = node.try_daemon(argv)
    assert ended == code, said
    assert saying in said


def test_signals_and_the_shutdown_request_end_it_cleanly(lab: Lab) -> None:
    member = Member(lab, 7, "ending")
    for number in (signal.SIGTERM, signal.SIGINT):
        member.start()
        assert member.node.daemon is not None
        member.node.daemon.send_signal(number)
        assert member.node.wait() == 0
    member.start()
    interface = member.set_up()["interface"]
    assert member.request("shutdown") == {"result": "ok"}
    assert member.node.wait() == 0
    assert interface not in member.node.run(["ip", "-br", "link"])
    assert member.node.wireguard_pids() == set()


def test_who_hangs_up_ends_a_daemon_that_is_at_a_terminal_alone(lab: Lab) -> None:
    member = Member(lab, 6, "hung")
    member.start()
    assert member.node.daemon is not None
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        member.node.daemon.send_signal(number)
        until(lambda name=number.name: f"{name} changes nothing" in member.node.log.read_text(), f"{number} is told of")
    assert member.request("status")["result"] == "status"
    assert member.node.stop() == 0
    at_a_terminal = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
    member.node.program = [sys.executable, "-c", at_a_terminal, *member.node.program]
    member.start()
    terminal = member.node.daemon.pid
    (child,) = Path(f"/proc/{terminal}/task/{terminal}/children").read_text().split()
    os.kill(int(child), signal.SIGHUP)
    assert member.node.wait() == 0
    assert "stopping" in member.node.log.read_text()


def test_a_start_with_closed_streams_and_one_with_few_descriptors(lab: Lab) -> None:
    member = Member(lab, 5, "closed")
    program = member.node.program
    member.node.program = ["sh", "-c", 'exec "$0" "$@" <&- >&- 2>&-', *program]
    member.start()
    assert member.node.daemon is not None
    for descriptor in (0, 1, 2):
        assert Path(f"/proc/{member.node.daemon.pid}/fd/{descriptor}").readlink() == Path("/dev/null")
    assert member.node.stop() == 0
    member.node.program = ["prlimit", "--nofile=20:20", "--", *program]
    code, said = member.node.try_daemon(member.node.daemon_argv())
    assert code == 1
    assert "Too many open files; give overlayd more descriptors" in said
    assert "Traceback" not in said


def test_what_was_opened_is_closed_after_a_stop_and_after_a_start_that_fails_half_way(lab: Lab) -> None:
    """When everything is at work but the identity file.  Python tells of every socket, task and file that is left."""
    node = lab.node("half")
    node.program = ["env", "PYTHONDEVMODE=1", "PYTHONWARNINGS=default", *DAEMON]
    node.start()
    assert node.stop() == 0
    assert_nothing_left(node.log.read_text())
    code, said = node.try_daemon(node.daemon_argv("--identity-file", f"{node.data_dir}/missing/id"))
    assert code == BAD_CONFIGURATION, said
    assert "missing/id" in said
    assert_nothing_left(said)


def assert_nothing_left(said: str) -> None:
    for complaint in ("ResourceWarning", "was destroyed", "never awaited", "never retrieved", "Traceback"):
        assert complaint not in said
