"""Measurements as Prometheus reads them (text format 0.0.4).

Owns: the form of a family, its escapes, and histograms.  Must not know: what is measured.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Kind = Literal["counter", "gauge", "histogram"]
Sample = tuple[Sequence[str], float]


def head(name: str, kind: Kind, help: str) -> str:
    """The two lines before the samples of a family."""
    return f"# HELP {name} {_escaped(help)}\n# TYPE {name} {kind}\n"


def family(name: str, kind: Kind, help: str, labels: Sequence[str], samples: Iterable[Sample]) -> Iterator[str]:
    """A whole family of counters or gauges, a line each.  samples: the values of the labels, and the number."""
    yield head(name, kind, help)
    for values, number in samples:
        yield line(name, labels, values, number)


def line(name: str, labels: Sequence[str], values: Sequence[str], number: float) -> str:
    """One sample."""
    if not labels:
        return f"{name} {_number(number)}\n"
    pairs = ",".join(f'{label}="{_quoted(value)}"' for label, value in zip(labels, values, strict=True))
    return f"{name}{{{pairs}}} {_number(number)}\n"


class Histogram:
    """Counts of what was observed, by upper bounds.  bounds: rising, without the infinite one."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, number: float) -> None:
        self.counts[bisect_left(self.bounds, number)] += 1
        self.sum += number

    def lines(self, name: str, labels: Sequence[str], values: Sequence[str]) -> Iterator[str]:
        total = 0
        for bound, count in zip((*map(_number, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            yield line(f"{name}_bucket", (*labels, "le"), (*values, bound), total)
        yield line(f"{name}_sum", labels, values, self.sum)
        yield line(f"{name}_count", labels, values, total)


def histograms(name: str, help: str, labels: Sequence[str], all: Mapping[tuple[str, ...], Histogram]) -> Iterator[str]:
    """A whole family of histograms, by the values of their labels."""
    yield head(name, "histogram", help)
    for values, histogram in all.items():
        yield from histogram.lines(name, labels, values)


def _number(number: float) -> str:
    return str(int(number)) if float(number).is_integer() and abs(number) < 2**63 else repr(float(number))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _quoted(text: str) -> str:
    return _escaped(text).replace('"', '\\"')
