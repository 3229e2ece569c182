"""What measurements of two versions and of a yardstick say.

Owns: the ratios of pairs, when a case is slower, and when it is too noisy to tell.  Must not know: how anything is
measured, what a case is.  Pure: samples in, words out.

A sample is what one measurement found of one operation: metric -> value.  `time` and `tail` (its 99th percentile) and
`cpu` are seconds, `switches` context switches, `memory` bytes.  Less is better.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Sample = Mapping[str, float]
Word = Literal["same", "faster", "slower", "noise"]

PAIRS = 6  # of samples, each time that a case is measured
# The median ratio over which a metric counts as worse.  What is not here is not compared with the other version, for
# the 99th percentile of a second says too little; it has a budget.
LIMITS = {"time": 1.10, "cpu": 1.05, "switches": 1.05, "memory": 1.05}
CERTAIN = 1.03  # the lower quartile of the ratios has to be over this as well
SPREAD = 0.25  # between the quartiles: with more, a change of a tenth cannot be told from none
# A difference below this is none: whether a thread still had something to do when it was woken is chance.
RESOLUTION = {"switches": 1.0}


@dataclass(frozen=True)
class Ratios:
    """Of a metric, pair by pair: the first quartile, the median and the third."""

    lower: float
    median: float
    upper: float


def ratio(metric: str, value: float, beside: float) -> float:
    """How many times `beside` a value is; 1 when both are too small to tell."""
    least = RESOLUTION.get(metric, 1e-12)
    return max(value, least) / max(beside, least)


def ratios(metric: str, samples: Sequence[Sample], beside: Sequence[Sample]) -> Ratios:
    """The samples of one by those of the other, the first by the first and so on; at least two pairs, of which both
    have the metric.
    """
    pairs = zip(samples, beside, strict=True)
    return Ratios(*statistics.quantiles((ratio(metric, a[metric], b[metric]) for a, b in pairs), method="inclusive"))


def judge(metric: str, found: Ratios) -> Word:
    """What the ratios of new samples by old ones say."""
    limit = LIMITS[metric]
    if found.median > limit and found.lower > CERTAIN:
        return "slower"
    if found.upper - found.lower > SPREAD:
        return "noise"
    if found.median < 1 / limit and found.upper < 1 / CERTAIN:
        return "faster"
    return "same"


def compare(new: Sequence[Sample], base: Sequence[Sample]) -> dict[str, tuple[Ratios, Word]]:
    """metric -> its ratios and what they say, of every metric that is judged and that all samples have.

    With more than PAIRS samples the case was measured again: it is slower when each time said so, and else a ratio that
    looks slower is noise.
    """
    found = {}
    for metric in LIMITS:
        if all(metric in sample for sample in (*new, *base)):
            whole = ratios(metric, new, base)
            parts = [
                judge(metric, ratios(metric, new[at : at + PAIRS], base[at : at + PAIRS]))
                for at in range(0, len(new), PAIRS)
            ]
            word = judge(metric, whole)
            found[metric] = (whole, "noise" if word == "slower" and set(parts) != {"slower"} else word)
    return found


def is_doubtful(compared: Mapping[str, tuple[Ratios, Word]]) -> bool:
    """Whether the case is to be measured once more: somewhere it is slower, or nobody can tell."""
    return any(word in ("slower", "noise") for _, word in compared.values())
