"""How long a node is without its daemon, and what memory it takes.

Owns: the starts of an idle node and of one with peers, names and containers; imports as their yardstick.  Must not
know: what a start does.
"""

import base64
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from lab import Lab
from lab.crowd import Crowd
from smoke import SMOKE

from check import machine
from check.cases import YARDSTICK, Case, Group, Subjects
from check.cases.containers import SUBNET, attach
from check.daemon import Daemon, laboratory, request
from check.meter import memory, processor_seconds
from check.tree import Tree
from check.verdict import Sample

PEERS, NAMES, CONTAINERS = (10, 10, 2) if SMOKE else (2_000, 2_000, 50)
# What nobody can start without who serves typed JSON on uvloop.  Prints its resident pages.
IMPORTS = "import uvloop, orjson, msgspec; print(open('/proc/self/statm').read().split()[1])"


class Restarted:
    """A daemon that is stopped and started."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon

    def start(self) -> Sample:
        self.daemon.member.node.stop()
        took = self.daemon.start()
        asked = time.perf_counter()
        with self.daemon.client() as client:
            client.ask(request("status"))
        took += time.perf_counter() - asked
        pid = self.daemon.pid
        return {"time": took, "cpu": processor_seconds(pid), "memory": memory(pid)}


class Imports:
    """An interpreter on a node, that imports and ends."""

    def __init__(self, lab: Lab) -> None:
        self.node = lab.node("imports")

    def start(self) -> Sample:
        argv = ["taskset", "-c", str(machine.SERVER), sys.executable, "-P", "-c", IMPORTS]
        start = time.perf_counter()
        pages = self.node.run(argv)
        return {"time": time.perf_counter() - start, "memory": int(pages) * os.sysconf("SC_PAGE_SIZE")}


def fill(daemon: Daemon, pids: list[int]) -> None:
    """Give the node of a daemon peers, names and containers."""
    keys = {"persistent_keepalive_secs": 0, "endpoint": "192.0.2.1:51820"}
    with daemon.client() as client:
        client.ask(request("setup_service_overlay", service="web", mode="shared", subnet=SUBNET))
        client.ask_all([attach(pid) for pid in pids])
        client.ask_all(
            [
                request(
                    "add_peer",
                    public_key=base64.b64encode(os.urandom(32)).decode(),
                    allowed_ips=f"fd00:{number:x}::/64",
                    **keys,
                )
                for number in range(PEERS)
            ]
        )
        client.ask_all(
            [
                request("register_dns", name=f"svc{number}", ip=f"10.200.{number >> 8}.{number & 255}")
                for number in range(NAMES)
            ]
        )


@contextmanager
def opened(trees: Mapping[str, Tree]) -> Iterator[Subjects]:
    with ExitStack() as stack:
        lab = stack.enter_context(laboratory())
        subjects: dict[str, dict[str, Callable[[], Sample]]] = {}
        for name, tree in trees.items():
            idle, full = Daemon(lab, tree, f"{name}-idle"), Daemon(lab, tree, f"{name}-full")
            idle.set_up()
            full.set_up()
            fill(full, stack.enter_context(Crowd(lab.prefix, CONTAINERS)).pids)
            subjects[name] = {"start": Restarted(idle).start, "restart": Restarted(full).start}
        imports = Imports(lab)
        subjects[YARDSTICK] = {"start": imports.start, "restart": imports.start}
        yield subjects


IMPORTING = "a process that imports uvloop, orjson and msgspec"
GROUP = Group(
    "start",
    (
        Case("start", "an idle node's start, until its first answer", IMPORTING),
        Case("restart", f"the same with {PEERS} peers, {NAMES} names and {CONTAINERS} containers", IMPORTING),
    ),
    opened,
)
