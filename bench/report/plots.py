"""Plots as SVG files: small, and the same bytes from the same numbers.

Owns: how a series looks.  Must not know: what was measured.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

mpl.use("svg")
mpl.rcParams.update(
    {
        "svg.hashsalt": "overlayd",  # else the ids of elements are chance
        "svg.fonttype": "none",  # text stays text: a tenth of the size
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "legend.frameon": False,
        "figure.constrained_layout.use": True,
    }
)
COLOURS = ("#0b6e4f", "#c1666b", "#4a6fa5", "#d4a017", "#6b6b6b")


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None, "Creator": None})


def _axes(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 3.4))
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontweight="bold")
    return figure, axes


def lines(path: Path, title: str, x: str, y: str, series: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    """Lines on logarithmic scales, one a series: title above, x and y beside the axes."""
    figure, axes = _axes(title)
    for colour, (name, points) in zip(COLOURS, series.items(), strict=False):
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3.5, color=colour, label=name)
    axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend()
    _save(figure, path)


def bars(path: Path, title: str, y: str, groups: Mapping[str, Mapping[str, float]]) -> None:
    """Groups of bars, one a name."""
    figure, axes = _axes(title)
    names = list(next(iter(groups.values())))
    width = 0.8 / len(names)
    for at, (colour, name) in enumerate(zip(COLOURS, names, strict=False)):
        places = [group + at * width for group in range(len(groups))]
        axes.bar(places, [each[name] for each in groups.values()], width, color=colour, label=name)
    axes.set_xticks([group + 0.4 - width / 2 for group in range(len(groups))], [_wrapped(each) for each in groups])
    axes.set_ylabel(y)
    axes.grid(visible=False, axis="x")
    axes.legend()
    _save(figure, path)


def history(path: Path, title: str, releases: Sequence[str], series: Mapping[str, Sequence[float | None]]) -> None:
    """One line a case over the releases; None where a release has not been measured."""
    figure, axes = _axes(title)
    for colour, (name, values) in zip(COLOURS, series.items(), strict=False):
        known = [(at, value) for at, value in enumerate(values) if value is not None]
        axes.plot(
            [at for at, _ in known], [value for _, value in known], marker="o", markersize=3.5, color=colour, label=name
        )
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(releases)), releases)
    axes.set(yscale="log", ylabel="times the yardstick")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend()
    _save(figure, path)


def _wrapped(text: str) -> str:
    return text.replace(", ", ",\n")
