"""A wireguard-go that lives and does not answer: nobody waits for it for long, and in the end another takes over.

With shorter deadlines than a user has, so that a test takes seconds.
"""

import os
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from lab import CommandFailed, Lab, Refused, ping
from lab.cluster import Member, Pair
from lab.patience import until
from lab.processes import stop

DEADLINE = 1.0  # seconds for which an exchange waits
HUNG = 3  # readings without an answer
PROGRAM = [
    sys.executable,
    "-c",
    f"""
from overlayd.cli import daemon
from overlayd.linux.wireguard import process
from overlayd.model import health
process.ANSWER_DEADLINE, process._END_DEADLINE, health.HUNG = {DEADLINE}, 0.5, {HUNG}
daemon()
""",
]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Pair]:
    with Lab() as lab:
        pair = Pair(lab)
        pair.alpha.node.stop()
        pair.alpha.node.program = PROGRAM
        pair.alpha.start()
        yield pair


@pytest.fixture
def stopped(nodes: Pair) -> Iterator[int]:
    """The process of alpha's device, which was stopped."""
    (pid,) = nodes.alpha.node.wireguard_pids()
    stop(pid)
    yield pid
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def configured(member: Member, interface: str) -> str:
    """As wg shows it; nothing while no process serves the device."""
    with suppress(CommandFailed):
        return member.node.run(["wg", "showconf", interface])
    return ""


def assert_replaced(nodes: Pair, pid: int, configuration: str) -> None:
    """Another process with the same configuration comes, and the tunnel works."""
    node = nodes.alpha.node
    until(lambda: f"ended process {pid}" in node.log.read_text())
    until(lambda: node.wireguard_pids() not in (set(), {pid}))
    interface = nodes.alpha.request("status")["interface"]
    until(lambda: configured(nodes.alpha, interface) == configuration)
    ping(nodes.web, nodes.db_address)


@pytest.fixture
def configuration(nodes: Pair) -> str:
    return configured(nodes.alpha, nodes.alpha.request("status")["interface"])


def test_requests_are_refused_in_time_and_another_process_takes_over(
    nodes: Pair, configuration: str, stopped: int
) -> None:
    alpha = nodes.alpha
    took = []
    for _ in range(20):
        started = time.monotonic()
        with pytest.raises(Refused, match="does not answer"):
            alpha.request("add_allowed_ip", pubkey=nodes.beta.public_key, cidr="10.200.9.0/24")
        took.append(time.monotonic() - started)
    # Whoever waits takes DEADLINE at least; of the others one or two may on a busy machine.
    assert took[0] >= DEADLINE > statistics.median(took), "the first waits, and the others know"
    box = alpha.lab.container()
    alpha.attach(box, "web")
    ping(box, nodes.web_address)
    until(lambda: "does not answer" in [finding["problem"] for finding in alpha.request("doctor")["findings"]])
    assert_replaced(nodes, stopped, configuration)
    alpha.detach(box)


def test_one_that_was_only_paused_stays_and_what_it_heard_meanwhile_is_taken_back(
    nodes: Pair, configuration: str, stopped: int
) -> None:
    node = nodes.alpha.node
    before = len(node.log.read_text())
    with pytest.raises(Refused, match="does not answer"):
        nodes.alpha.request("add_allowed_ip", pubkey=nodes.beta.public_key, cidr="10.200.9.0/24")
    interface = nodes.alpha.request("status")["interface"]
    until(lambda: f"{interface} does not answer" in node.log.read_text()[before:])
    os.kill(stopped, signal.SIGCONT)
    until(lambda: f"{interface} answers again" in node.log.read_text()[before:])
    until(lambda: node.run(["wg", "showconf", interface]) == configuration)
    assert node.wireguard_pids() == {stopped}
    ping(nodes.web, nodes.db_address)


def test_a_start_does_not_wait_for_it(nodes: Pair, configuration: str, stopped: int) -> None:
    nodes.alpha.node.kill()
    nodes.alpha.start()
    assert nodes.alpha.request("status")["interface"]
    assert_replaced(nodes, stopped, configuration)
