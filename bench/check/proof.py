"""`make bench-proof`: bench-check finds planted delays, and finds nothing where nothing changed.

Owns: the trees with a planted delay, and the comparisons of this checkout with itself.  Must not know: how a verdict is
reached.
"""

import argparse
import shutil
import statistics
import sys
from dataclasses import dataclass, replace

from smoke import SMOKE

from check import budgets, machine
from check.cases import Group, containers, names, peers
from check.cases.all import GROUPS
from check.outcome import lines, outcome
from check.rounds import BASE, NEW, measure, measure_twice_if_doubtful
from check.tree import BUILD, Tree, this_checkout

# At the end of overlayd/daemon/handlers/__init__.py of a planted tree.
IN_HANDLER = """

def _delayed(handler: Slow, seconds: float) -> Slow:
    async def handle(daemon: Daemon, request: Any) -> wire.Response:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass
        return await handler(daemon, request)

    return handle


HANDLERS[wire.{request}] = _delayed(HANDLERS[wire.{request}], {seconds!r})
"""
# At the end of overlayd/daemon/dns/nameserver.py: what is done for a batch of queries takes a share longer.
IN_NAMESERVER = """

_readable = Nameserver._readable


def _delayed(self: Nameserver) -> None:
    began = time.perf_counter()
    _readable(self)
    end = time.perf_counter() + {share!r} * (time.perf_counter() - began)
    while time.perf_counter() < end:
        pass


Nameserver._readable = _delayed
"""


@dataclass(frozen=True)
class Plant:
    """A delay of a share of what a case measures.  module: of the daemon, which gets the code at its end.  by_budget:
    the case goes over its budget by it, too.
    """

    group: Group
    case: str
    share: float
    module: str
    code: str
    request: str = ""
    by_budget: bool = False


HANDLERS, NAMESERVER = "handlers/__init__.py", "dns/nameserver.py"
PLANTS = (
    Plant(containers.EMPTY, "attach", 0.15, HANDLERS, IN_HANDLER, "AttachContainer"),
    Plant(containers.EMPTY, "attach", 0.5, HANDLERS, IN_HANDLER, "AttachContainer", by_budget=True),
    Plant(peers.GROUP, "add_peers", 0.5, HANDLERS, IN_HANDLER, "AddPeer", by_budget=True),
    Plant(names.GROUP, "dns", 0.5, NAMESERVER, IN_NAMESERVER, by_budget=True),
)


def planted(tree: Tree, plant: Plant, seconds: float) -> Tree:
    """A copy of a tree with a delay.  seconds: what the case takes without."""
    directory = BUILD / "planted"
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(tree.directory / "overlayd", directory / "overlayd", ignore=shutil.ignore_patterns("__pycache__"))
    with (directory / "overlayd" / "daemon" / plant.module).open("a") as module:
        module.write(plant.code.format(request=plant.request, seconds=plant.share * seconds, share=plant.share))
    return Tree(f"{tree.name} with {plant.share:.0%} more in {plant.case}", directory)


def finds(tree: Tree, plant: Plant) -> bool:
    """Whether a planted delay is found: by the comparison, and by the budget if that is tight enough for it."""
    case = next(each for each in plant.group.cases if each.name == plant.case)
    group = replace(plant.group, cases=(case,))
    before = measure(group, {NEW: tree}, [case.name], blocks=1)[case.name][NEW]
    trees = {BASE: tree, NEW: planted(tree, plant, statistics.median(each["time"] for each in before))}
    samples = measure_twice_if_doubtful(group, trees, print)[case.name]
    found = outcome(case, samples, budgets.read())
    print(f"planted: {trees[NEW].name}", *lines(found), sep="\n", flush=True)
    slower = any(word == "slower" for _, word in found.compared.values())
    return slower and (not plant.by_budget or any(each.is_broken for each in found.budgets))


def finds_nothing(tree: Tree, groups: list[str]) -> bool:
    """Whether this tree beside itself passes."""
    passed = True
    for group in GROUPS:
        if group.missing() or (groups and group.name not in groups):
            continue
        measured = measure_twice_if_doubtful(group, {BASE: tree, NEW: tree}, print)
        for case in group.cases:
            found = outcome(case, measured[case.name], ())
            words = [f"{metric} {each.median:.2f} {word}" for metric, (each, word) in found.compared.items()]
            print(f"{case.name:24}{', '.join(words)}", flush=True)
            passed = passed and not found.failures
    return passed


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench-proof", description=__doc__)
    parser.add_argument("--runs", type=int, default=10, help="comparisons with itself")
    parser.add_argument("--group", action="append", default=[], choices=[each.name for each in GROUPS])
    args = parser.parse_args()
    print(machine.interpreter(), "; ", machine.wait_for_quiet() or "quiet", sep="", flush=True)
    tree = this_checkout()
    found = []
    for plant in PLANTS:
        if why := plant.group.missing():
            print(f"{plant.case}: not measured: {why}")
            continue
        found.append(finds(tree, plant))
        what = f"a delay of {plant.share:.0%} in {plant.case}"
        print(f"{what} is {'found' if found[-1] else 'NOT found'}", flush=True)
    passed = [finds_nothing(tree, args.group) for _ in range(1 if SMOKE else args.runs)]
    print(f"{sum(passed)} of {len(passed)} comparisons with itself pass")
    sys.exit(not (all(found) and all(passed)))


if __name__ == "__main__":
    main()
