"""Many containers that cost little: children of one process, each in a network namespace of its own.

Owns: those processes.  Must not know: the daemon that attaches them.
"""

import subprocess
import sys
from types import TracebackType

from lab.processes import environment

# Prints the children's pids once all are in their namespaces, and ends with them when its standard input is closed.
PROGRAM = """
import ctypes, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
children = []
for _ in range(int(sys.argv[1])):
    ready, told = os.pipe()
    pid = os.fork()
    if not pid:
        assert libc.unshare(0x40000000) == 0
        os.write(told, b"x")
        while True:
            signal.pause()
    os.read(ready, 1)
    os.close(ready)
    os.close(told)
    children.append(pid)
print(*children, flush=True)
sys.stdin.read()
for pid in children:
    os.kill(pid, signal.SIGKILL)
"""


class Crowd:
    """A context manager.  pids: of the containers."""

    def __init__(self, prefix: str, size: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(prefix),
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self.pids = [int(pid) for pid in self.process.stdout.readline().split()]
        if len(self.pids) != size:
            raise RuntimeError(f"the crowd's process ended with {self.process.wait()}")

    def __enter__(self) -> "Crowd":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.communicate()
