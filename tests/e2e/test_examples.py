"""The example clients do what their comments say, against a real daemon."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from lab import Lab
from lab.cluster import Member
from lab.processes import environment

from overlayd import __version__

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def said(argv: Sequence[str], **more: str) -> str:
    """What a client printed; it must exit 0."""
    with Lab() as lab:
        member = Member(lab, 1, "alpha")
        member.start()
        member.set_up()
        line = member.node.command([*argv, str(member.node.socket)])
        done = subprocess.run(line, capture_output=True, text=True, env=environment() | more, timeout=120, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout


@pytest.mark.skipif(not shutil.which("go"), reason="no Go here")
def test_go(tmp_path: Path) -> None:
    go = shutil.which("go")
    assert go
    program = tmp_path / "client"
    build = [go, "build", "-o", str(program), str(EXAMPLES / "client.go")]
    # As etcd is built for the tests: what Go's own library is compiled to, is in the user's cache.
    subprocess.run(build, check=True, env=environment() | {"CGO_ENABLED": "0"}, timeout=300)
    assert said([str(program)]) == f"hello <nil> {__version__}\nstatus <nil> 7\nrefused true\n"


@pytest.mark.skipif(not shutil.which("node"), reason="no Node here")
def test_node(tmp_path: Path) -> None:
    program = tmp_path / "client.mjs"
    shutil.copy(EXAMPLES / "client.mts", program)
    assert said([shutil.which("node") or "", str(program)]) == f"hello {__version__}\nstatus 7\nrefused true\n"
