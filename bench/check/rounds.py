"""Who is measured when.

Owns: the order A B Y Y B A, the number of pairs, fresh processes for each two of them, and the repeat of a doubtful
case.  Must not know: what the cases are, what is decided of them but whether to repeat.

A process is faster or slower than another of the same code by a few percent for as long as it lives, by where its
memory happens to lie.  So every two pairs have processes of their own, and the pairs show that difference as noise.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from smoke import SMOKE

from check import machine
from check.cases import YARDSTICK, Group
from check.tree import Tree
from check.verdict import PAIRS, Sample, compare, is_doubtful

BASE, NEW = "base", "new"
BLOCKS = 1 if SMOKE else PAIRS // 2  # of two pairs each
SETTLED = 0.25  # share of the processors' time under which what the last block left behind has been removed

# case -> subject -> its samples, in the order of the pairs
Measured = dict[str, dict[str, list[Sample]]]


def measure(group: Group, trees: Mapping[str, Tree], cases: Sequence[str], blocks: int = BLOCKS) -> Measured:
    """Measure these cases of a group, with two pairs a block."""
    found: Measured = {case: defaultdict(list) for case in cases}
    for _ in range(blocks):
        _settle()
        with group.open(trees) as subjects:
            forth = [name for name in (BASE, NEW, YARDSTICK) if name in subjects]
            for case in cases:
                for name in (*forth, *reversed(forth)):
                    if case in subjects[name]:
                        found[case][name].append(subjects[name][case]())
    return found


def measure_twice_if_doubtful(group: Group, trees: Mapping[str, Tree], tell: Callable[[str], None]) -> Measured:
    """Measure a group; cases that look slower, or too noisy to tell, once more.  All their pairs count then."""
    found = measure(group, trees, [case.name for case in group.cases])
    again = [
        name for name, samples in found.items() if BASE in trees and is_doubtful(compare(samples[NEW], samples[BASE]))
    ]
    if again and not SMOKE:
        tell(f"once more: {', '.join(again)}")
        for case, subjects in measure(group, trees, again).items():
            for name, samples in subjects.items():
                found[case][name] += samples
    return found


def _settle() -> None:
    """The kernel removes namespaces in its own time, and holds the lock of all links meanwhile."""
    if SMOKE:
        return
    for _ in range(10):
        if machine.busy(0.2) < SETTLED:
            return
