"""The search in PATH, with the standard library's as the oracle."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from overlayd.linux import programs


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Three directories in PATH, of which the first does not exist and the last was named twice."""
    found = [tmp_path / name for name in ("absent", "one", "two")]
    for place in found[1:]:
        place.mkdir()
    monkeypatch.setenv("PATH", ":".join(map(str, [*found, found[2]])))
    return found


def make(path: Path, mode: int) -> None:
    path.write_text("")
    path.chmod(mode)


def test_the_first_that_can_be_run_is_found(places: list[Path]) -> None:
    assert programs.find("it") is shutil.which("it") is None
    make(places[2] / "it", 0o755)
    assert programs.find("it") == shutil.which("it") == str(places[2] / "it")
    make(places[1] / "it", 0o644)
    assert programs.find("it") == shutil.which("it") == str(places[2] / "it"), "one that cannot be run is passed over"
    (places[1] / "it").unlink()
    (places[1] / "it").mkdir()
    assert programs.find("it") == shutil.which("it") == str(places[2] / "it"), "and so is a directory"
    (places[1] / "it").rmdir()
    (places[1] / "it").symlink_to(places[2] / "it")
    assert programs.find("it") == shutil.which("it") == str(places[1] / "it")


def test_a_daemon_holds_no_compression() -> None:
    code = (
        "import sys, overlayd.daemon.main; from overlayd.daemon import config; config.parser().parse_args([])\n"
        "print({'shutil', 'bz2', 'lzma', 'orjson', 'pyroute2'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
