"""Every script of bench/ works, shown by one loop of it with little data; what it measures is not looked at."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from lab.processes import ROOT, environment

BENCH = ROOT / "bench"
SCRIPTS = sorted(path.name for path in BENCH.glob("*.py") if '__name__ == "__main__"' in path.read_text())


def run(*argv: str, directory: Path) -> None:
    path = os.pathsep.join(map(str, (ROOT, BENCH, ROOT / "tests")))
    done = subprocess.run(
        [sys.executable, *argv, "--smoke"],
        env=environment() | {"PYTHONPATH": path},
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout, "it says nothing of what it measured"


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_runs(script: str, tmp_path: Path) -> None:
    run(str(BENCH / script), directory=tmp_path)


def test_every_case_of_the_check_runs(tmp_path: Path) -> None:
    run("-m", "check", "--output", str(tmp_path / "result.json"), directory=tmp_path)
    assert '"attach"' in (tmp_path / "result.json").read_text()
