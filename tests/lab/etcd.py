"""An etcd of one or several members, each in a node's namespace, as Debian packages it or another program.

Owns: the members' processes and data.  Must not know: what is kept in it.
"""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from lab.lab import Lab
from lab.node import Node
from lab.patience import until
from lab.processes import CommandFailed, environment, stop

CLIENTS, MEMBERS = 2379, 2380
PATIENT = ("--command-timeout=20s", "--dial-timeout=20s")  # of etcdctl, which gives up within seconds otherwise


class EtcdMember:
    """options: further ones of etcd.  scheme: of the clients' URL."""

    def __init__(self, node: Node, program: str, options: Sequence[str] = (), scheme: str = "http") -> None:
        self.node = node
        self.program = program
        self.options = list(options)
        self.url = f"{scheme}://{node.endpoint(CLIENTS)}"
        self.peer_url = f"http://{node.endpoint(MEMBERS)}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, initial: str, state: str = "new") -> None:
        argv = [self.program, "--name", self.node.name, "--data-dir", str(self.node.data_dir)]
        argv += ["--listen-client-urls", self.url, "--advertise-client-urls", self.url]
        argv += ["--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls", self.peer_url]
        argv += ["--initial-cluster", initial, "--initial-cluster-state", state, *self.options]
        with self.node.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.node.command(argv), stdout=log, stderr=log, env=environment(self.node.prefix)
            )

    def signal(self, number: signal.Signals) -> None:
        """To etcd itself, which is a grandchild of ours or our child by now."""
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> None:
        """SIGSTOP: it is there, and does not answer."""
        assert self.process is not None
        stop(self.process.pid)

    def metrics(self) -> str:
        """As it tells them."""
        program = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1]).read().decode())"
        return self.node.run([sys.executable, "-c", program, f"{self.url}/metrics"])

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


class Etcd:
    """A context manager: members NAME1, NAME2, ... start with the block, and end with it.  program: that they run;
    options: of each member; ctl_options: of etcdctl.
    """

    def __init__(
        self,
        lab: Lab,
        members: int = 1,
        options: Sequence[str] = (),
        *,
        scheme: str = "http",
        name: str = "m",
        program: str = "etcd",
    ) -> None:
        self.ctl_options: list[str] = []
        nodes = [lab.node(f"{name}{number + 1}") for number in range(members)]
        self.members = [EtcdMember(node, program, options, scheme) for node in nodes]

    def __enter__(self) -> "Etcd":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def urls(self) -> str:
        """All of them, as `--etcd` takes them."""
        return ",".join(member.url for member in self.members)

    @property
    def options(self) -> list[str]:
        """Those of the daemon."""
        return ["--etcd", self.urls, "--etcd-insecure"]

    def start(self) -> None:
        """Start those that do not run, and wait until they agree."""
        for member in self.members:
            if member.process is None:
                member.start(self.initial)
        until(self.is_healthy, "etcd is not healthy")

    def is_healthy(self) -> bool:
        try:
            self.ctl("put", "health", "x")
        except Exception:
            return False
        return True

    def kill(self) -> None:
        for member in self.members:
            member.kill()

    def stop(self) -> None:
        """SIGSTOP: they are there, and do not answer."""
        for member in self.members:
            member.stop()

    def go_on(self) -> None:
        for member in self.members:
            member.signal(signal.SIGCONT)

    def wipe(self) -> None:
        """Lose everything, and start empty."""
        self.kill()
        for member in self.members:
            member.node.run(["rm", "-rf", member.node.data_dir])
        self.start()

    def back_up(self) -> Path:
        """A snapshot of what it has."""
        member = self.members[0]
        path = member.node.data_dir.with_name("backup")
        path.unlink(missing_ok=True)
        self.ctl("snapshot", "save", str(path), member=member)
        return path

    def restore(self, backup: Path) -> None:
        """Every member begins anew with a snapshot."""
        self.kill()
        for member in self.members:
            member.node.run(["rm", "-rf", member.node.data_dir])
            argv = ["env", "ETCDCTL_API=3", "etcdctl", "snapshot", "restore", str(backup), "--name", member.node.name]
            argv += ["--data-dir", str(member.node.data_dir), "--initial-cluster", self.initial]
            member.node.run([*argv, "--initial-advertise-peer-urls", member.peer_url])
        self.start()

    @property
    def initial(self) -> str:
        """All of them, as a member's first start takes them."""
        return ",".join(f"{each.node.name}={each.peer_url}" for each in self.members)

    def told(self) -> tuple[int, int]:
        """Messages of streams that all members have sent so far, and changes in them."""
        text = "".join(member.metrics() for member in self.members)
        messages = re.findall(r'^grpc_server_msg_sent_total\{grpc_method="Watch",.*\} (\S+)', text, re.MULTILINE)
        changes = re.findall(r"^etcd_debugging_mvcc_events_total (\S+)", text, re.MULTILINE)
        return int(sum(map(float, messages))), int(sum(map(float, changes)))

    def compact(self) -> None:
        """Forget the history, on every member: one that lags would still tell of it."""
        revision = json.loads(self.ctl("get", "health", "-w", "json"))["header"]["revision"]
        self.ctl("compact", str(revision))
        for member in self.members:
            until(partial(self._has_forgotten, member, revision - 1), f"{member.node.name} remembers")

    def _has_forgotten(self, member: EtcdMember, revision: int) -> bool:
        try:
            self.ctl("get", "health", f"--rev={revision}", "--consistency=s", member=member)
        except CommandFailed as error:
            return "has been compacted" in str(error)
        return False

    def ctl(self, *arguments: str, member: EtcdMember | None = None) -> str:
        """What etcdctl prints, asked on a member: the first living one."""
        member = member or next(each for each in self.members if each.process is not None)
        argv = ["env", "ETCDCTL_API=3", "etcdctl", "--endpoints", member.url, *PATIENT, *self.ctl_options]
        return member.node.run([*argv, *arguments])
