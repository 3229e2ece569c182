"""Requests that change nothing: one after the other, a flood, and one client beside a flood.

Owns: those cases, and the threaded server of bench/peer/threads.c as their yardstick.  Must not know: how a version
serves.
"""

import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from smoke import SMOKE

from check import machine
from check.cases import YARDSTICK, Case, Group, Subjects
from check.client import Client
from check.daemon import Daemon, laboratory, request
from check.meter import metered, percentile
from check.programs import compiled, serving
from check.tree import Tree
from check.verdict import Sample

SECONDS = 0.05 if SMOKE else 0.5  # of a measurement
STATUS = request("status")


class Server:
    """One that is asked for its status, ours or not."""

    def __init__(self, pid: int, socket: Path) -> None:
        self.pid = pid
        self.socket = socket

    def _load(self, connections: int, depth: int, processor: int) -> Sample:
        load = [str(compiled("load")), str(self.socket), str(connections), str(depth), str(SECONDS)]
        with metered(self.pid) as meter:
            said = subprocess.run(
                ["taskset", "-c", str(processor), *load], check=True, capture_output=True, text=True
            ).stdout
            rate = max(float(said), 1 / SECONDS)  # of a smoke test on a busy machine not one may have been answered
            meter.operations = rate * SECONDS
        meter.sample["time"] = 1 / rate
        return meter.sample

    def ping_pong(self) -> Sample:
        """Both ends on one processor: else it measures how long a sleeping one takes to wake."""
        return self._load(1, 1, machine.SERVER)

    def flood(self) -> Sample:
        return self._load(64, 64, machine.LOAD)

    def quiet_beside_flood(self) -> Sample:
        # This client has the processor before the load when both want it.
        load = ["nice", "-n", "10", str(compiled("load")), str(self.socket), "64", "64", str(2 * SECONDS)]
        times = []
        with Client(self.socket) as client, subprocess.Popen(load, stdout=subprocess.DEVNULL) as flood:
            while flood.poll() is None:
                start = time.perf_counter()
                client.ask(STATUS)
                times.append(time.perf_counter() - start)
                time.sleep(0.001)
        return {"time": percentile(times, 0.5), "tail": percentile(times, 0.99)}

    def cases(self) -> dict[str, Callable[[], Sample]]:
        return {each.__name__: each for each in (self.ping_pong, self.flood, self.quiet_beside_flood)}


@contextmanager
def opened(trees: Mapping[str, Tree]) -> Iterator[Subjects]:
    with ExitStack() as stack:
        lab = stack.enter_context(laboratory())
        servers = {}
        for name, tree in trees.items():
            daemon = Daemon(lab, tree, name)
            servers[name] = Server(daemon.pid, daemon.socket)
        socket = lab.directory / "threads.sock"
        threads: list[str | Path] = [compiled("threads", "-pthread"), socket, "x" * 44]
        servers[YARDSTICK] = Server(stack.enter_context(serving(threads, socket)), socket)
        for server in servers.values():
            server.flood()  # to warm up
        yield {name: server.cases() for name, server in servers.items()}


THREADS = "a threaded C server of the same wire"
GROUP = Group(
    "requests",
    (
        Case("ping_pong", "a status of one client, one at a time", THREADS),
        Case("flood", "a status of 64 clients with 64 pipelined each", THREADS),
        Case("quiet_beside_flood", "a status of one more client beside that flood", f"{THREADS} beside its own flood"),
    ),
    opened,
)
