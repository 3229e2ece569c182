"""A cell: a machine as far as overlayd can tell, made in some 20 ms and gone without a trace.

Owns: the namespaces (processes, mounts, network) of the cell, the daemon and the containers in it, and its end.  Must
not know: what is asked of the daemon, or what is true of it.

The code of a trial runs inside, as process 1 of the cell: when it ends the kernel ends everybody else there, and the
links, mounts and files go with them.  The daemon is a fork of a process that has imported overlayd already, not a new
interpreter: it runs the same code and is ready in a tenth of the time.
"""

import ctypes
import faulthandler
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from lab.frames import Connection, Refused, request_frame
from lab.patience import LIMIT

from overlayd import fault
from overlayd.daemon.main import main

BAD_CONFIG = 78  # EX_CONFIG of sysexits.h
CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET = 0x00020000, 0x20000000, 0x40000000  # linux/sched.h
MS_REC, MS_PRIVATE, MS_BIND = 0x4000, 0x40000, 0x1000  # linux/mount.h
PR_SET_PDEATHSIG = 1  # linux/prctl.h
SYS_clone3 = 435  # asm-generic/unistd.h

HOME = Path("/run/cell")  # on the cell's own file system in memory, as all of /run
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

# A default route, for the MTU and for endpoints.  Nobody is at the other end of the cable.
NETWORK = """\
link set lo up
link add uplink mtu 1500 type veth peer name cable
link set cable up
address add 172.31.0.1/24 dev uplink
link set uplink up
route add default via 172.31.0.254
"""

# What every other container has before it is attached: a way out of its own, which ours takes the place of.
WAY_OUT = """\
link add own0 address 02:00:00:00:00:01 type veth peer name own1 address 02:00:00:00:00:02
link set own1 up
link set own0 up
address add 198.51.100.2/24 dev own0
route add default via 198.51.100.1
"""

LONGEST = 5 * LIMIT  # seconds that a whole trial may take

# What a client meets when the daemon is dead, or dies.
GONE = (EOFError, BrokenPipeError, ConnectionResetError, ConnectionRefusedError, FileNotFoundError)

_libc = ctypes.CDLL(None, use_errno=True)


class Stuck(Exception):
    """The daemon neither does what was asked nor ends."""


class Crashed(Exception):
    """The daemon died of a signal that nobody sent."""


def inside(work: Callable[["Cell"], Any]) -> Any:
    """Run `work` in a new cell and return what it returned, which must be JSON.  RuntimeError when it raised."""
    readable, writable = os.pipe()
    outer = os.fork()
    if not outer:
        _found(work, writable)
    os.close(writable)
    told = b""
    deadline = time.monotonic() + LONGEST
    while select.select([readable], [], [], max(deadline - time.monotonic(), 0))[0]:
        piece = os.read(readable, 1 << 16)
        if not piece:
            break
        told += piece
    else:
        os.kill(outer, signal.SIGKILL)  # the cell dies with it
    os.close(readable)
    os.waitpid(outer, 0)
    if not told.endswith(b"\n"):
        raise RuntimeError(f"the trial did not end within {LONGEST} s")
    outcome = json.loads(told)
    if "raised" in outcome:
        raise RuntimeError(outcome["raised"])
    return outcome["returned"]


def _found(work: Callable[["Cell"], Any], writable: int) -> None:
    """Never returns."""
    try:
        _check(_libc.unshare(CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET))
        first = os.fork()
        if first:
            os.waitpid(first, 0)
            os._exit(0)
        _check(_libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL))
        _mount(None, "/", None, MS_REC | MS_PRIVATE)
        _mount("proc", "/proc", "proc")
        _mount("tmpfs", "/run", "tmpfs")
        outcome = {"returned": work(Cell())}
    except BaseException:
        outcome = {"raised": traceback.format_exc()}
    with os.fdopen(writable, "wb") as told:
        told.write(json.dumps(outcome).encode() + b"\n")
    os._exit(0)


def _check(failed: int) -> None:
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _mount(source: str | None, target: str, kind: str | None, flags: int = 0) -> None:
    _check(_libc.mount((source or "none").encode(), target.encode(), kind.encode() if kind else None, flags, None))


class _CloneArgs(ctypes.Structure):
    """struct clone_args of linux/sched.h."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            *("flags", "pidfd", "child_tid", "parent_tid", "exit_signal"),
            *("stack", "stack_size", "tls", "set_tid", "set_tid_size"),
        )
    ]


def _fork_as(pid: int) -> int:
    """fork(2), but the child has this very number (clone3(2), Linux 5.5 and later).

    Writing the last number to ns_last_pid before a fork would leave others, such as wireguard-go's threads, time to
    take it.
    """
    wanted = ctypes.c_int32(pid)
    arguments = _CloneArgs(exit_signal=signal.SIGCHLD, set_tid=ctypes.addressof(wanted), set_tid_size=1)
    got: int = _libc.syscall(SYS_clone3, ctypes.byref(arguments), ctypes.sizeof(arguments))
    _check(got < 0)
    return got


def _is_ending(process: Path) -> bool:
    """Whether it is a wireguard-go that has lost its link, which it does before it closes its sockets."""
    files = []
    with suppress(FileNotFoundError, ProcessLookupError):  # at its end
        if (process / "comm").read_text() == "wireguard-go\n":
            files = list((process / "fd").iterdir())
    for file in files:
        with suppress(FileNotFoundError, ProcessLookupError):
            if str(file.readlink()) == "/dev/net/tun":
                lines = (process / "fdinfo" / file.name).read_text().splitlines()
                return "iff:" in (line.strip() for line in lines)  # the name of the link is missing
    return bool(files)


def _refusal(spec: str) -> tuple[str, int]:
    """The first point and passage of OVERLAYD_FAULT (see `overlayd.fault`) where an operation is refused."""
    for each in spec.split(","):
        *name, passage, number = ["", *each.split(":")]
        if len(name) > 1 and passage.isdecimal() and number.isdecimal():
            return ":".join(name[1:]), int(passage)
    return "", 0


class Cell:
    """The machine; made by `inside`.  daemon: its process id, 0 while none runs."""

    def __init__(self) -> None:
        self.data = HOME / "data"
        self.socket = HOME / "overlayd.sock"
        self.log = HOME / "overlayd.log"
        self.trace = HOME / "trace"
        self.daemon = 0
        self.containers: set[int] = set()
        self.connection: Connection | None = None
        self.identity = ""  # the node's public key, once it was seen
        self._status = 0  # with which the last daemon ended
        self._refusal = ("", 0)  # the point, and its passage, where the newest daemon is refused an operation
        self._plant: Callable[[], None] = lambda: None
        self._boots = 0
        HOME.mkdir()
        self._boot()

    def plant(self, bug: Callable[[], None]) -> None:
        """Let every later daemon run `bug` before its own code."""
        self._plant = bug

    # The daemon.

    def start(self, fault: str = "") -> bool:
        """Start the daemon and wait until it listens; False when it ended instead, as `fault` may make it."""
        assert not self.daemon
        self._refusal = _refusal(fault)
        self.daemon = os.fork()
        if not self.daemon:
            self._be_daemon(fault, "--socket", str(self.socket), "--wireguard", "userspace")
        deadline = time.monotonic() + LIMIT
        while True:
            try:
                self.connection = Connection(self.socket, LIMIT)
                break
            except (FileNotFoundError, ConnectionRefusedError):
                if self.ended():
                    return False
            if time.monotonic() > deadline:
                raise Stuck(f"the daemon does not listen\n{self.last_words()}")
            time.sleep(0.001)
        # One that the last daemon had told to end may hold its port a little longer, and the next dedicated service
        # would get another one than the reference expects.
        while any(map(_is_ending, Path("/proc").glob("[0-9]*"))):
            if time.monotonic() > deadline:
                raise Stuck("a wireguard-go without a link does not end")
            time.sleep(0.001)
        return True

    def refuses_to_start_with_another_state(self) -> bool:
        """Run a daemon that knows nothing of what is on this machine; whether it refuses to start."""
        assert not self.daemon
        program = os.fork()
        if not program:
            self._be_daemon("", "--socket", str(self.socket), "--wireguard", "userspace", data=HOME / "other")
        return os.waitstatus_to_exitcode(os.waitpid(program, 0)[1]) == BAD_CONFIG

    def tear_down(self, fault: str = "") -> bool:
        """Run `overlayd --teardown`; whether it came to a good end."""
        assert not self.daemon
        program = os.fork()
        if not program:
            self._be_daemon(fault, "--teardown")
        return os.waitpid(program, 0)[1] == 0

    def _be_daemon(self, spec: str, *options: str, data: Path | None = None) -> None:
        """Never returns."""
        code = 99
        try:
            self.trace.unlink(missing_ok=True)
            os.environ["OVERLAYD_FAULT"] = spec
            os.environ["OVERLAYD_FAULT_TRACE"] = str(self.trace)
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(log, 1)
            os.dup2(log, 2)
            faulthandler.enable()  # a crash that nobody planned
            importlib.reload(fault)
            self._plant()
            code = main(["--data-dir", str(data or self.data), *options])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def request(self, op: str, **keys: Any) -> dict[str, Any] | None:
        """Ask the daemon; None when it died before it answered.  An `err` is an answer like another."""
        assert self.connection is not None
        try:
            return self.connection.request(op, **keys)
        except Refused as refusal:
            return {"result": "err", "message": str(refusal)}
        except GONE:
            return None
        except TimeoutError as error:
            raise Stuck(f"no answer to {op}\n{self.last_words()}") from error

    def request_together(self, sent: Sequence[tuple[int, dict[str, Any]]]) -> list[tuple[int, dict[str, Any]] | None]:
        """Ask the daemon for all at once.  sent: the number of a connection, and a request for it.  Returns the answers
        with their places among those of their connection; None for one that did not come because the daemon died.
        """
        asked: dict[int, dict[int, dict[str, Any]]] = {}
        for number, (connection, request) in enumerate(sent):
            asked.setdefault(connection, {})[number] = request
        answers: list[tuple[int, dict[str, Any]] | None] = [None] * len(sent)
        with ExitStack() as stack:
            connections: list[Connection] = []
            with suppress(*GONE):
                for _ in asked:
                    connections.append(stack.enter_context(Connection(self.socket, LIMIT)))
                for connection, requests in zip(connections, asked.values(), strict=True):
                    connection.send(b"".join(request_frame(number, **it) for number, it in requests.items()))
            for connection, requests in zip(connections, asked.values(), strict=False):
                with suppress(*GONE):
                    for place in range(len(requests)):
                        message = self._receive(connection)
                        answers[message["id"]] = place, message["response"]
        return answers

    def _receive(self, connection: Connection) -> dict[str, Any]:
        try:
            return connection.receive()
        except TimeoutError as error:
            raise Stuck(f"an answer is missing\n{self.last_words()}") from error

    def ended(self) -> bool:
        """Whether the daemon has ended.  Crashed, when that is its own fault."""
        if self.daemon:
            pid, status = os.waitpid(self.daemon, os.WNOHANG)
            if pid:
                self._forget_daemon(status)
        return not self.daemon

    def await_end(self) -> None:
        """Wait until the daemon has ended by itself."""
        deadline = time.monotonic() + LIMIT
        while not self.ended():
            if time.monotonic() > deadline:
                raise Stuck(f"the daemon does not end\n{self.last_words()}")
            time.sleep(0.001)

    def until(self, condition: Callable[[], bool]) -> bool:
        """Wait for what the daemon must do by itself; False when it ended, or was refused an operation, before that."""
        deadline = time.monotonic() + LIMIT
        while not (come := condition()) and not self.ended() and not self.refused():
            if time.monotonic() > deadline:
                raise Stuck(f"the daemon does not do it\n{self.last_words()}")
            time.sleep(0.001)
        return come

    def refused(self) -> bool:
        """Whether the newest daemon has come to the point where it is refused an operation."""
        name, number = self._refusal
        return bool(name) and self.passed().count(name) >= number

    def stop(self) -> bool:
        """Have the daemon bring to its end what is under way, and end; False when its fault killed it over that."""
        if not self.ended():
            os.kill(self.daemon, signal.SIGTERM)
            self.await_end()
        return self._status == 0

    def kill_daemon(self) -> None:
        """SIGKILL; fine when there is none."""
        if self.daemon:
            os.kill(self.daemon, signal.SIGKILL)
            self._forget_daemon(os.waitpid(self.daemon, 0)[1])

    def _forget_daemon(self, status: int) -> None:
        self.daemon, self._status = 0, status
        if self.connection is not None:
            self.connection.close()
            self.connection = None
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL:
            raise Crashed(f"the daemon died of signal {os.WTERMSIG(status)}\n{self.last_words()}")

    def passed(self) -> list[str]:
        """The fault points that the newest daemon has passed."""
        return self.trace.read_text().split("\n")[:-1] if self.trace.exists() else []

    def last_words(self) -> str:
        """The end of the log of all daemons of this cell."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:]) if self.log.exists() else ""

    # Containers.

    def start_container(self, pid: int) -> None:
        """A process with this very number, in a network namespace of its own; an odd one has a way out of its own."""
        assert pid not in self.containers
        readable, writable = os.pipe()
        if not _fork_as(pid):
            os.close(readable)
            _check(_libc.unshare(CLONE_NEWNET))
            os.close(writable)
            while True:
                signal.pause()
        os.close(writable)
        os.read(readable, 1)
        os.close(readable)
        if pid % 2:
            self.run(["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-batch", "-"], WAY_OUT)
        self.containers.add(pid)

    def kill_container(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self.containers.remove(pid)

    # The machine.

    def reboot(self) -> None:
        """Everything ends but what is on the disk: processes, links, rules, /run."""
        self.kill_daemon()
        self.containers.clear()
        for process in Path("/proc").glob("[0-9]*"):  # the cell's own: no other can be seen from here
            if int(process.name) != os.getpid():
                with suppress(ProcessLookupError):
                    os.kill(int(process.name), signal.SIGKILL)
        while True:
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                break
        self.socket.unlink(missing_ok=True)
        for left in Path("/run/wireguard").glob("*"):
            left.unlink()
        _check(_libc.unshare(CLONE_NEWNET))
        self._boot()

    def _boot(self) -> None:
        self._boots += 1
        boot_id = HOME / f"boot-{self._boots}"
        boot_id.write_text(f"00000000-0000-4000-8000-{self._boots:012}\n")
        _mount(str(boot_id), str(BOOT_ID), None, MS_BIND)
        self.run(["ip", "-batch", "-"], NETWORK)
        # Else a socket that asks for any port may get the one that the reference gives the next dedicated service.
        Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("32768 50000")

    def run(self, argv: list[str], given: str = "") -> str:
        """Run a program here and return what it printed."""
        done = subprocess.run(argv, input=given, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(argv)}: exit code {done.returncode}\n{done.stderr}")
        return done.stdout

    def reap(self) -> None:
        """Bury the orphans that have ended; process 1 inherits them."""
        ours = {self.daemon, *self.containers}
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None or ended.si_pid in ours:
                return
            os.waitpid(ended.si_pid, 0)
