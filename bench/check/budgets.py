"""The budgets of bench/budgets.toml, and whether measurements keep them.

Owns: what a budget means.  Must not know: how anything is measured.  Pure, but for `read`.
"""

import statistics
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from check.verdict import Sample, ratios

FILE = Path(__file__).resolve().parents[1] / "budgets.toml"
ABSOLUTE = {"switches": 1.0, "memory": 1024.0 * 1024.0}  # metric -> its unit in the file; not beside a yardstick


@dataclass(frozen=True)
class Budget:
    """most: times the yardstick; of an absolute metric its value.  goal: what it should come to, where it has not."""

    case: str
    metric: str
    most: float
    goal: float | None = None


@dataclass(frozen=True)
class Kept:
    """A budget and what was found: `value` in its terms; None when there was no yardstick."""

    budget: Budget
    value: float | None

    @property
    def is_broken(self) -> bool:
        return self.value is not None and self.value > self.budget.most


def parse(text: str) -> tuple[Budget, ...]:
    """The budgets of a file; ValueError for one that is no number."""
    found = []
    for case, table in tomllib.loads(text).items():
        goals = table.pop("goal", {})
        for metric, most in table.items():
            if not isinstance(most, int | float):
                raise ValueError(f"{case}.{metric} is no number: {most!r}")
            found.append(Budget(case, metric, float(most), goals.get(metric)))
    return tuple(found)


def read(path: Path = FILE) -> tuple[Budget, ...]:
    return parse(path.read_text())


def check(budget: Budget, new: Sequence[Sample], yardstick: Sequence[Sample]) -> Kept:
    """Whether the samples of a case keep its budget."""
    if budget.metric in ABSOLUTE:
        return Kept(budget, statistics.median(each[budget.metric] for each in new) / ABSOLUTE[budget.metric])
    if not all(budget.metric in each for each in yardstick) or not yardstick:
        return Kept(budget, None)
    return Kept(budget, ratios(budget.metric, new, yardstick).median)
