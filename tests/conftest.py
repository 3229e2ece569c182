"""What every test runs under: a session that must leave the machine as it found it."""

import contextlib
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from canned import Canned
from hypothesis import settings
from lab import netns, patience, processes
from lab.lab import of_others

# No test is one of time: on a busy machine an example of a few milliseconds may take Hypothesis' limit of 200.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

TIMEOUT = 600  # seconds for a test: the end of one that hangs, which none that passes comes near
PREFIX = "ot"  # of every namespace that a test makes
# Environment variable by which a program is known as started, at whatever remove, by this session
SESSION = "OVERLAYD_TEST_SESSION"


@pytest.hookimpl(tryfirst=True)  # before pytest-timeout reads it
def pytest_configure(config: pytest.Config) -> None:
    if config.option.timeout is None:
        config.option.timeout = TIMEOUT * patience.FACTOR


def _listing(*argv: str) -> set[str]:
    """The lines that a program prints; none when it cannot run here (no root, not installed)."""
    with contextlib.suppress(FileNotFoundError):
        return set(subprocess.run(argv, capture_output=True, text=True, check=False).stdout.splitlines())
    return set()


def _machine() -> dict[str, set[str]]:
    """What a careless test would leave on this machine."""
    links = _listing("ip", "-o", "link")
    others = of_others()
    session = os.environ.get(SESSION, "")
    return {
        "network namespaces": {name for name in netns.named(PREFIX) if name.partition("-")[0] not in others},
        "links": {line.split(":")[1].strip() for line in links},
        "nftables tables": _listing("nft", "list", "tables"),
        "processes": {
            f"{pid} {processes.name(pid)}" for pid in processes.marked(SESSION, session) if processes.start_time(pid)
        },
    }


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Compare namespaces, links, tables and processes before and after the session.

    Set up before and so torn down after every other session fixture.  A difference is an error of the last test, so
    that it counts in the summary.  The kernel removes the links of a deleted namespace in its own time: the comparison
    waits for it.
    """
    os.environ[SESSION] = secrets.token_hex(8)
    before = _machine()
    yield
    deadline = time.monotonic() + patience.LIMIT
    while True:
        after = _machine()
        left = {kind: sorted(after[kind] - before[kind]) for kind in after if after[kind] - before[kind]}
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert not left, f"left behind, or made meanwhile by another run of the tests on this machine: {left}"


@pytest.fixture
def canned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Canned]:
    server = Canned(tmp_path / "s")
    monkeypatch.setenv("OVERLAYD_SOCKET", str(server.path))
    yield server
    server.close()
