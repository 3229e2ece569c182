"""docs/performance.md: every figure of a run is in it, and a goal that was missed says so."""

from typing import Any

from report import document

POINTS = {"overlayd": [(1, 0.001), (10, 0.002)], "wg": [(10, 0.5)]}


def result() -> dict[str, Any]:
    return {
        "commit": "0123456789ab",
        "machine": {"processor": "a fast one", "quiet": "yes"},
        "skipped": {"names": "no dnsperf"},
        "cases": {
            "attach": {
                "what": "one attach",
                "beside": "the kernel's work",
                "samples": {"new": [{"time": 0.0012, "tail": 0.004, "cpu": 0.0005, "switches": 7.0}] * 2},
                "yardstick_ratios": {"time": 3.0},
                "budgets": [{"metric": "time", "most": 4.0, "goal": 2.0, "found": 3.0}],
            }
        },
        "series": dict.fromkeys(("attach", "status", "memory", "add", "restart", "lookup"), POINTS),
        "held": {"100,000 names": {"time": 0.9, "memory": 80.0 * 2**20}},
        "answers": {"ping-pong": {"overlayd": 90_000.0, "Rust": 100_000.0}},
        "functions": {"frame: one": 1.5e-7},
        "cluster": [("memory of a daemon", "71 MiB")],
        "runtimes": {
            "add": {"overlayd-cni": 0.004, "bridge": 0.02},
            "tail": {"overlayd-cni": 0.006, "bridge": 0.03},
            "delete": {"overlayd-cni": 0.003, "bridge": 0.01},
            "rate": {"overlayd-cni": 400.0, "bridge": 50.0},
            "collection": 0.2,
            "left_behind": 0.9,
        },
    }


def test_every_figure_is_told() -> None:
    text = document.write(result(), [{"release": "0.1.0", "ratios": {"attach": 3.25}}])
    line = (
        "| one attach | 1.20 ms | 4.00 ms | 500.00 us | 7.0 | 3.00 x the kernel's work | time 2 x: **missed** (3.00) |"
    )
    for wanted in (
        "0123456789ab",
        "a fast one",
        line,
        "Not measured: names: no dnsperf",
        "| 10 | 2.00 ms | 500.00 ms |",
    ):
        assert wanted in text
    for wanted in (
        "100,000 (0.90 x)",
        "| attach | 3.25 |",
        "frame: one | 150 ns",
        "| bridge | 20.00 ms | 30.00 ms | 10.00 ms | 50 | 5.0 x | 8.0 x |",
        "300 are valid takes 200.00 ms",
        "| 100,000 names | 900.00 ms | 80.0 MiB |",
        "| memory of a daemon | 71 MiB |",
    ):
        assert wanted in text


def test_a_size_that_one_was_not_measured_at_is_left_empty() -> None:
    assert "| 1 | 1.00 ms |  |" in document.series("A status:", "peers", POINTS)


def test_a_goal_that_is_reached_says_so() -> None:
    assert document.goal({"metric": "time", "goal": 2.0, "found": 1.9}) == "time 2 x: reached"
    assert document.goal({"metric": "switches", "goal": 8.0, "found": 9.0}) == "switches 8: **missed** (9.00)"
    assert document.goal({"metric": "time", "goal": 2.0, "found": None}) == "time 2 x: not measured"
