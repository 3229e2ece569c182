"""`make bench-report`: measure, then write docs/performance.md and its plots.

The results are kept in build/bench-report.json; `--from FILE` writes the document of such a file without measuring.
`--release NAME` adds the ratios to bench/history.json, which is committed with a release.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bench_cluster
import bench_cni
from check.tree import BUILD, ROOT
from engines import CniBridge
from smoke import SMOKE

from report import document, series

HISTORY = ROOT / "bench" / "history.json"
MICRO = ("bench_wire", "bench_frame", "bench_bitmap", "bench_envelope")  # by pyperf
LINES = ("attach", "attach_100", "add_peers", "ping_pong", "start")  # of the plot over the releases


def tell(text: str) -> None:
    print(text, flush=True)


def run(*argv: str) -> None:
    subprocess.run([sys.executable, *argv, *(["--smoke"] if SMOKE else [])], check=True, cwd=ROOT)


def measured_cases(directory: Path) -> dict[str, Any]:
    """The cases of `make bench-check`, beside their yardsticks alone."""
    output = directory / "check.json"
    # A broken budget is told in the document; it does not stop the report.
    argv = [sys.executable, "-m", "check", "--output", str(output), *(["--smoke"] if SMOKE else [])]
    subprocess.run(argv, check=False, cwd=ROOT)
    found: dict[str, Any] = json.loads(output.read_text())
    return found


def functions(directory: Path) -> dict[str, float]:
    """name -> median seconds: of single functions by pyperf, of the hot paths by pytest-benchmark."""
    found = {}
    for script in () if SMOKE else MICRO:
        output = directory / f"{script}.json"
        run(f"bench/{script}.py", "--fast", "--quiet", "-o", str(output))
        for each in json.loads(output.read_text())["benchmarks"]:
            values = sorted(value for part in each["runs"] for value in part.get("values", ()))
            found[f"{script.removeprefix('bench_')}: {each['metadata']['name']}"] = values[len(values) // 2]
    if not SMOKE:
        output = directory / "hot_paths.json"
        run("bench/hot_paths.py", "-p", "no:cacheprovider", f"--benchmark-json={output}")
        for each in json.loads(output.read_text())["benchmarks"]:
            found[f"hot path: {each['name'].removeprefix('test_').replace('_', ' ')}"] = each["stats"]["median"]
    return found


def measure() -> dict[str, Any]:
    """Everything that the document tells."""
    with tempfile.TemporaryDirectory() as name:
        result = measured_cases(Path(name))
        tell("attach by containers")
        grown: dict[str, series.Series] = {"attach": series.attach_by_containers()}
        tell("status, memory and restart by peers")
        grown |= series.by_peers()
        tell("restarts")
        held = series.by_state()
        tell("lookup by prefixes")
        grown["lookup"] = series.lookup_by_prefixes()
        tell("a cluster on etcd")
        clustered = bench_cluster.measure() if shutil.which("etcd") else None
        tell("answers beside Rust")
        result |= {
            "series": grown,
            "held": held,
            "answers": series.answers_beside_rust(),
            "functions": functions(Path(name)),
            "cluster": clustered,
            "runtimes": None if CniBridge.missing() else bench_cni.measure(),
        }
    return result


def remember(release: str, result: Mapping[str, Any]) -> None:
    """Keep the ratios of a release; the same release again takes the place of what was kept."""
    known = [each for each in json.loads(HISTORY.read_text()) if each["release"] != release]
    ratios = {
        name: round(case["yardstick_ratios"]["time"], 3)
        for name, case in result["cases"].items()
        if "time" in case["yardstick_ratios"]
    }
    known.append({"release": release, "commit": result["commit"], "machine": result["machine"], "ratios": ratios})
    HISTORY.write_text(json.dumps(known, indent=1) + "\n")


def draw(result: Mapping[str, Any], history: list[dict[str, Any]], directory: Path) -> None:
    """The plots of the document."""
    from report import plots  # noqa: PLC0415  matplotlib, an extra that only this needs

    directory.mkdir(parents=True, exist_ok=True)
    grown = result["series"]
    milli = {
        name: {line: _scaled(points, 1e3) for line, points in grown[name].items()} for name in ("attach", "status")
    }
    nano = {line: _scaled(points, 1e9) for line, points in grown["lookup"].items()}
    mebi = {line: _scaled(points, 2.0**-20) for line, points in grown["memory"].items()}
    plots.lines(directory / "attach.svg", "One attach", "containers on the bridge", "ms", milli["attach"])
    plots.lines(directory / "status.svg", "A status", "peers", "ms", milli["status"])
    plots.lines(directory / "memory.svg", "Resident memory", "peers", "MiB", mebi)
    plots.lines(directory / "lookup.svg", "Longest match, IPv6", "prefixes", "ns", nano)
    plots.bars(directory / "answers.svg", "Status answers", "a second", result["answers"])
    if history:
        lines = {name: [each["ratios"].get(name) for each in history] for name in LINES}
        releases = [each["release"] for each in history]
        plots.history(directory / "history.svg", "Over the releases", releases, lines)


def _scaled(points: list[list[float]], factor: float) -> list[tuple[int, float]]:
    return [(int(size), number * factor) for size, number in points]


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench-report", description=__doc__)
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE", help="results that were measured before")
    parser.add_argument("--release", metavar="NAME", help="keep the ratios in bench/history.json under this name")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="for performance.md and performance/")
    args = parser.parse_args()
    if args.source is not None:
        result = json.loads(args.source.read_text())
    else:
        result = measure()
        BUILD.mkdir(exist_ok=True)
        (BUILD / "bench-report.json").write_text(json.dumps(result, indent=1))
    if args.release is not None:
        remember(args.release, result)
    history = json.loads(HISTORY.read_text())
    (args.docs / "performance.md").write_text(document.write(result, history))
    draw(result, history, args.docs / "performance")
    tell(f"written: {args.docs / 'performance.md'}")


if __name__ == "__main__":
    main()
