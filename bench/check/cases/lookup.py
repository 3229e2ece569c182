"""The longest match of an address among allowed IPs, in a process of each version.

Owns: those processes (`check.lookup_process`), and pytricia as the yardstick.  Must not know: how a version looks up.
"""

import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from check import lookup_process, machine
from check.cases import YARDSTICK, Case, Group, Subjects
from check.tree import Tree, this_checkout
from check.verdict import Sample


class Looking:
    """A process that looks up."""

    def __init__(self, tree: Tree, library: str) -> None:
        program = [*tree.python, str(Path(lookup_process.__file__)), library]
        self.process = subprocess.Popen(
            ["taskset", "-c", str(machine.SERVER), *program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def close(self) -> None:
        self.process.communicate()

    def measure(self, case: str) -> Sample:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{case}\n")
        self.process.stdin.flush()
        took, used = self.process.stdout.readline().split()
        return {"time": float(took), "cpu": float(used)}


@contextmanager
def opened(trees: Mapping[str, Tree]) -> Iterator[Subjects]:
    with ExitStack() as stack:
        processes = {name: Looking(tree, "overlayd") for name, tree in trees.items()}
        processes[YARDSTICK] = Looking(this_checkout(), "pytricia")
        for process in processes.values():
            stack.callback(process.close)
        subjects: dict[str, dict[str, Callable[[], Sample]]] = {
            name: {case: partial(process.measure, case) for case in lookup_process.FAMILIES}
            for name, process in processes.items()
        }
        yield subjects


GROUP = Group(
    "lookup",
    tuple(
        Case(
            f"lookup_{version}", f"a lookup among {lookup_process.PREFIXES:,} {name} prefixes, from Python", "pytricia"
        )
        for version, name in (("v4", "IPv4"), ("v6", "IPv6"))
    ),
    opened,
)
