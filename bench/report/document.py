"""docs/performance.md: the text around the figures.

Owns: the tables and their words.  Must not know: how anything was measured.  Pure: results in, Markdown out.
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from check.outcome import value

INTRODUCTION = """# Performance

Written by `make bench-report`; do not edit. Machines differ by a factor of two, and one machine from hour to hour: so
every figure stands beside something measured in the same run, and only ratios say anything. How it is measured, and how
to compare two commits: [bench/README](../bench/README).
"""
CLUSTER = """All of it on this one machine, by `bench/bench_cluster.py`: the registered nodes are records, and followers
are streams of what a daemon's own stream is made of. Processor time of etcd is that of its three members together.
"""
METRICS = {"time": "time", "tail": "99th percentile", "cpu": "processor time", "switches": "context switches"}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def where(result: Mapping[str, Any]) -> str:
    """The machine, and what was measured."""
    rows = [[name, text] for name, text in {"commit": result["commit"], **result["machine"]}.items()]
    return table(("where", ""), rows)


def cases(result: Mapping[str, Any]) -> str:
    """One line a case."""
    rows = []
    for case in result["cases"].values():
        samples, ratios = case["samples"]["new"], case["yardstick_ratios"]
        now = {metric: median(each[metric] for each in samples) for metric in samples[0]}
        beside = f"{ratios['time']:.2f} x {case['beside']}" if "time" in ratios else "not measured here"
        rows.append(
            [
                case["what"],
                value("time", now["time"]),
                value("time", now["tail"]) if "tail" in now else "",
                value("cpu", now["cpu"]) if "cpu" in now else "",
                f"{now['switches']:.1f}" if "switches" in now else "",
                beside,
                "; ".join(goal(each) for each in case["budgets"] if each["goal"] is not None),
            ]
        )
    head = ("an operation", "time", "p99", "processor time", "context switches", "beside, in the same run", "goal")
    return table(head, rows)


def goal(budget: Mapping[str, Any]) -> str:
    """Whether a budget's goal is reached, in words; it may not be known."""
    unit = {"switches": "", "memory": " MiB"}.get(budget["metric"], " x")
    told = f"{budget['metric']} {budget['goal']:g}{unit}: "
    if budget["found"] is None:
        return told + "not measured"
    return told + ("reached" if budget["found"] <= budget["goal"] else f"**missed** ({budget['found']:.2f})")


def series(title: str, unit: str, lines: Mapping[str, Sequence[Sequence[float]]], metric: str = "time") -> str:
    """A series as a table: a row a size, a column a line."""
    sizes = sorted({int(size) for points in lines.values() for size, _ in points})
    found = {name: {int(size): number for size, number in points} for name, points in lines.items()}
    rows = [
        [f"{size:,}", *(value(metric, by_size[size]) if size in by_size else "" for by_size in found.values())]
        for size in sizes
    ]
    return f"{title}\n\n{table((unit, *found), rows)}"


def held(found: Mapping[str, Mapping[str, float]]) -> str:
    """A start and the memory after it, by what the node holds."""
    rows = [[what, value("time", each["time"]), value("memory", each["memory"])] for what, each in found.items()]
    return table(("a node with", "from its daemon's start until it listens", "resident memory then"), rows)


def answers(rates: Mapping[str, Mapping[str, float]]) -> str:
    """Status answers a second, and ours by those of the others."""
    names = list(next(iter(rates.values())))
    rows = []
    for case, each in rates.items():
        ours = each["overlayd"]
        told = [
            f"{each[name]:,.0f}" + (f" ({ours / each[name]:.2f} x)" if name != "overlayd" else "") for name in names
        ]
        rows.append([case, *told])
    return table(("status answers a second", *names), rows)


def runtimes(found: Mapping[str, Any]) -> str:
    """What a container runtime waits for, by plugin, and what overlayd's does beside that."""
    ours, *_ = found["add"]
    rows = [
        [
            name,
            value("time", found["add"][name]),
            value("time", found["tail"][name]),
            value("time", found["delete"][name]),
            f"{found['rate'][name]:,.0f}",
            f"{found['add'][name] / found['add'][ours]:.1f} x",
            f"{found['rate'][ours] / found['rate'][name]:.1f} x",
        ]
        for name in found["add"]
    ]
    head = ("a plugin", "ADD", "p95", "DEL", "ADDs a second, 32 at a time", "ADD, by ours", "ours by that rate")
    times = [value("time", found[key]) for key in ("collection", "left_behind")]
    return (
        f"{table(head, rows)}\nThe last row is what no plugin can go below: bench/peer/plugin.c makes the interface "
        "and writes as much to the disk, and does nothing else of what a plugin has to do.\n\n"
        f"A GC of 500 attachments of which 300 are valid takes {times[0]}; 1,000 DELs that were left while "
        f"no daemon ran take {times[1]} of the next start.\n"
    )


def cluster(found: Sequence[Sequence[str]]) -> str:
    """Daemons beside registered nodes and followers, and the etcd of all of them."""
    return table(("three daemons, three members of etcd, and thousands of registered nodes", ""), found)


def micro(times: Mapping[str, float]) -> str:
    """Medians of single functions."""
    return table(("function", "time"), [[name, value("time", seconds)] for name, seconds in times.items()])


def write(result: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> str:
    """The whole document."""
    grown = result["series"]
    parts = [
        INTRODUCTION,
        where(result),
        "## Requests through the socket\n",
        "Medians of six samples. A ratio below 1 beats the yardstick; the goals are in `bench/budgets.toml`.\n",
        cases(result),
        "What limits those that miss their goal is in [profile.md](profile.md).\n",
        *skipped(result["skipped"]),
        "## Containers\n\n![attach by containers](performance/attach.svg)\n",
        series("One attach, by the containers on the bridge:", "containers", grown["attach"]),
        "CNI and netavark without masquerade and firewall, a process started for each call.\n",
        *(("## Container runtimes\n", runtimes(result["runtimes"])) if result.get("runtimes") else ()),
        "## Peers\n\n![status by peers](performance/status.svg)\n\n![memory by peers](performance/memory.svg)\n",
        series("A status:", "peers", grown["status"]),
        series("Resident memory:", "peers", grown["memory"], "memory"),
        series("All peers added:", "peers", grown["add"]),
        series("From the start of the process until it listens:", "peers", grown["restart"]),
        "## Restarts\n",
        held(result["held"]),
        *(("## A cluster on etcd\n", CLUSTER, cluster(result["cluster"])) if result.get("cluster") else ()),
        "## Requests that change nothing\n\n![answers beside Rust](performance/answers.svg)\n",
        answers(result["answers"]),
        "## Lookups\n\n![lookup by prefixes](performance/lookup.svg)\n",
        series("The longest match of an IPv6 address, from Python:", "prefixes", grown["lookup"]),
        "## Releases\n\n![ratios by release](performance/history.svg)\n" if history else "",
        *([releases(history)] if history else []),
        "## Functions\n",
        micro(result["functions"]),
    ]
    return "\n".join(part for part in parts if part)


def skipped(reasons: Mapping[str, str]) -> list[str]:
    """What was not measured, and why."""
    return [f"Not measured: {name}: {why}\n" for name, why in reasons.items()]


def releases(history: Sequence[Mapping[str, Any]]) -> str:
    """Ratios to the yardstick, a row a case and a column a release."""
    names = sorted({case for each in history for case in each["ratios"]})
    rows = [
        [name, *(f"{each['ratios'][name]:.2f}" if name in each["ratios"] else "" for each in history)] for name in names
    ]
    return table(("times the yardstick", *(each["release"] for each in history)), rows)
