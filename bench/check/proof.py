"""`make bench-proof`: bench-check finds a handler that takes 15 % longer, and finds nothing where nothing changed.

Owns: the tree with the planted delay, and the comparisons of this checkout with itself.  Must not know: how a verdict
is reached.
"""

import argparse
import shutil
import statistics
import sys
from dataclasses import replace

from smoke import SMOKE

from check import machine
from check.cases.all import GROUPS
from check.cases.containers import EMPTY
from check.outcome import lines, outcome
from check.rounds import BASE, NEW, measure, measure_twice_if_doubtful
from check.tree import BUILD, Tree, this_checkout

SHARE = 0.15
# At the end of overlayd/daemon/handlers/__init__.py of the planted tree.
PLANT = """

def _delayed(handler: Slow, seconds: float) -> Slow:
    async def handle(daemon: Daemon, request: Any) -> wire.Response:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass
        return await handler(daemon, request)

    return handle


HANDLERS[wire.AttachContainer] = _delayed(HANDLERS[wire.AttachContainer], {seconds!r})
"""


def planted(tree: Tree, seconds: float) -> Tree:
    """A copy of a tree in which attach_container takes so much longer."""
    directory = BUILD / "planted"
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(tree.directory / "overlayd", directory / "overlayd", ignore=shutil.ignore_patterns("__pycache__"))
    with (directory / "overlayd" / "daemon" / "handlers" / "__init__.py").open("a") as handlers:
        handlers.write(PLANT.format(seconds=seconds))
    return Tree(f"{tree.name} with {seconds * 1e6:.0f} us more in attach_container", directory)


def finds_a_delay(tree: Tree) -> bool:
    """Whether one attach, answered, is found to be slower."""
    attach = replace(EMPTY, cases=tuple(case for case in EMPTY.cases if case.name == "attach"))
    before = measure(attach, {NEW: tree}, ["attach"], blocks=1)["attach"][NEW]
    seconds = SHARE * statistics.median(each["time"] for each in before)
    trees = {BASE: tree, NEW: planted(tree, seconds)}
    samples = measure_twice_if_doubtful(attach, trees, print)["attach"]
    found = outcome(attach.cases[0], samples, ())
    print(f"planted: {trees[NEW].name}", *lines(found), sep="\n", flush=True)
    return any(word == "slower" for _, word in found.compared.values())


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
    found = finds_a_delay(tree)
    print(f"a delay of {SHARE:.0%} in one handler is {'found' if found else 'NOT found'}", flush=True)
    passed = [finds_nothing(tree, args.group) for _ in range(1 if SMOKE else args.runs)]
    print(f"{sum(passed)} of {len(passed)} comparisons with itself pass")
    sys.exit(not (found and all(passed)))


if __name__ == "__main__":
    main()
