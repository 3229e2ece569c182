"""A daemon that may have 96 descriptors, and clients that want them all."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from lab import Connection, Lab, Refused
from lab.cluster import Member
from lab.node import Node
from lab.patience import until

DESCRIPTORS = 96
WORKERS = 6
# Attaches and detaches of each worker, or seconds of them: `make hostile` gives them.
ROUNDS = 20
SECONDS = float(os.environ.get("OVERLAYD_HOSTILE_SECONDS", "0"))


@contextlib.contextmanager
def idle_connections(node: Node, number: int) -> Iterator[list[socket.socket]]:
    """As many connections as the kernel's queue takes, of which most are hung up on."""
    with contextlib.ExitStack() as stack:
        held = []
        for _ in range(number):
            each = stack.enter_context(socket.socket(socket.AF_UNIX))
            each.setblocking(False)
            with contextlib.suppress(OSError):
                each.connect(str(node.socket))
                held.append(each)
        yield held


@pytest.fixture
def alpha() -> Iterator[Member]:
    with Lab() as lab:
        alpha = Member(lab, 1, "alpha")
        alpha.node.program = ["prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}", "--", *alpha.node.program]
        alpha.start()
        alpha.set_up({"enabled": False})
        alpha.set_up_service("web")
        yield alpha


def test_attaches_go_on_while_idle_clients_want_every_descriptor(alpha: Member) -> None:
    containers = [alpha.lab.container() for _ in range(WORKERS)]
    connections = [alpha.node.connect() for _ in range(WORKERS)]
    end = time.monotonic() + SECONDS
    refused: list[str] = []

    def work(handle: object, connection: Connection) -> None:
        turn = 0
        while (time.monotonic() < end) if SECONDS else turn < ROUNDS:
            turn += 1
            try:
                connection.request("attach_container", handle=handle, service="web", join_global=True)
                connection.request("detach_container", handle=handle)
            except (Refused, EOFError, OSError) as error:
                refused.append(repr(error))
                return

    with idle_connections(alpha.node, 300):
        working = [
            threading.Thread(target=work, args=(container.handle, connection))
            for container, connection in zip(containers, connections, strict=True)
        ]
        for thread in working:
            thread.start()
        for thread in working:
            thread.join()
        assert not refused
        assert alpha.findings() == []  # it runs a program
        alpha.request("setup_service_overlay", service="more", mode="auto")
    assert "too many connections" in alpha.node.log.read_text()
    assert f"a quarter of {DESCRIPTORS} descriptors" in alpha.node.log.read_text()

    def connects_again() -> bool:
        with contextlib.suppress(OSError, EOFError):
            connection = alpha.node.connect()
            return connection.request("status")["result"] == "status"
        return False

    until(connects_again, alpha.node.log_tail)
