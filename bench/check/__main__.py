"""`make bench-check BASE=COMMIT`: is this checkout slower than another commit, or over a budget?

Without a commit it is measured beside the yardsticks alone.

Exits with 1 when a case is slower or over its budget, with 0 otherwise, also where it can only say "noise".
"""

import argparse
import json
import sys
import time
from pathlib import Path

from smoke import SMOKE

from check import budgets, machine
from check.cases.all import GROUPS
from check.outcome import Outcome, as_json, lines, outcome
from check.rounds import BASE, NEW, measure_twice_if_doubtful
from check.tree import BUILD, Tree, checked_out, this_checkout


def tell(text: str) -> None:
    print(text, flush=True)


def measure_all(trees: dict[str, Tree], wanted: list[str]) -> list[Outcome]:
    """Measure the groups, and tell of each case as soon as it is known."""
    limits, found = budgets.read(), []
    for group in GROUPS:
        if wanted and group.name not in wanted:
            continue
        if why := group.missing():
            tell(f"{group.name}: not measured: {why}")
            continue
        measured = measure_twice_if_doubtful(group, trees, tell)
        for case in group.cases:
            found.append(outcome(case, measured[case.name], limits))
            for line in lines(found[-1]):
                tell(line)
    return found


def summary(found: list[Outcome]) -> str:
    """The last lines: which cases fail, and of which nobody can tell."""
    failing = [each.case.name for each in found if each.failures]
    noisy = [f"{each.case.name} ({', '.join(each.noise)})" for each in found if each.noise]
    told = [f"{len(found)} cases: " + (f"{len(failing)} fail: {', '.join(failing)}" if failing else "all pass")]
    if noisy:
        told.append(f"noise, twice: {', '.join(noisy)}")
    return "\n".join(told)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench-check", description=__doc__)
    parser.add_argument("base", nargs="?", help="a commit")
    parser.add_argument("--group", action="append", default=[], choices=[each.name for each in GROUPS])
    parser.add_argument("--output", type=Path, default=BUILD / "bench-check.json")
    args = parser.parse_args()
    start = time.monotonic()
    trees = {NEW: this_checkout()}
    if args.base is not None:
        trees = {BASE: checked_out(args.base), **trees}
    where = machine.describe() | {"quiet": "a smoke test" if SMOKE else machine.wait_for_quiet() or "yes"}
    for name, text in where.items():
        tell(f"{name + ':':13}{text}")
    for subject, tree in trees.items():
        tell(f"{subject + ':':13}{tree.name}")
    found = measure_all(trees, args.group)
    result = {
        "commit": trees[NEW].name,
        "base": trees[BASE].name if BASE in trees else None,
        "machine": where,
        "cases": {each.case.name: as_json(each) for each in found},
        "skipped": {group.name: why for group in GROUPS if (why := group.missing())},
    }
    args.output.parent.mkdir(exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1))
    tell(f"{summary(found)}\n{time.monotonic() - start:.0f} s; everything is in {args.output}")
    sys.exit(any(each.failures for each in found) and not SMOKE)


if __name__ == "__main__":
    main()
