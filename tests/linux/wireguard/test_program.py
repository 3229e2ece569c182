"""Which wireguard-go is used, and how it is asked for its version."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from overlayd.linux.wireguard import program


def make(directory: Path, version: str) -> str:
    """A program of that name that says it is of a version."""
    directory.mkdir()
    path = directory / program.NAME
    path.write_text(f"#!/bin/sh\necho 'wireguard-go v{version}'\n")
    path.chmod(0o755)
    return str(path)


def test_the_newest_in_path_is_taken_and_of_two_alike_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (
        make(tmp_path / name, version) for name, version in (("a", "0.0.9"), ("b", "0.0.10"), ("c", "0.0.10"))
    )
    for order, taken in (
        ((first, second, third), second),
        ((third, second, first), third),
        ((first,), first),
        ((), ""),
    ):
        monkeypatch.setenv("PATH", ":".join(str(Path(path).parent) for path in order) or str(tmp_path))
        assert program.choose() == taken
    assert program.missing() == "wireguard-go is not in PATH"
    assert program.choose(first) == first, "what is configured is taken, whatever else there is"
    assert program.missing(str(tmp_path / "none")) == f"{tmp_path}/none is no executable file"


def test_one_that_says_nothing_is_the_last_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silent, spoken = make(tmp_path / "a", "0.0.1"), make(tmp_path / "b", "0.0.1")
    Path(silent).write_text("#!/bin/sh\nexit 1\n")
    monkeypatch.setenv("PATH", f"{tmp_path}/a:{tmp_path}/b")
    assert (program.version(silent), program.version(spoken)) == ("", "0.0.1")
    assert program.choose() == spoken


def test_a_program_that_was_replaced_is_asked_again(tmp_path: Path) -> None:
    path = make(tmp_path / "a", "0.0.1")
    assert program.version(path) == "0.0.1"
    Path(path).unlink()
    assert program.version(path) == ""
    Path(path).parent.rmdir()
    make(tmp_path / "a", "0.0.20")
    assert program.version(path) == "0.0.20"


def test_what_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "_DEADLINE", 0.1)
    path = Path(make(tmp_path / "a", ""))
    path.write_text("#!/bin/sh\nexec sleep 60\n")
    assert program.version(str(path)) == ""


def test_the_real_one_is_known_from_a_process_whose_file_was_deleted(tmp_path: Path) -> None:
    real = shutil.which(program.NAME)
    assert real
    said = subprocess.check_output([real, "--version"], text=True)
    assert program.version(real) == said.split()[1].removeprefix("v")
    copy = shutil.copy(sys.executable, tmp_path / "python")
    with subprocess.Popen([copy, "-c", "print(flush=True); input()"], stdin=-1, stdout=-1) as running:
        assert running.stdout and running.stdin
        running.stdout.readline()
        executable = f"/proc/{running.pid}/exe"
        assert program.is_file(copy, executable)
        shutil.copy(real, tmp_path / "new")
        (tmp_path / "new").rename(copy)
        assert not program.is_file(copy, executable)
        assert program.version(executable) == "", "it is Python that runs"
        assert program.version(copy) == program.version(real)
        running.stdin.write(b"\n")
