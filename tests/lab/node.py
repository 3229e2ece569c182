"""A node: a network namespace, a private /run, and the real daemon in them.

Owns: the daemon's process, its directories and its log.  Must not know: the underlay (`lab.lab` lays it), or what is
asked of the daemon.
"""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from lab import netns, processes
from lab.frames import Connection
from lab.patience import LIMIT, until
from lab.processes import CommandFailed, environment
from lab.warm import Forked, Warm, process

DAEMON = [sys.executable, "-c", "from overlayd.cli import daemon; daemon()"]
CONTROL = [sys.executable, "-c", "from overlayd.cli import control; control()"]

# `ip netns exec` gives a program the namespace and a mount namespace with a matching /sys.  In it the node has names of
# its own, and a /run of its own: so each node has its /run/wireguard, and a wireguard-go that outlives the daemon is
# found by the next one.  /run comes last: /etc/resolv.conf may be a link into the host's.
ENTER = 'while [ "$1" != -- ]; do mount --bind "$1" "$2" && shift 2 || exit; done; shift && exec "$@"'


class DaemonExited(Exception):
    """The daemon ended before it was ready.  code: its exit code (-N: killed by signal N); log: what it wrote."""

    def __init__(self, code: int, log: str) -> None:
        self.code = code
        self.log = log
        super().__init__(f"the daemon exited with code {code}\n{log}")


class Node:
    """name: for people.  address: on the underlay.  directory: holds the data directory, socket, log, the private
    /run, and what the node has as /etc/hosts and /etc/resolv.conf: `hosts` and `resolv_conf`, which may be rewritten.
    program: the daemon's command line without its options.  cold: whether it is executed in any case, where another
    process has imported it already (`lab.warm`).
    """

    def __init__(self, name: str, prefix: str, directory: Path, address: IPv4Interface | IPv6Interface) -> None:
        self.name = name
        self.prefix = prefix
        self.netns = f"{prefix}-{name}"  # as in `ip netns exec`
        self.namespace = netns.DIRECTORY / self.netns
        self.address = address.ip
        self.run_directory = directory / "run"
        self.data_dir = directory / "data"
        self.socket = directory / "overlayd.sock"
        self.log = directory / "overlayd.log"
        self.hosts = directory / "hosts"
        self.resolv_conf = directory / "resolv.conf"
        self.machine_id = directory / "machine-id"  # the host's, unless it is written
        self.program = DAEMON
        self.cold = False
        self.daemon: subprocess.Popen[bytes] | Forked | None = None
        self._connections: list[Connection] = []
        self._directory = directory
        self.run_directory.mkdir(parents=True)
        self.hosts.write_text("127.0.0.1 localhost\n")
        self.resolv_conf.write_text("nameserver 127.0.0.1\n")  # nobody: an answer comes at once, and it is no

    def command(self, argv: Sequence[str | Path]) -> list[str]:
        """The command line that runs `argv` as a program of this node."""
        enter = ["ip", "netns", "exec", self.netns, "sh", "-c", ENTER, "sh"]
        return [*enter, *(path for bind in self._binds() for path in bind), "--", *map(str, argv)]

    def _binds(self) -> list[tuple[str, str]]:
        """What of this node is mounted over what of the host's."""
        binds = [(self.hosts, "/etc/hosts"), (self.resolv_conf, "/etc/resolv.conf")]
        if self.machine_id.exists():
            binds.append((self.machine_id, "/etc/machine-id"))
        return [(str(path), over) for path, over in (*binds, (self.run_directory, "/run"))]

    def run(self, argv: Sequence[str | Path], *, timeout: float = LIMIT) -> str:
        """Run a program on this node and return what it printed."""
        words = [str(each) for each in argv]
        code, printed, complained = self._run_to_end(process("program"), words, words, timeout)
        if code:
            raise CommandFailed(f"{' '.join(words)}: exit code {code}\n{printed}{complained}".rstrip())
        return printed

    def overlayctl(self, *arguments: str) -> str:
        """What `overlayctl --socket SOCKET ARGUMENTS` prints; CommandFailed when it fails."""
        code, printed, complained = self.try_overlayctl(*arguments)
        if code:
            said = f"{printed}{complained}".rstrip()
            raise CommandFailed(f"overlayctl {' '.join(arguments)}: exit code {code}\n{said}")
        return printed

    def try_overlayctl(self, *arguments: str) -> tuple[int, str, str]:
        """The exit code of `overlayctl --socket SOCKET ARGUMENTS`, what it prints, and what it complains of."""
        arguments = ("--socket", str(self.socket), *arguments)
        return self._run_to_end(process("control"), arguments, [*CONTROL, *arguments], LIMIT)

    def _run_to_end(
        self, warm: Warm | None, arguments: Sequence[str], argv: Sequence[str], timeout: float
    ) -> tuple[int, str, str]:
        """The exit code of a command with these arguments, forked of its warm process or else executed as `argv`, what
        it prints, and what it complains of.
        """
        with TemporaryFile() as output, TemporaryFile() as errors:
            if warm is not None:
                forked = self._fork(warm, arguments, output, errors)
                try:
                    code = forked.wait(timeout)
                except subprocess.TimeoutExpired:
                    forked.send_signal(signal.SIGKILL)
                    raise
            else:
                code = subprocess.run(
                    self.command(argv),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=errors,
                    timeout=timeout,
                    env=environment(self.prefix),
                    check=False,
                ).returncode
            output.seek(0)
            errors.seek(0)
            return code, output.read().decode(), errors.read().decode()

    def _fork(
        self,
        warm: Warm,
        arguments: Sequence[str],
        output: IO[bytes],
        errors: IO[bytes],
    ) -> Forked:
        return warm.start(
            arguments,
            namespace=self.netns,
            binds=self._binds(),
            environment=environment(self.prefix),
            output=output,
            errors=errors,
        )

    def endpoint(self, port: int) -> str:
        """`host:port` on the underlay, as WireGuard writes it."""
        return f"[{self.address}]:{port}" if self.address.version == 6 else f"{self.address}:{port}"

    def write_sysctl(self, path: str, value: str) -> None:
        """Set /proc/sys/PATH as this node sees it."""
        self.run(["sh", "-c", f"echo {value} > /proc/sys/{path}"])

    def open_socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A socket of this node, for use from the test's own process."""
        return netns.open_socket(self.namespace, family, kind)

    # -- the daemon ---------------------------------------------------------------------------------------------------

    def daemon_argv(self, *options: str) -> list[str]:
        """The arguments that run the daemon on this node's data directory and socket."""
        return [*self.program, *self._daemon_options(*options)]

    def _daemon_options(self, *options: str) -> list[str]:
        return ["--data-dir", str(self.data_dir), "--socket", str(self.socket), *options]

    def try_daemon(self, argv: Sequence[str], timeout: float = LIMIT) -> tuple[int, str]:
        """Run a daemon that is expected to end by itself; return its exit code and what it logged."""
        own = len(DAEMON)
        warm = process("daemon") if list(argv[:own]) == DAEMON and not self.cold else None
        code, printed, complained = self._run_to_end(warm, argv[own:], argv, timeout)
        return code, printed + complained

    def start(self, *options: str, timeout: float = LIMIT) -> None:
        """Start the daemon and wait until it listens; DaemonExited when it ends instead."""
        assert self.daemon is None, f"{self.name}: the daemon runs already"
        with self.log.open("ab") as log:
            if (warm := process("daemon")) is not None and self.program is DAEMON and not self.cold:
                self.daemon = self._fork(warm, self._daemon_options(*options), log, log)
            else:
                # Its own session: Ctrl-C in the terminal reaches the laboratory alone, which then ends the daemon.
                self.daemon = subprocess.Popen(
                    self.command(self.daemon_argv(*options)),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment(self.prefix),
                    start_new_session=True,
                )
        until(self._listens, lambda: f"{self.name}: the daemon does not listen\n{self.log_tail()}", seconds=timeout)

    def _listens(self) -> bool:
        assert self.daemon is not None
        if (code := self.daemon.poll()) is not None:
            self.daemon = None
            raise DaemonExited(code, self.log_tail())
        try:
            Connection(self.socket).close()
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True

    def connect(self) -> Connection:
        """A new connection to the daemon; closed with the node, if not before."""
        connection = Connection(self.socket)
        self._connections.append(connection)
        return connection

    def _signal(self, number: signal.Signals) -> int:
        assert self.daemon is not None, f"{self.name}: no daemon runs"
        self.daemon.send_signal(number)
        return self.wait()

    def wait(self, timeout: float = LIMIT) -> int:
        """Wait until the daemon has ended by itself; return its exit code."""
        assert self.daemon is not None, f"{self.name}: no daemon runs"
        code = self.daemon.wait(timeout)
        self.daemon = None
        return code

    def stop(self) -> int:
        """SIGTERM; return the exit code."""
        return self._signal(signal.SIGTERM)

    def kill(self) -> int:
        """SIGKILL."""
        return self._signal(signal.SIGKILL)

    def log_tail(self, lines: int = 60) -> str:
        """The end of the daemon's log."""
        return (
            "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else "(no log)"
        )

    def close(self) -> None:
        """Hang up and end the daemon, without ceremony; the rest goes with the laboratory."""
        for connection in self._connections:
            connection.close()
        if self.daemon is not None:
            self.kill()

    # -- what the kernel shows ----------------------------------------------------------------------------------------

    def pids(self) -> set[int]:
        """The processes that live in this node's namespace."""
        inode = netns.inode(self.netns)
        return {pid for pid in processes.pids() if processes.namespace_of(pid) == inode}

    def wireguard_pids(self) -> set[int]:
        """The userspace WireGuard processes of this node."""
        return {pid for pid in self.pids() if processes.name(pid).startswith("wireguard")}

    def footprint(self) -> dict[str, object]:
        """Links, addresses, routes and firewall, for comparing before and after.

        Left out is what comes and goes by itself, carrier and the addresses that IPv6 gives every link, and what says
        nothing of what a packet meets: counters, numbers (handles) of rules, and members that packets put into sets.
        """
        ruleset = json.loads(self.run(["nft", "--json", "--stateless", "list", "ruleset"]))["nftables"]
        for statement in ruleset:
            for body in statement.values():
                body.pop("handle", None)
                if "timeout" in body.get("flags", ()):
                    body.pop("elem", None)  # what packets have put there
                if "elem" in body:
                    body["elem"].sort(key=json.dumps)
        return {
            "links": [
                [link.get(key) for key in ("ifindex", "ifname", "address", "mtu", "group", "master", "ifalias")]
                for link in self._ip("link")
            ],
            "addresses": [
                [link["ifname"], address["local"], address["prefixlen"]]
                for link in self._ip("address")
                for address in link["addr_info"]
                if not address["local"].startswith("fe80:")
            ],
            "routes": sorted(
                [str(route.get(key)) for key in ("table", "dst", "gateway", "dev", "protocol", "metric", "prefsrc")]
                for family in ("-4", "-6")
                for route in self._ip(family, "route", "show", "table", "all")
                if not route["dst"].startswith(("fe80:", "ff00:"))
            ),
            "firewall": ruleset,
        }

    def _ip(self, *arguments: str) -> list[dict[str, Any]]:
        shown: list[dict[str, Any]] = json.loads(self.run(["ip", "-j", *arguments]) or "[]")
        return shown
