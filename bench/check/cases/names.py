"""DNS queries for registered names.

Owns: that case, and dnsmasq with the same names as its yardstick; dnsperf asks both.  Must not know: how a version
answers.
"""

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from bench_dns import DNSMASQ_PORT, ZONE, dnsmasq, running, slow_answer
from lab import Node
from smoke import SMOKE

from check import machine
from check.cases import YARDSTICK, Case, Group, Subjects
from check.daemon import Daemon, laboratory, request
from check.meter import metered
from check.tree import Tree
from check.verdict import Sample

NAMES, SECONDS = (10, 0.05) if SMOKE else (1_000, 0.5)
OUTSTANDING = 200  # queries that dnsperf keeps under way


class NameServer:
    """One that dnsperf asks, ours or not."""

    def __init__(self, node: Node, pid: int, address: str, port: int) -> None:
        self.node, self.pid, self.address, self.port = node, pid, address, port
        self.queries = node.run_directory / "queries"
        self.queries.write_text("".join(f"svc{number}.{ZONE} A\n" for number in range(NAMES)))

    def dns(self) -> Sample:
        dnsperf = ["dnsperf", "-s", self.address, "-p", str(self.port), "-d", str(self.queries), "-l", str(SECONDS)]
        argv = ["taskset", "-c", str(machine.LOAD), *dnsperf, "-q", str(OUTSTANDING), "-c", "4", "-T", "1"]
        with metered(self.pid) as meter:
            said = self.node.run(argv)
            meter.operations = float(_number("Queries completed", said))
        return {
            "time": 1 / _number("Queries per second", said),
            "tail": slow_answer(self.node, (self.pid, self.address, self.port), self.queries, SECONDS),
            "cpu": meter.sample["cpu"],
            "switches": meter.sample["switches"],
        }


def _number(what: str, said: str) -> float:
    return float(re.findall(rf"{what}:\s+([\d.]+)", said)[0])


@contextmanager
def opened(trees: Mapping[str, Tree]) -> Iterator[Subjects]:
    subjects: dict[str, dict[str, Callable[[], Sample]]] = {}
    if missing():
        yield subjects
        return
    names = {f"svc{number}": f"10.200.{number >> 8 & 255}.{number & 255}" for number in range(NAMES)}
    with ExitStack() as stack:
        lab = stack.enter_context(laboratory())
        for name, tree in trees.items():
            daemon = Daemon(lab, tree, name, "--dns-node-address")
            daemon.set_up()
            with daemon.client() as client:
                client.ask_all([request("register_dns", name=each, ip=ip) for each, ip in names.items()])
            address = daemon.member.slice.partition("/")[0].removesuffix("0") + "1"
            node = daemon.member.node
            subjects[name] = {"dns": NameServer(node, daemon.pid, address, 53).dns}
        # At the address of one of ours: to another than the loopback's the kernel makes the route anew for each packet.
        pid = stack.enter_context(running(node, *dnsmasq(node, names, ZONE, address, DNSMASQ_PORT)))
        machine.pin(machine.SERVER, pid)
        subjects[YARDSTICK] = {"dns": NameServer(node, pid, address, DNSMASQ_PORT).dns}
        yield subjects


def missing() -> str:
    lacking = [each for each in ("dnsperf", "dnsmasq") if shutil.which(each) is None]
    return f"no {' and no '.join(lacking)}: apt-get install dnsperf dnsmasq-base" if lacking else ""


GROUP = Group("names", (Case("dns", f"an answer for one of {NAMES:,} registered names", "dnsmasq"),), opened, missing)
