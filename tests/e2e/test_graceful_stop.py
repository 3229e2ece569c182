"""SIGTERM with requests in flight: each is done, or refused as a whole, or its client told that nobody waits for it."""

import base64
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from lab import Lab, Refused
from lab.cluster import Member
from lab.crowd import Crowd
from lab.frames import Connection, request_frame
from lab.patience import LIMIT, until
from lab.processes import stop

SIZE, CLIENTS = 200, 4


def with_patience(seconds: float) -> list[str]:
    """A daemon that waits for so long, when it is stopped, for the changes in flight."""
    patience = f"main.PATIENCE = {seconds}"
    return [
        sys.executable,
        "-c",
        f"from overlayd.cli import daemon; from overlayd.daemon import main; {patience}; daemon()",
    ]


WISH = {"service": "web", "join_global": True, "isolation_network": "n"}


def ask(connection: Connection, op: str, pids: list[int], **keys: Any) -> dict[int, dict[str, Any]]:
    """One request a container, pipelined; return the answers that came before the daemon hung up, by pid."""
    handles = {pid: {"platform": "linux_pid", "pid": pid} for pid in pids}
    connection.send(b"".join(request_frame(pid, op, handle=handle, **keys) for pid, handle in handles.items()))
    answers = {}
    for _ in pids:
        try:
            message = connection.receive()
        except EOFError:
            break
        answers[message["id"]] = message["response"]
    return answers


def ask_on(connection: Connection) -> list[str]:
    """One request after the other, of those that wait for nothing, until the daemon hangs up; return the refusals.
    Without the pause this would be a flood, beside which the changes in flight may take longer than a stop waits.
    """
    refusals = []
    while True:
        time.sleep(0.001)
        try:
            connection.request("status")
        except Refused as refusal:
            refusals.append(str(refusal))
        except (EOFError, BrokenPipeError):
            return refusals


def host_ends(member: Member) -> set[int]:
    """The pids of the containers with a veth."""
    lines = member.node.run(["ip", "-br", "link"]).splitlines()
    return {int(line.split("-")[1]) for line in lines if line.startswith("veth-")}


def test_all_are_answered_and_nothing_is_half_done() -> None:
    with Lab() as lab, Crowd(lab.prefix, SIZE) as crowd:
        member = Member(lab, 1, "alpha")
        member.node.program = with_patience(LIMIT)  # how many changes are through in ten seconds is not the question
        member.start()
        member.set_up()
        member.request("setup_service_overlay", service="web", mode="shared", subnet="10.200.64.0/22")
        bare = member.node.footprint()
        connections = [member.node.connect() for _ in range(CLIENTS)]
        with ThreadPoolExecutor(CLIENTS + 1) as pool:
            asked = [
                pool.submit(ask, each, "attach_container", crowd.pids[at::CLIENTS], **WISH)
                for at, each in enumerate(connections)
            ]
            asking_on = pool.submit(ask_on, member.connection)
            assert member.node.daemon is not None
            while not host_ends(member):
                pass
            os.kill(member.node.daemon.pid, signal.SIGTERM)
            answers = {pid: answer for future in asked for pid, answer in future.result().items()}
        assert member.node.wait() == 0
        attached = {pid for pid, answer in answers.items() if answer["result"] == "attached"}
        refused = [answer["message"] for answer in answers.values() if answer["result"] == "err"]
        refused += asking_on.result()
        print(f"{len(attached)} attached, {len(refused)} refused, {SIZE - len(answers)} not answered")
        assert attached
        assert set(refused) == {"shutting down"}
        assert host_ends(member) == attached, "what was not answered was not done"

        stopped = member.node.footprint()
        member.start()
        assert member.node.footprint() == stopped, "the next daemon finds nothing to repair"
        ask(member.connection, "attach_container", crowd.pids, **WISH)
        assert host_ends(member) == set(crowd.pids)
        ask(member.connection, "detach_container", crowd.pids)
        assert member.node.footprint() == bare


def test_a_change_that_outlasts_the_stop(lab: Lab) -> None:
    member = Member(lab, 8, "slow")
    node = member.node
    journal = node.data_dir / "journal"
    node.program = with_patience(0.5)
    member.start()
    interface = member.set_up()["interface"]
    (pid,) = node.wireguard_pids()
    key = "c3RyYW5nZXIgc3RyYW5nZXIgc3RyYW5nZXIgc3RyYW4="
    peer = {"public_key": key, "endpoint": "", "allowed_ips": "10.200.9.0/24", "persistent_keepalive_secs": 0}
    stop(pid)
    try:
        connection = member.connection
        connection.send(request_frame(1, "add_peer", **peer))
        until(lambda: base64.b64decode(key).hex().encode() in journal.read_bytes())  # the device is next
        assert node.daemon is not None
        node.daemon.send_signal(signal.SIGTERM)
        answer = connection.receive()["response"]
        with pytest.raises(EOFError):
            connection.receive()
    finally:
        os.kill(pid, signal.SIGCONT)
    assert answer["result"] == "err"
    assert answer["message"].startswith("shutting down")
    assert "may still take effect" in answer["message"]
    assert node.wait() == 0
    assert key in node.run(["wg", "show", interface, "peers"])
    member.start()
    member.request("add_peer", **peer)
    assert node.run(["wg", "show", interface, "peers"]).split() == [key]
