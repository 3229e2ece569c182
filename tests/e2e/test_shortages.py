"""System calls that fail for want of descriptors or memory are told as that, and nothing ends or waits for it."""

import contextlib
import errno
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from lab import Lab, Refused
from lab.cluster import Member
from lab.patience import LIMIT, until


@pytest.fixture
def alpha() -> Iterator[Member]:
    with Lab() as lab:
        alpha = Member(lab, 1, "alpha")
        alpha.start("--metrics", "9586")
        alpha.set_up({"enabled": False})
        alpha.set_up_service("web")
        yield alpha


@contextlib.contextmanager
def no_descriptor(pid: int) -> Iterator[None]:
    """The process gets no descriptor any more, also not in place of one that it closes: each would have a number above
    its limit.  Its event loop goes on with what is open.
    """
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))  # its standard streams stay open
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def test_every_request_says_what_there_is_none_of(alpha: Member) -> None:
    assert alpha.node.daemon is not None
    container, log = alpha.lab.container(), alpha.node.log
    before = len(log.read_text())
    with no_descriptor(alpha.node.daemon.pid):
        for op, keys in (
            ("doctor", {}),
            ("attach_container", {"handle": container.handle, "service": "web", "join_global": False}),
            ("setup_service_overlay", {"service": "other", "mode": "auto"}),
            ("attach_container", {"handle": guest("vm"), "service": "web", "join_global": False}),
            ("mint_edge_peer", {"name": "laptop", "ttl_secs": 60, "allow": []}),
            ("prune_orphan_bridges", {"live_bridge_names": []}),
        ):
            with pytest.raises(Refused, match=os.strerror(errno.EMFILE)) as refused:
                alpha.request(op, **keys)
            assert "internal error" not in str(refused.value), op
        alpha.request("status")
    told = log.read_text()[before:]
    assert "Traceback" not in told, told
    alpha.attach(container, "web")
    alpha.set_up_service("other")


def guest(name: str) -> dict[str, str]:
    return {"platform": "guest_managed", "id": name}


def accepted(pid: int, link: socket.socket) -> bool:
    """Whether the process has taken the connection over from its kernel, which then lists it with an inode."""
    port = f":{link.getsockname()[1]:04X}"
    rows = [row.split() for row in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()]
    return any(row[2].endswith(port) and row[9] != "0" for row in rows)


def test_what_cannot_be_measured_is_answered_at_once(alpha: Member) -> None:
    assert alpha.node.daemon is not None
    pid = alpha.node.daemon.pid
    with alpha.node.open_socket() as link:
        link.settimeout(LIMIT)  # who asks is hung up on after ten seconds, without an answer
        link.connect(("127.0.0.1", 9586))
        until(lambda: accepted(pid, link))
        with no_descriptor(pid):
            link.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            answer = link.makefile("rb").read().decode()
    assert answer.startswith("HTTP/1.1 503 ") and os.strerror(errno.EMFILE) in answer


def test_a_container_that_could_not_be_watched_is_watched_later(alpha: Member) -> None:
    assert alpha.node.daemon is not None
    container = alpha.lab.container()
    pid, log = alpha.node.daemon.pid, alpha.node.log
    trace = alpha.node.run_directory / "strace"
    argv = ["strace", "-f", "-qq", "-o", str(trace), "-e", "trace=pidfd_open", "-e", "inject=pidfd_open:error=EMFILE"]
    with psutil.Popen([*argv, "-p", str(pid)]) as strace:
        until(lambda: "TracerPid:\t0" not in Path(f"/proc/{pid}/status").read_text())
        alpha.attach(container, "web")
        until(lambda: "is not watched, to be tried again in 5 s" in log.read_text())
        strace.terminate()
    container.kill()
    until(lambda: not alpha.request("list", what="containers").get("containers"))
