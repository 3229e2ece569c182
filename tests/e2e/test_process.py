"""What a service manager and an operator see of the process, and what it does on a host without WireGuard."""

import json
import re
import shutil
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from lab import Lab, Refused
from lab.cluster import CLUSTER, PORT, Member
from lab.frames import Connection, request_frame
from lab.http import get
from lab.node import DAEMON
from lab.patience import LIMIT, until
from lab.processes import stop

from overlayd.linux import capability

MANUAL = Path(__file__).resolve().parents[2] / "docs" / "install.md"

SETUP = {"deployment": "lab", "instance_id": "a", "cluster_cidr": CLUSTER, "wg_port": PORT}


@pytest.fixture
def fresh(lab: Lab) -> Iterator[Member]:
    """A node whose daemon has not been started."""
    member = Member(lab, 12, f"fresh{len(lab.nodes)}")
    yield member
    member.node.close()


def bridges(member: Member) -> list[str]:
    return [link["ifname"] for link in json.loads(member.node.run(["ip", "-j", "link", "show", "type", "bridge"]))]


def test_ready_is_announced_when_all_is_mended_and_requests_are_served(fresh: Member, tmp_path: Path) -> None:
    fresh.start()
    fresh.set_up()
    bridge = fresh.set_up_service("web")
    fresh.node.kill()
    fresh.node.run(["ip", "link", "delete", bridge])
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(path))
        told.settimeout(LIMIT)
        fresh.node.program = ["env", f"NOTIFY_SOCKET={path}", *DAEMON]
        with ThreadPoolExecutor(1) as pool:
            starting = pool.submit(fresh.node.start)
            assert told.recv(100).splitlines()[0] == b"READY=1"
            assert bridges(fresh) == [bridge]
            with Connection(fresh.node.socket) as connection:
                assert connection.request("status")["service_count"] == 1
            starting.result()
        fresh.node.stop()
        assert told.recv(100) == b"STOPPING=1"


def test_a_loop_that_turns_feeds_the_watchdog_and_one_that_hangs_is_shown(fresh: Member, tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(path))
        told.settimeout(LIMIT)
        fresh.node.program = ["env", f"NOTIFY_SOCKET={path}", "WATCHDOG_USEC=300000", *DAEMON]
        fresh.start()
        assert [told.recv(100).splitlines()[0] for _ in range(4)] == [b"READY=1", *[b"WATCHDOG=1"] * 3]
        assert fresh.node.daemon is not None
        stop(fresh.node.daemon.pid)
        told.setblocking(False)
        with suppress(BlockingIOError):
            while told.recv(100):  # what was fed before
                pass
        told.settimeout(1)
        with pytest.raises(TimeoutError):
            told.recv(100)
        fresh.node.daemon.send_signal(signal.SIGABRT)  # as the manager does then
        fresh.node.daemon.send_signal(signal.SIGCONT)
        assert fresh.node.daemon.wait(LIMIT) == -signal.SIGABRT
        assert "Fatal Python error: Aborted" in fresh.node.log.read_text()
        fresh.node.daemon = None


@pytest.mark.parametrize("pid", ["", "1"])
def test_a_watchdog_of_nobody_or_of_another_process_is_not_fed(fresh: Member, tmp_path: Path, pid: str) -> None:
    path = tmp_path / "notify"
    settings = ["WATCHDOG_USEC=100000", "WATCHDOG_PID=1"] if pid else []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(path))
        told.settimeout(LIMIT)
        fresh.node.program = ["env", f"NOTIFY_SOCKET={path}", *settings, *DAEMON]
        fresh.start()
        assert told.recv(100).splitlines()[0] == b"READY=1"
        fresh.node.stop()
        assert told.recv(100) == b"STOPPING=1"


def test_an_idle_daemon_is_small(fresh: Member) -> None:
    """At most 33 MiB, and 35 with an overlay; what it has is in docs/dependencies.md."""
    fresh.node.cold = True
    fresh.start()
    until(lambda: "serves" in fresh.node.log.read_text())  # what the start has used is given back before
    assert resident(fresh) <= 33 * 1024
    fresh.set_up()
    fresh.request("setup_service_overlay", service="web", mode="shared")
    assert resident(fresh) <= 35 * 1024


def test_one_that_measures_is_little_larger(fresh: Member) -> None:
    """At most 38 MiB, after scrapes."""
    fresh.node.cold = True
    fresh.start("--metrics", "9586")
    until(lambda: "serves" in fresh.node.log.read_text())
    fresh.set_up()
    fresh.request("setup_service_overlay", service="web", mode="shared")
    for _ in range(20):
        assert get(fresh.node, "9586", "/metrics")[0] == 200
    assert resident(fresh) <= 38 * 1024


def resident(member: Member) -> int:
    """kB."""
    assert member.node.daemon is not None
    status = Path(f"/proc/{member.node.daemon.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0])


def test_a_line_of_the_log_is_an_event_in_words_or_in_json(fresh: Member) -> None:
    for options in ((), ("--log-format", "json", "--log-level", "debug")):
        fresh.node.log.write_text("")
        fresh.start(*options)
        with pytest.raises(Refused):
            fresh.request(
                "attach_container", handle={"platform": "host_shared", "id": ""}, service="w", join_global=True
            )
        fresh.connection.send(b"\xff\xff\xff\xff")  # has its sender's credentials logged
        with pytest.raises(EOFError):
            fresh.connection.receive()
        fresh.node.stop()
        lines = fresh.node.log.read_text().splitlines()
        assert len(lines) >= 3
        if options:
            events = [json.loads(line) for line in lines]
            assert all({"time", "level", "logger", "message"} <= event.keys() for event in events)
            assert any("uid 0" in event["message"] for event in events)
        else:
            assert all(re.match(r"\d{4}-\d\d-\d\dT\S+Z (debug|info|warning|error) [\w.]+: ", line) for line in lines)


def test_the_socket_is_for_its_owner_and_its_group(fresh: Member) -> None:
    fresh.start("--socket-group", "daemon")
    found = fresh.node.socket.stat()
    assert (found.st_mode & 0o7777, found.st_gid) == (0o660, 1)


def test_sixteen_clients_that_set_one_service_up_get_one_bridge(fresh: Member) -> None:
    fresh.start()
    fresh.set_up()
    connections = [fresh.node.connect() for _ in range(16)]
    for connection in connections:
        connection.send(request_frame(1, "setup_service_overlay", service="web", mode="shared"))
    answers = [connection.receive()["response"] for connection in connections]
    assert len({answer["name"] for answer in answers}) == 1
    assert bridges(fresh) == [answers[0]["name"]]
    assert fresh.request("status")["service_count"] == 1


def test_without_wireguard_the_host_has_guests_only_unless_its_adapter_is_a_must(
    lab: Lab, fresh: Member, tmp_path: Path
) -> None:
    nft = shutil.which("nft")
    assert nft is not None
    (tmp_path / "nft").symlink_to(nft)
    fresh.node.program = ["env", f"PATH={tmp_path}", *DAEMON]  # and so without wireguard-go
    fresh.start()
    if "no WireGuard on this host" not in fresh.node.log_tail():
        pytest.skip("this kernel has WireGuard")
    with pytest.raises(Refused, match="install wireguard-go"):
        fresh.request("setup_global_overlay", **SETUP, host_adapter_mandatory=True)
    assert "node_ip" not in fresh.request("status")
    fresh.request("setup_global_overlay", **SETUP, host_adapter_mandatory=False)
    status = fresh.request("status")
    assert "interface" not in status
    assert status["overlay_cidr"] == CLUSTER
    assert re.search(r"no WireGuard on this host \(.*\): no tunnels", fresh.node.log_tail())
    fresh.set_up_service("web")
    container = lab.container()
    assert fresh.attach(container, "web") in container.run(["ip", "-br", "address"])
    with pytest.raises(Refused, match="install wireguard-go"):
        fresh.request("setup_service_overlay", service="own", mode="dedicated")


def test_the_socket_of_a_successor_stays(lab: Lab) -> None:
    node = lab.node("replaced")
    node.start()
    node.socket.unlink()
    with socket.socket(socket.AF_UNIX) as successor:
        successor.bind(str(node.socket))
        successor.listen()
        assert node.stop() == 0
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(node.socket))
    node.start()
    assert node.stop() == 0
    assert not node.socket.exists()


def test_daemons_of_two_hosts_have_their_sockets_in_one_directory(lab: Lab) -> None:
    """Each serves the container runtimes of its own host as well."""
    one, other = Member(lab, 1, "one"), Member(lab, 2, "other")
    other.node.socket = one.node.socket.with_name("other.sock")
    for member in (one, other):
        member.start()
        member.set_up({"enabled": False})
    sockets = {path.name for path in one.node.socket.parent.iterdir() if path.is_socket()}
    assert sockets == {"overlayd.sock", "cni.sock", "other.sock", "other.cni"}
    assert {path.name for path in one.node.socket.parent.glob("*-del")} == {"cni-del", "other.cni-del"}


def test_nothing_but_what_the_manual_names_is_held_after_the_start(fresh: Member) -> None:
    """By the daemon, each of its threads, and wireguard-go."""
    fresh.start()
    fresh.set_up({"enabled": False})
    assert fresh.node.daemon is not None
    named = {f"CAP_{name}" for name in re.findall(r"--cap-add ([A-Z_]+)", MANUAL.read_text())}
    assert named == set(capability.BITS)
    allowed = sum(1 << bit for bit in capability.BITS.values())
    statuses = [*Path(f"/proc/{fresh.node.daemon.pid}/task").glob("*/status")]
    statuses += [Path(f"/proc/{pid}/status") for pid in fresh.node.wireguard_pids()]
    texts = {}
    for status in statuses:
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
            texts[status] = status.read_text()
    assert len(texts) > 2
    for status, text in texts.items():
        found = dict(re.findall(r"^(Cap\w+|NoNewPrivs):\s*(\w+)$", text, flags=re.MULTILINE))
        assert found.pop("NoNewPrivs") == "1"
        assert int(found["CapAmb"], 16) == 0
        assert all(int(bits, 16) & ~allowed == 0 for bits in found.values()), (status, found)


def test_another_identity_of_a_node_is_logged_with_the_old_one(fresh: Member) -> None:
    fresh.start()
    fresh.set_up({"enabled": False})
    before = fresh.node.log.read_text()
    fresh.set_up({"enabled": False})  # the same again is nothing new
    assert "another" not in before + fresh.node.log.read_text()
    fresh.request("set_local_node_id", node_id=77)
    fresh.request(
        "setup_global_overlay",
        deployment="lab",
        instance_id="i-2",
        cluster_cidr="10.200.0.0/16",
        slice_cidr="10.200.44.0/24",
        wg_port=51820,
        nat={"enabled": False},
    )
    log = fresh.node.log.read_text()
    for told in ("another node id: 12 -> 77", "another instance_id: ", " -> i-2", " -> 10.200.44.0/24"):
        assert told in log, log
    assert "another deployment" not in log
