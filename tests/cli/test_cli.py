"""overlayctl against a server that gives canned answers: what it prints, asks, and exits with."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from canned import KEY, PRIVATE, Canned, ctl

from overlayd import __version__, cli, wire
from overlayd.cli import tables
from overlayd.cli.call import UsageError, parse_request

STATUS = wire.Status(
    interface="zl-prod-i-g",
    node_ip="10.200.7.1",
    public_key=KEY,
    overlay_cidr="10.200.0.0/16",
    peer_count=2,
    service_count=3,
    peers=(
        wire.StatusPeer(KEY, "192.0.2.7:51820", "10.200.1.0/24,fd00::/120", 1000),
        wire.StatusPeer(PRIVATE, "", "", 0),
    ),
    dedicated_services=(wire.DedicatedService("db", "zl-d", KEY, 51821, "10.200.9.1", "10.200.9.0/28", 1),),
    services=(
        wire.StatusService("db", "dedicated", "zl-prod-i-db-b", "10.200.9.0/28", "10.200.9.1"),
        wire.StatusService("web", "shared", "zl-prod-i-web-b", "10.200.40.64/26", "10.200.40.65"),
    ),
    devices=(
        wire.StatusDevice("zl-prod-i-g", "userspace", "0.0.20250522"),
        wire.StatusDevice("zl-d", "userspace"),
    ),
)


def test_status_as_a_table(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    canned.answer = lambda request: STATUS
    assert cli.run(["status"]) == 0
    assert capsys.readouterr().out == (
        "all is well: 2 peers, 3 services\n"
        "\n"
        "interface     zl-prod-i-g\n"
        "node address  10.200.7.1\n"
        f"public key    {KEY}\n"
        "cluster CIDR  10.200.0.0/16\n"
        "node slice    none\n"
        "peers         2\n"
        "services      3, 1 of them dedicated\n"
        "served by     wireguard-go, version 0.0.20250522 (zl-prod-i-g)\n"
        "served by     wireguard-go, version unknown (zl-d)\n"
        "\n"
        "SERVICE  MODE       SUBNET           GATEWAY       BRIDGE\n"
        "db       dedicated  10.200.9.0/28    10.200.9.1    zl-prod-i-db-b\n"
        "web      shared     10.200.40.64/26  10.200.40.65  zl-prod-i-web-b\n"
        "\n"
        "SERVICE  DEVICE  ADDRESS     SUBNET         PORT   PEERS  PUBLIC KEY\n"
        "db       zl-d    10.200.9.1  10.200.9.0/28  51821  1      yAnz5TF+...\n"
    )
    assert canned.asked == [wire.GetStatus()]


def test_the_first_line_says_whether_all_is_well() -> None:
    def first(**more: object) -> str:
        return tables.status(msgspec.structs.replace(STATUS, **more), wide=False, now=0).splitlines()[0]

    assert first(findings=0) == "all is well: 2 peers, 3 services"
    assert first(findings=1).startswith("NOT well: 1 thing is wrong, of 2 peers, 3 services; overlayctl doctor")
    assert first(findings=2).startswith("NOT well: 2 things are wrong")
    assert first(interface=None, findings=0).startswith("NOT well: this node has no WireGuard")
    assert first(overlay_cidr=None).startswith("not set up")
    older = (msgspec.structs.replace(STATUS.peers[0], health="silent"),)  # a daemon that does not count findings
    assert first(peers=older).startswith("NOT well: 1 thing is wrong")


def test_status_before_setup(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    canned.answer = lambda request: wire.Status(peer_count=0, service_count=0)
    assert cli.run(["status"]) == 0
    out = capsys.readouterr().out
    assert "the global overlay is not set up" in out
    assert "SERVICE" not in out
    assert cli.run(["ready"]) == 4
    assert capsys.readouterr().out.startswith("not ready: not set up")
    assert cli.run(["status", "--wait", "--timeout", "1"]) == 4


def test_devices_that_one_program_serves_are_one_line() -> None:
    devices = tuple(wire.StatusDevice(f"zl-{number}", "userspace", "0.0.7") for number in range(200))
    text = tables.status(msgspec.structs.replace(STATUS, devices=devices), wide=False, now=0)
    assert text.count("served by") == 1
    assert "served by     wireguard-go, version 0.0.7 (200 devices)" in text


def test_waiting_until_all_is_well(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    answers = iter([wire.Status(peer_count=0, service_count=0), msgspec.structs.replace(STATUS, findings=1), STATUS])
    canned.answer = lambda request: next(answers)
    assert cli.run(["status", "--wait"]) == 0
    assert capsys.readouterr().out.startswith("all is well")
    canned.answer = lambda request: STATUS
    assert cli.run(["ready"]) == 0


def test_the_versions_of_both(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    canned.answer = lambda request: msgspec.structs.replace(STATUS, version="9.8")
    assert cli.run(["version"]) == 0
    assert capsys.readouterr().out == f"overlayctl {__version__}\noverlayd 9.8\n"


def test_json_is_the_contracts(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    canned.answer = lambda request: STATUS
    assert cli.run(["status", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(wire.encode_response_object(STATUS))
    assert cli.run(["peers", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(wire.encode_response_object(STATUS))["peers"]


def test_nat(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    candidates = (wire.NatCandidate("host", "192.0.2.7:51820", 2130706431),)
    peers = (wire.NatPeer(KEY, "hole-punched", "198.51.100.1:7"), wire.NatPeer(KEY, "unreachable"))
    canned.answer = lambda request: wire.NatStatus(candidates=candidates, peers=peers, last_refresh=0)
    assert cli.run(["nat"]) == 0
    assert capsys.readouterr().out == (
        "CANDIDATE  ADDRESS          PRIORITY\n"
        "host       192.0.2.7:51820  2130706431\n\n"
        "PEER         CONNECTION    ENDPOINT\n"
        "yAnz5TF+...  hole-punched  198.51.100.1:7\n"
        "yAnz5TF+...  unreachable   unknown\n\n"
        "candidates refreshed never\n"
    )


def test_nat_says_why_there_is_no_relay(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    canned.answer = lambda request: wire.NatStatus(last_refresh=0, relay_failure="TURN server a:1: no \x1banswer")
    assert cli.run(["nat"]) == 0
    assert capsys.readouterr().out.endswith("\n\nno relay: TURN server a:1: no \\x1banswer\n")


@pytest.mark.parametrize(
    "seconds, text",
    [
        (-5, "0 s"),
        (0, "0 s"),
        (12.9, "12 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7199, "119 min"),
        (7200, "2 h"),
        (172799, "47 h"),
        (172800, "2 d"),
        (10**7, "115 d"),
    ],
)
def test_spans_of_time(seconds: float, text: str) -> None:
    assert tables.span(seconds) == text


def test_the_daemons_error_is_printed_and_exits_1(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    canned.answer = lambda request: wire.Err("global overlay not set up")
    assert cli.run(["call", "allocate_ip", "service=web", "join_global=true"]) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "overlayctl: global overlay not set up\n")


def test_a_name_does_not_steer_the_terminal(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    name = "web\x1b]0;gotcha\x07\nzl-x-b  up\x9b2J"
    shown = r"web\x1b]0;gotcha\x07\nzl-x-b  up\x9b2J"
    service = wire.DedicatedService(name, "zl-d", KEY, 51821, "10.200.9.1", "10.200.9.0/28", 1)
    listed = wire.StatusService(name, "dedicated", "zl-b", "10.200.9.0/28", "10.200.9.1")
    canned.answer = lambda request: wire.Status(
        peer_count=0, service_count=1, dedicated_services=(service,), services=(listed,)
    )
    assert cli.run(["status"]) == 0
    out = capsys.readouterr().out
    assert f"\n{shown}  zl-d " in out
    assert f"\n{shown}  dedicated " in out
    canned.answer = lambda request: wire.Diagnosis((wire.Finding(name, "is missing", "ask for it"),))
    assert cli.run(["doctor"]) == 4
    assert capsys.readouterr().out == f"error: {shown} is missing; ask for it\n"
    canned.answer = lambda request: wire.Err(f"service {name!s} is not set up")
    assert cli.run(["call", "teardown_service_overlay", "service=x"]) == 1
    assert capsys.readouterr().err == f"overlayctl: service {shown} is not set up\n".replace(r"\nzl", "\nzl")


def test_the_doctor_says_each_finding_in_a_line_and_only_errors_fail(
    canned: Canned, capsys: pytest.CaptureFixture[str]
) -> None:
    hint = wire.Finding("the table", "is nearly full", "enlarge it", "table-full", "hint")
    error = wire.Finding("the port", "is closed", "open it", "port-closed", "error", "no peer gets in")
    canned.answer = lambda request: wire.Diagnosis((hint,))
    assert cli.run(["doctor"]) == 0
    assert capsys.readouterr().out == (
        "all is as it should be\nhint table-full: the table is nearly full; enlarge it\n"
    )
    canned.answer = lambda request: wire.Diagnosis((error, hint))
    assert cli.run(["doctor"]) == 4
    assert capsys.readouterr().out.splitlines()[0] == "error port-closed: the port is closed; no peer gets in; open it"
    assert cli.run(["doctor", "-o", "json"]) == 4
    assert json.loads(capsys.readouterr().out)[1] == {
        "object": "the table",
        "problem": "is nearly full",
        "remedy": "enlarge it",
        "code": "table-full",
        "severity": "hint",
    }


def test_call_prints_the_answer(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    canned.answer = lambda request: wire.Ip("10.200.7.5")
    assert cli.run(["call", "allocate_ip", "service=web", "join_global=true"]) == 0
    assert json.loads(capsys.readouterr().out) == {"result": "ip", "ip": "10.200.7.5"}
    assert canned.asked == [wire.AllocateIp("web", True)]


ATTACH = wire.AttachContainer(wire.LinuxPid(71), "web", False)


@pytest.mark.parametrize(
    "words, request_",
    [
        ("status", wire.GetStatus()),
        ("attach_container handle.platform=linux_pid handle.pid=71 service=web join_global=false", ATTACH),
        ('attach_container handle={"platform":"linux_pid","pid":71} service=web join_global=false', ATTACH),
        ("set_local_node_id node_id=18446744073709551615", wire.SetLocalNodeId(2**64 - 1)),
        ("setup_service_overlay service=7 mode=auto subnet=a=b", wire.SetupServiceOverlay("7", "auto", "a=b")),
        ("unregister_dns name=true", wire.UnregisterDns("true")),
        ("unregister_dns name=", wire.UnregisterDns("")),
        ("prune_orphan_bridges live_bridge_names=a,b", wire.PruneOrphanBridges(("a", "b"))),
        ("prune_orphan_bridges live_bridge_names=", wire.PruneOrphanBridges(())),
        ('prune_orphan_bridges live_bridge_names=["a,b"]', wire.PruneOrphanBridges(("a,b",))),
        ("write_scoped_resolver zone=z node_ip=i port=53", wire.WriteScopedResolver("z", "i", 53)),
        (
            "remove_peer pubkey=k scope.scope=service scope.service=web",
            wire.RemovePeer("k", wire.ServiceScope("web")),
        ),
        (
            "setup_global_overlay deployment=d instance_id=i cluster_cidr=c wg_port=1 nat.enabled=false "
            "nat.relay_server.listen_port=2 nat.relay_server.external_addr=e nat.relay_server.max_sessions=3 "
            'nat.turn_servers=[{"addr":"a","username":"u","credential":"c"}]',
            wire.SetupGlobalOverlay(
                deployment="d",
                instance_id="i",
                cluster_cidr="c",
                wg_port=1,
                nat=wire.NatConfig(
                    enabled=False,
                    relay_server=wire.RelayServer(2, "e", 3),
                    turn_servers=(wire.TurnServer("a", "u", "c"),),
                ),
            ),
        ),
    ],
)
def test_words_make_a_request(words: str, request_: wire.Request) -> None:
    op, *pairs = words.split(" ")
    assert parse_request(op, pairs) == request_


@pytest.mark.parametrize(
    "words, why",
    [
        ("atach_container", "did you mean attach_container"),
        ("zzz", "--list shows all"),
        ("allocate_ip service", "'service' is not key=value"),
        ("allocate_ip service=web join_global=yes", '^join_global: expected bool, got "yes"'),
        ("allocate_ip service=web", r"^join_global: required key is missing\nusage of allocate_ip: service=TEXT"),
        ("allocate_ip service=web service=web", "service is given twice"),
        ("allocate_ip servce=web", "no key servce; there is join_global, service"),
        ("status x=1", "no key x$"),
        ("setup_service_overlay service=web mode=private", "^mode: expected"),
        ("write_scoped_resolver zone=z node_ip=i port=70000", "^port: expected u16, got 70000"),
        ("write_scoped_resolver zone=z node_ip=i port=5x", '^port: expected u16, got "5x"'),
        ("set_local_node_id node_id=18446744073709551616", "^node_id: expected u64"),
        ("set_local_node_id node_id=-1", "^node_id: expected u64, got -1"),
        ("detach_container handle=linux_pid", "^handle: expected JSON for {platform:linux_pid,pid}.*: JSON"),
        ("detach_container handle.platform=jail", '^handle.platform: unknown platform "jail"'),
        ("detach_container handle.pid=5", "^handle.platform: required key is missing"),
        ("detach_container handle={} handle.pid=5 handle.pid=5", "twice"),
        ("detach_container handle=5 handle.pid=5", "handle already has a value"),
        ("detach_container handle.pid.x=5", "no key handle.pid.x"),
        ("unregister_dns name=\udce9", "not UTF-8"),
        ("unregister_dns op=status name=x", "op is given twice"),
    ],
)
def test_words_that_make_no_request(words: str, why: str) -> None:
    op, *pairs = words.split(" ")
    with pytest.raises(UsageError, match=why):
        parse_request(op, pairs)


def test_wrong_words_exit_2_without_asking(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["call", "nonsense"], [], ["status", "-o", "xml"], ["--timeout", "0", "status"], ["call"]):
        with pytest.raises(SystemExit) as caught:
            cli.run(words)
        assert caught.value.code == 2
        assert "usage: overlayctl" in capsys.readouterr().err
    assert canned.asked == []


@pytest.mark.parametrize("word", ["0", "-1", "nan", "inf", "soon"])
def test_a_timeout_that_is_none_is_named(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.run([f"--timeout={word}", "status"])
    assert f"'{word}' is not a number of seconds above 0" in capsys.readouterr().err


def test_the_list_names_every_request(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["call", "--list"]) == 0
    out = capsys.readouterr().out
    heads = [line for line in out.splitlines() if not line.startswith(" ")]
    assert len(heads) == len(get_args(wire.Request))
    assert "setup_service_overlay service=TEXT mode=auto|dedicated|isolated|shared [subnet=TEXT]" in heads
    assert "prune_orphan_bridges live_bridge_names=TEXT,..." in heads
    for line in out.splitlines():
        assert line.strip()


def test_events_end_quietly_on_ctrl_c(canned: Canned) -> None:
    canned.greeting = wire.encode_event(wire.PeerHealthChanged(KEY, False))
    canned.greeting += wire.encode_event(wire.NatEndpointChanged(KEY, "192.0.2.7:51820"))
    with ctl("events") as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=20)
    assert lines[0].endswith(f" {KEY} unhealthy\n")
    assert lines[1].endswith(f" {KEY} endpoint 192.0.2.7:51820\n")
    assert (process.returncode, rest, errors) == (130, "", "")


def test_events_as_json_and_the_daemons_end(canned: Canned) -> None:
    canned.greeting = wire.encode_event(wire.PeerHealthChanged(KEY, True))
    with ctl("events", "-o", "json") as process:
        assert process.stdout is not None
        line = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
    assert line == {"event": "peer_health_changed", "pubkey": KEY, "healthy": True}


def test_a_closed_pipe_ends_quietly(canned: Canned) -> None:
    peers = (wire.StatusPeer(KEY, "192.0.2.7:51820", "10.200.1.0/24", 0),) * 20_000
    canned.answer = lambda request: wire.Status(peer_count=0, service_count=0, peers=peers)
    with ctl("peers", "--json") as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_unreachable_exits_69_and_says_what_to_check(
    tmp_path: Path, canned: Canned, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.run(["--socket", str(tmp_path / "none"), "status"]) == 69
    err = capsys.readouterr().err
    assert "No such file or directory" in err
    assert "is overlayd running" in err
    assert "OVERLAYD_SOCKET" in err

    stale = tmp_path / "stale"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(stale))
    assert cli.run(["--socket", str(stale), "status"]) == 69
    assert "Nobody listens there" in capsys.readouterr().err

    canned.answer = lambda request: None
    for user, advice in ((0, "overlayd stopped, was restarted"), (1000, "members of the socket's group")):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        assert cli.run(["status"]) == 69
        assert advice in capsys.readouterr().err

    assert cli.run(["--socket", "x" * 300, "status"]) == 69
    assert "path too long" in capsys.readouterr().err


def test_a_socket_that_one_may_not_use(canned: Canned) -> None:
    """Root may always: another user tries."""
    canned.path.chmod(0o660)
    for parent in canned.path.parents:
        if parent.name.startswith("pytest"):
            parent.chmod(0o711)
    code = (
        "import os; from overlayd import cli\n"
        "cli.run(['--socket', '/nonexistent', 'status'])  # imports what the other user may not be able to read\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        f"raise SystemExit(cli.run(['--socket', {str(canned.path)!r}, 'status']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 69
    assert "Permission denied" in done.stderr
    assert "members of the socket's group" in done.stderr


def test_a_hung_daemon_exits_69(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    release = threading.Event()
    canned.answer = lambda request: release.wait(20) and None
    try:
        assert cli.run(["--timeout", "0.1", "status"]) == 69
    finally:
        release.set()
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "overlayctl: no answer to status within 0.1 s"
    assert told[1].startswith("overlayd is there, and busy, stopped (SIGSTOP) or hanging")


def test_what_answers_and_is_no_overlayd(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "web.sock"))
        listener.listen()

        def answer() -> None:
            accepted, _ = listener.accept()
            with accepted:
                accepted.recv(100)
                accepted.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        server = threading.Thread(target=answer)
        server.start()
        assert cli.run(["--socket", str(tmp_path / "web.sock"), "status"]) == 69
        server.join()
    assert f"What answers at {tmp_path}/web.sock is not overlayd" in capsys.readouterr().err


def test_a_daemon_that_is_older_than_the_command(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    canned.answer = lambda request: wire.Err("unknown variant `list`, expected one of `status`", code="bad_request")
    assert cli.run(["peers"]) == 1
    assert "is older than overlayctl" in capsys.readouterr().err
