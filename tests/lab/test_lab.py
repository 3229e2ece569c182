"""The laboratory itself: what the other tests stand on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab import CommandFailed, Lab, Node, Ping, netns, ping, processes, run, sweep, transfer
from lab.lab import OUTSIDE
from lab.patience import until
from lab.traffic import MARKER

# What `overlayd` will do for a container, by hand: veth, address, default route through a bridge.
BRIDGE = """
ip link add bridge0 type bridge && ip address add 10.9.0.1/28 dev bridge0 && ip link set bridge0 up
ip link add host0 type veth peer name eth0 netns {pid} && ip link set host0 master bridge0 up
nsenter --net=/proc/{pid}/ns/net sh -c '
  ip address add 10.9.0.2/28 dev eth0; ip link set eth0 up; ip route add default via 10.9.0.1'
"""

# A laboratory that says what it made and then waits to be killed.
VICTIM = """
import time
from lab import Lab
with Lab() as lab:
    container, node = lab.container(), lab.node("victim")
    print(lab.prefix, lab.directory, container.pid, flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def alpha(lab: Lab) -> Node:
    return lab.node("alpha")


@pytest.fixture(scope="module")
def beta(lab: Lab) -> Node:
    return lab.node("beta")


def test_nodes_reach_each_other_and_the_outside(alpha: Node, beta: Node) -> None:
    ping(alpha, str(beta.address))
    ping(beta, str(OUTSIDE.ip))


def test_a_node_that_joins_cuts_nobody_off(lab: Lab, alpha: Node) -> None:
    """A bridge that takes a new port's hardware address is lost to its neighbours until they ask again."""
    lab.node("late")
    run(["ip", "-n", lab.router, "link", "set", "late", "address", "02:00:00:00:00:01"])
    assert netns.BRIDGE_MAC in run(["ip", "-n", lab.router, "link", "show", "underlay"])
    ping(alpha, str(OUTSIDE.ip), count=1)


def test_a_container_reaches_the_bridge_of_its_node_and_nothing_else(lab: Lab, alpha: Node, beta: Node) -> None:
    container = lab.container()
    alpha.run(["sh", "-ec", BRIDGE.format(pid=container.pid)])
    ping(container, "10.9.0.1")
    with pytest.raises(AssertionError):
        ping(container, str(beta.address), count=1, options=["-w", "1"])


def test_a_capture_sees_sizes_ports_and_contents(lab: Lab, alpha: Node, beta: Node) -> None:
    capture = lab.capture(alpha)
    with capture:
        result = transfer(alpha, beta, str(beta.address), megabytes=1)
        with alpha.open_socket(kind=2) as sender:
            sender.sendto(b"\x04\0\0\0" + bytes(28), (str(beta.address), 4567))
            sender.sendto(b"\x04\0\0\0" + bytes(27), (str(beta.address), 4567))
        ping(alpha, str(beta.address), count=1)
    packets = capture.packets()
    assert result.client == str(alpha.address)
    assert capture.holds(MARKER)
    assert not capture.holds(MARKER[::-1])
    assert {packet.source for packet in packets} == {alpha.address, beta.address}
    datagrams = [packet for packet in packets if packet.destination_port == 4567]
    assert [(packet.size, packet.is_wireguard(4567)) for packet in datagrams] == [(60, True), (59, False)]
    assert not datagrams[0].is_wireguard(4568)


def test_a_ping_has_all_echoes_and_a_time(alpha: Node, beta: Node) -> None:
    done = ping(alpha, str(beta.address), count=20)
    assert done.received == set(range(1, 21))
    assert done.round_trip() > 0


def test_a_running_ping_reports_what_was_lost(alpha: Node, beta: Node) -> None:
    first, second = Ping(alpha, str(beta.address)), Ping(alpha, str(beta.address))
    second.wait_for(20)
    assert second.stop() == []
    first.wait_for(20)
    beta.run(["ip", "link", "set", "uplink", "down"])
    sent = first.sent
    until(lambda: first.sent > sent + 3)
    before = max(first.received)
    beta.run(["ip", "link", "set", "uplink", "up"])
    first.wait_for(1)
    lost = first.stop()
    assert lost
    assert lost == list(range(before + 1, min(first.received - set(range(before + 1)))))


def test_a_running_ping_of_ipv6_and_one_without_a_way(lab: Lab, alpha: Node) -> None:
    alpha.write_sysctl("net/ipv6/conf/lo/disable_ipv6", "0")
    through = Ping(alpha, "::1", 0.001)
    through.wait_for(20)
    assert through.stop() == []
    nowhere = Ping(alpha, "2001:db8::1")
    with pytest.raises(TimeoutError, match="last error"):
        nowhere.wait_for(1, timeout=0.1)
    assert nowhere.stop() == []
    assert not nowhere.received


def test_a_running_ping_ends_with_its_container(lab: Lab) -> None:
    with lab.container() as container:
        running = Ping(container, "127.0.0.1")
    until(lambda: not running._thread.is_alive())


def test_each_node_has_its_own_run(alpha: Node, beta: Node) -> None:
    alpha.run(["mkdir", "/run/wireguard"])
    assert "wireguard" in alpha.run(["ls", "/run"])
    assert "wireguard" not in beta.run(["ls", "/run"])


def test_a_failing_program_is_reported_with_what_it_said(alpha: Node) -> None:
    with pytest.raises(CommandFailed, match=r"exit code 3\nbecause"):
        alpha.run(["sh", "-c", "echo because >&2; exit 3"])


def test_nothing_is_left_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), Lab() as lab:
        container = lab.container()
        stray = lab.node("gamma").run(["sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!"])
        raise ZeroDivisionError
    assert netns.named(lab.prefix) == []
    assert not lab.directory.exists()
    assert processes.start_time(container.pid) is None
    assert processes.start_time(int(stray)) is None


def start_victim() -> tuple[subprocess.Popen[str], str, str, int]:
    """A laboratory in another process: the process, the laboratory's prefix and directory, its container's pid."""
    path = os.pathsep.join(sys.path)
    argv = ["env", "--default-signal=INT", sys.executable, "-c", VICTIM]  # a background job would ignore it
    victim = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path})
    assert victim.stdout is not None
    prefix, directory, pid = victim.stdout.readline().split()
    victim.stdout.close()
    return victim, prefix, directory, int(pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_removes_everything(number: signal.Signals) -> None:
    victim, prefix, directory, pid = start_victim()
    victim.send_signal(number)
    assert victim.wait(20) != 0
    assert netns.named(prefix) == []
    assert not os.path.exists(directory)  # noqa: PTH110
    assert processes.start_time(pid) is None


def test_the_next_laboratories_sweep_what_a_killed_one_left() -> None:
    """One of them does, also when several begin at once."""
    victim, prefix, directory, pid = start_victim()
    living, spared, _, _ = start_victim()
    victim.kill()
    victim.wait()
    try:
        assert netns.named(prefix)
        with ThreadPoolExecutor() as pool:
            swept = [each for prefixes in pool.map(lambda _: sweep(), range(4)) for each in prefixes]
        assert swept.count(prefix) <= 1  # none: another session's laboratory swept first
        assert not Path(directory).exists()
        assert netns.named(prefix) == []
        assert processes.start_time(pid) is None
        assert netns.named(spared)
    finally:
        living.terminate()
        living.wait(20)


def test_the_host_sees_no_link_of_a_laboratory(lab: Lab) -> None:
    before = run(["ip", "-br", "link"])
    lab.node("delta")
    time.sleep(0.1)
    assert run(["ip", "-br", "link"]) == before
