"""A service manager that holds the daemon's socket: clients wait while the daemon is replaced."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lab import Lab
from lab.cluster import Member
from lab.node import Node
from lab.processes import environment

# What systemd does between fork and exec (sd_listen_fds(3)).
PASS = """\
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="overlayd.socket")
os.execv(sys.argv[2], sys.argv[2:])
"""


@contextmanager
def held(node: Node) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(node.socket))
        listener.listen()
        yield listener


def start(node: Node, listener: socket.socket, *options: str) -> subprocess.Popen[bytes]:
    """Start a daemon as systemd does.  Returns at once: clients can connect already."""
    argv = [sys.executable, "-c", PASS, str(listener.fileno()), *node.daemon_argv(*options)]
    with node.log.open("ab") as log:
        return subprocess.Popen(
            node.command(argv),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment(node.prefix),
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )


def test_clients_wait_while_the_daemon_is_replaced() -> None:
    with Lab() as lab:
        member = Member(lab, 1, "alpha")
        node = member.node
        with held(node) as listener:
            node.daemon = start(node, listener)
            member.connection = node.connect()
            member.set_up()
            place = os.stat(node.socket).st_ino  # noqa: PTH116 - the file, whatever it leads to
            for end in (node.stop, node.kill):
                end()
                waiting = node.connect()
                node.daemon = start(node, listener)
                assert waiting.request("status")["public_key"] == member.public_key
                assert os.stat(node.socket).st_ino == place  # noqa: PTH116
            number = os.fstat(listener.fileno()).st_ino
            for pid in node.wireguard_pids():
                files = []
                for each in Path(f"/proc/{pid}/fd").iterdir():
                    with suppress(FileNotFoundError):  # it is closed already
                        files.append(str(each.readlink()))
                assert f"socket:[{number}]" not in files, "what outlives the daemon does not have its socket"


def test_a_socket_of_another_path_is_refused() -> None:
    with Lab() as lab:
        node = lab.node("alpha")
        with held(node) as listener:
            daemon = start(node, listener, "--socket", f"{node.socket}.other", "--cni-socket", "none")
            assert daemon.wait(60) == 78
            assert f"holds the socket {node.socket}, which is neither --socket" in node.log_tail()
