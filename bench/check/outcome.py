"""What came of a case, as lines for people and as JSON.

Owns: that form.  Must not know: how anything was measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from check.budgets import Budget, Kept, check
from check.cases import YARDSTICK, Case
from check.rounds import BASE, NEW
from check.verdict import Ratios, Sample, Word, compare, ratios

UNITS = {"switches": (1.0, ""), "memory": (2.0**20, " MiB")}


@dataclass(frozen=True)
class Outcome:
    """samples: by subject.  compared: with the base.  beside: median ratios to the yardstick, by metric."""

    case: Case
    samples: Mapping[str, Sequence[Sample]]
    compared: Mapping[str, tuple[Ratios, Word]]
    beside: Mapping[str, float]
    budgets: Sequence[Kept]

    @property
    def failures(self) -> list[str]:
        """Why the case fails, if it does."""
        slower = [
            f"{metric} {found.median:.2f} x BASE (lower quartile {found.lower:.2f})"
            for metric, (found, word) in self.compared.items()
            if word == "slower"
        ]
        broken = [
            f"budget: {each.budget.metric} {each.value:.2f}, at most {each.budget.most:g}"
            for each in self.budgets
            if each.is_broken
        ]
        return slower + broken

    @property
    def noise(self) -> list[str]:
        """The metrics that nobody can tell of."""
        return [metric for metric, (_, word) in self.compared.items() if word == "noise"]


def outcome(case: Case, samples: Mapping[str, Sequence[Sample]], budgets: Sequence[Budget]) -> Outcome:
    """Decide about a case."""
    new, base, yardstick = (samples.get(name, ()) for name in (NEW, BASE, YARDSTICK))
    shared = [metric for metric in new[0] if yardstick and all(metric in each for each in yardstick)]
    return Outcome(
        case,
        samples,
        compare(new, base) if base else {},
        {metric: ratios(metric, new, yardstick).median for metric in shared},
        [check(each, new, yardstick) for each in budgets if each.case == case.name],
    )


def value(metric: str, number: float) -> str:
    """A number with its unit."""
    if metric in UNITS:
        divisor, unit = UNITS[metric]
        return f"{number / divisor:.1f}{unit}"
    for divisor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if number >= divisor:
            return f"{number / divisor:.2f} {unit}"
    return f"{number * 1e9:.0f} ns"


def lines(found: Outcome) -> list[str]:
    """One line a metric: the value, beside BASE, beside the yardstick; then why it fails."""
    told: list[str] = []
    for metric in found.samples[NEW][0]:
        now = median(each[metric] for each in found.samples[NEW])
        line = f"{found.case.name if not told else '':24}{metric:9}{value(metric, now):>11}"
        if metric in found.compared:
            by_base, word = found.compared[metric]
            line += f"  {by_base.median:5.2f} x BASE ({by_base.lower:.2f} to {by_base.upper:.2f}) {word:7}"
        if metric in found.beside:
            line += f"  {found.beside[metric]:6.2f} x yardstick"
        told.append(line.rstrip())
    return told + [f"{'':24}FAILS: {why}" for why in found.failures]


def as_json(found: Outcome) -> dict[str, Any]:
    """Everything, for a file."""
    return {
        "what": found.case.what,
        "beside": found.case.beside,
        "samples": {name: [dict(each) for each in samples] for name, samples in found.samples.items()},
        "base_ratios": {
            metric: {"lower": each.lower, "median": each.median, "upper": each.upper, "verdict": word}
            for metric, (each, word) in found.compared.items()
        },
        "yardstick_ratios": dict(found.beside),
        "budgets": [
            {"metric": each.budget.metric, "most": each.budget.most, "goal": each.budget.goal, "found": each.value}
            for each in found.budgets
        ],
        "failures": found.failures,
        "noise": found.noise,
    }
