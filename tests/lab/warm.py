"""Processes that have imported overlayd and fork into its two commands: the same code, ready in a tenth of the time.
One that has imported nothing forks into any program, which so is in a node without the five programs that `ip netns
exec` and its binds take.

Owns: such a process for each command, its children, and how they come into the namespaces of a node.  Must not know:
nodes, or what the commands do.

Only tests have them (`tests/conftest.py`); a demonstration or a benchmark starts the commands themselves, and so does a
test that looks at the process: at its memory, or its command line.
"""

import gc
import importlib
import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import IO, Any, Literal, NoReturn

from lab import netns
from lab.patience import LIMIT
from lab.processes import environment

Binds = Sequence[tuple[str, str]]  # what is mounted over what, in this order
Command = Literal["daemon", "control", "program"]
# What of overlayd takes long to import.  The daemon never has pyroute2, which some of overlayctl's words take.
IMPORTED = {
    "daemon": ("fault", "cli", "daemon.main", "daemon.cluster.requests"),
    "control": ("fault", "cli", "cli.commands", "cli.inspection", "cli.why"),
    "program": (),
}
NOT_FOUND = 127  # the shell's exit code


class Forked:
    """A child of the warm process, which is waited for and sent signals as a `subprocess.Popen` is."""

    def __init__(self, told: socket.socket) -> None:
        self.returncode: int | None = None
        self._told = told.makefile("r")
        told.close()
        self.pid = int(self._line())

    def poll(self) -> int | None:
        if self.returncode is None and self._has_told(0):
            self._end()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not self._has_told(timeout):
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            self._end()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def _has_told(self, seconds: float | None) -> bool:
        """Whether it has ended, or does in time.  Not by select(), which knows no descriptor above 1,023."""
        told = select.poll()
        told.register(self._told, select.POLLIN)
        return bool(told.poll(None if seconds is None else seconds * 1000))

    def _end(self) -> None:
        self.returncode = int(self._line())
        self._told.close()

    def _line(self) -> str:
        line = self._told.readline()
        if not line:
            raise RuntimeError("the warm process is gone")
        return line


class Warm:
    """The warm process of a command, as its parent has it."""

    def __init__(self, command: Command) -> None:
        self._asks, asked = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with asked:
            # Its own session, as each child has: Ctrl-C in the terminal reaches the laboratory alone.
            self._process = subprocess.Popen(
                [sys.executable, "-c", "from lab.warm import main; main()", command, str(asked.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[asked.fileno()],
                env=environment(),
                start_new_session=True,
            )

    def start(
        self,
        arguments: Sequence[str],
        *,
        namespace: str,
        binds: Binds,
        environment: Mapping[str, str],
        output: IO[bytes],
        errors: IO[bytes],
    ) -> Forked:
        """Run the command in a node's namespaces, with nothing to read."""
        asked = {"arguments": arguments, "namespace": namespace, "binds": binds}
        message = json.dumps(asked | {"environment": dict(environment)}).encode()
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._asks, [message], [theirs.fileno(), output.fileno(), errors.fileno()])
        return Forked(ours)

    def close(self) -> None:
        """End it; its children go on."""
        self._asks.close()
        self._process.wait(LIMIT)


class _Place:
    """For all laboratories of this process.  allowed: whether there may be any, each of which starts when it is first
    asked.
    """

    def __init__(self) -> None:
        self.allowed = False
        self.warm: dict[Command, Warm] = {}
        self.lock = threading.Lock()


_place = _Place()


@contextmanager
def allowed() -> Iterator[None]:
    """Laboratories may have warm processes within the block."""
    _place.allowed = True
    try:
        yield
    finally:
        _place.allowed = False
        while _place.warm:
            _place.warm.popitem()[1].close()


def process(command: Command) -> Warm | None:
    """The warm process of a command, where there may be one."""
    with _place.lock:
        if _place.allowed and command not in _place.warm:
            _place.warm[command] = Warm(command)
        return _place.warm.get(command)


# --- in a warm process ----------------------------------------------------------------------------------------------


class _Children:
    """command: what they become.  asked: the socket by which the parent asks."""

    def __init__(self, command: str, asked: socket.socket) -> None:
        self._command = command
        self._asked = asked
        self._selector = selectors.DefaultSelector()
        self._selector.register(asked, selectors.EVENT_READ)
        self._running: dict[
            int, tuple[int, socket.socket]
        ] = {}  # by descriptor: the number, and who is told of its end

    def serve(self) -> Callable[[], None]:
        """Start children until the parent is gone; returns in each child, and then here, what is to be done next."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is not self._asked:
                    self._bury(key.fd)
                    continue
                message, descriptors, _, _ = socket.recv_fds(self._asked, 1 << 20, 3)
                if not message:
                    return sys.exit
                pid = os.fork()
                if not pid:
                    self._forget_parent()
                    return partial(_become, self._command, json.loads(message), descriptors)
                told, output, errors = descriptors
                os.close(output)
                os.close(errors)
                self._follow(pid, socket.socket(fileno=told))

    def _follow(self, pid: int, told: socket.socket) -> None:
        ended = os.pidfd_open(pid)
        self._running[ended] = pid, told
        self._selector.register(ended, selectors.EVENT_READ)
        _tell(told, pid)

    def _bury(self, ended: int) -> None:
        pid, told = self._running.pop(ended)
        self._selector.unregister(ended)
        os.close(ended)
        _tell(told, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        told.close()

    def _forget_parent(self) -> None:
        """A child has none of our descriptors."""
        self._selector.close()
        self._asked.close()
        for ended, (_, told) in self._running.items():
            os.close(ended)
            told.close()


def _tell(told: socket.socket, number: int) -> None:
    with suppress(BrokenPipeError):  # nobody waits for it any more
        told.sendall(b"%d\n" % number)


def _become(command: str, asked: dict[str, Any], descriptors: Sequence[int]) -> None:
    """Be the command, as a new process is that `ip netns exec` has started."""
    told, output, errors = descriptors
    os.setsid()
    os.dup2(output, 1)
    os.dup2(errors, 2)
    for descriptor in (told, output, errors):
        os.close(descriptor)
    netns.enter(asked["namespace"], asked["binds"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    if command == "program":
        _execute(asked["arguments"])
    importlib.reload(sys.modules["overlayd.fault"])  # it has read the environment
    sys.argv = [command, *asked["arguments"]]
    try:
        getattr(sys.modules["overlayd.cli"], command)()
    except SystemExit as end:
        if isinstance(end.code, str) or threading.active_count() > 1:
            raise
        # Without taking the interpreter apart: that would copy every page that is shared with the warm process.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code or 0)


def _execute(argv: list[str]) -> NoReturn:
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        print(f"{argv[0]}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(NOT_FOUND)


def main() -> None:
    """Be the warm process."""
    command, asked = sys.argv[1:]
    for module in IMPORTED[command]:
        importlib.import_module(f"overlayd.{module}")
    gc.freeze()  # what is imported stays: children need not touch it
    _Children(command, socket.socket(fileno=int(asked))).serve()()
