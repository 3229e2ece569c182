"""What every test runs under: a session that must leave the machine as it found it."""

import contextlib
import gc
import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from canned import Canned
from hypothesis import settings
from lab import netns, patience, processes, warm
from lab.lab import of_others

# No test is one of time: on a busy machine an example of a few milliseconds may take Hypothesis' limit of 200.
# The same examples in every run of `make test`; HYPOTHESIS_PROFILE=explore draws others each time.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

TIMEOUT = 600  # seconds for a test: the end of one that hangs, which none that passes comes near
PREFIX = "ot"  # of every namespace that a test makes
SHARED = {
    Path("/proc/sys/net/ipv4/neigh/default/gc_thresh3"): 16_384,
    Path("/proc/sys/net/ipv6/neigh/default/gc_thresh3"): 16_384,
    Path("/proc/sys/net/core/netdev_max_backlog"): 50_000,
}
# Files and folders that take longest, as `pytest --durations=0` has it.
LONGEST = (
    *("test_crash.py", "test_scripts.py", "crash", "test_nat_matrix.py", "test_resolvers.py", "test_why.py"),
    *("test_in_the_way.py", "test_nameserver_upstreams.py", "test_cluster_hands.py", "test_cluster_bad_days.py"),
    *("test_cluster.py", "test_troubleshooting.py"),
    *("test_cluster_rotation.py", "test_examples.py", "e2e", "sim", "cni", "fuzz", "daemon", "linux"),
)
# Where an installed overlayd and container runtimes have their files
PLACES = [Path(each) for each in ("/etc/cni", "/opt/cni", "/etc/overlayd", "/run/overlayd", "/var/lib/overlayd")]
# Environment variable by which a program is known as started, at whatever remove, by this session
SESSION = "OVERLAYD_TEST_SESSION"


@pytest.hookimpl(tryfirst=True)  # before pytest-timeout reads it
def pytest_configure(config: pytest.Config) -> None:
    if config.option.timeout is None:
        config.option.timeout = TIMEOUT * patience.FACTOR
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Comparison())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Workers of pytest-xdist take a file at a time, in this order: the longest ones first, so that none of them is
    begun when all else is over.
    """
    if hasattr(config, "workerinput"):
        places = {name: number for number, name in enumerate(LONGEST)}
        items.sort(key=lambda item: min(places.get(part, len(places)) for part in item.path.parts))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Thousands of collected tests stay to the end: the garbage collector need not look at them again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def _listing(*argv: str) -> set[str]:
    """The lines that a program prints; none when it cannot run here (no root, not installed)."""
    with contextlib.suppress(FileNotFoundError):
        return set(subprocess.run(argv, capture_output=True, text=True, check=False).stdout.splitlines())
    return set()


def _machine() -> dict[str, set[str]]:
    """What a careless test would leave on this machine."""
    links = _listing("ip", "-o", "link")
    others = of_others()
    session = os.environ[SESSION]
    return {
        "network namespaces": {name for name in netns.named(PREFIX) if name.partition("-")[0] not in others},
        "links": {line.split(":")[1].strip() for line in links},
        "nftables tables": _listing("nft", "list", "tables"),
        "files": {str(path) for place in PLACES for path in place.glob("**/*")},
        "processes": {
            f"{pid} {processes.name(pid)}" for pid in processes.marked(SESSION, session) if processes.start_time(pid)
        },
    }


def _widen_what_namespaces_share() -> dict[Path, str]:
    """Let many laboratories go on beside each other; returns what was lower before.

    The tables of neighbours are one for all network namespaces: with 1,024 each doctor of a node would warn of that.
    So is the queue from which a processor takes what came over veths: a flood in one laboratory would fill the 1,000
    places of it, and an echo of another one be lost.
    """
    before: dict[Path, str] = {}
    for limit, wanted in SHARED.items():
        with contextlib.suppress(OSError):  # no root, or no host's namespace
            if int(text := limit.read_text()) < wanted:
                limit.write_text(f"{wanted}\n")
                before[limit] = text
    return before


class Comparison:
    """Compares namespaces, links, tables and processes before and after the session.

    A plugin of the process that the session was started in: pytest-xdist's workers, which run the tests, see what the
    others have at the moment.  They inherit the mark of the session.
    """

    def __init__(self) -> None:
        os.environ[SESSION] = secrets.token_hex(8)
        self._before = _machine()
        self._narrow = _widen_what_namespaces_share()

    def _left(self) -> dict[str, list[str]]:
        after = _machine()
        return {kind: sorted(after[kind] - self._before[kind]) for kind in after if after[kind] - self._before[kind]}

    @pytest.hookimpl(wrapper=True, trylast=True)  # after all fixtures and workers, before the summary
    def pytest_sessionfinish(self, session: pytest.Session) -> Iterator[None]:
        """Report a difference as an error, so that it counts in the summary.

        The kernel removes the links of a deleted namespace in its own time: the comparison waits for it.
        """
        result = yield
        for limit, before in self._narrow.items():
            limit.write_text(before)
        with contextlib.suppress(TimeoutError):
            patience.until(lambda: not self._left())
        if left := self._left():
            report = pytest.TestReport(
                nodeid="nothing is left behind",
                location=("", None, "nothing is left behind"),
                keywords={},
                outcome="failed",
                longrepr=f"left behind, or made meanwhile by another run of the tests on this machine: {left}",
                when="teardown",
            )
            session.config.hook.pytest_runtest_logreport(report=report)
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        return result


@pytest.fixture(scope="session", autouse=True)
def warm_process() -> Iterator[None]:
    """Daemons of laboratories are forks of one process."""
    with warm.allowed():
        yield


@pytest.fixture
def canned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Canned]:
    server = Canned(tmp_path / "s")
    monkeypatch.setenv("OVERLAYD_SOCKET", str(server.path))
    monkeypatch.delenv("COLUMNS", raising=False)
    yield server
    server.close()
