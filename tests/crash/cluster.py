"""A node of a cluster that is kept in an etcd, killed at every point of its way: into the cluster, to a further block,
with news of another node, with another key, and out of the cluster.

Owns: those acts, and what must hold after each death, read from etcd and by `overlayctl cluster check`.  Must not know:
overlayd.  A laboratory with a real etcd stands where the trials of single nodes have a cell.

The rules: whatever the node holds in the register of blocks it has in its journal, and uses; what was asked for can be
asked for again; and the other node knows what the store has of this one.
"""

import json
import os
import random
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lab import CommandFailed, DaemonExited, Lab, Refused
from lab.etcd import Etcd
from lab.patience import until
from lab.sites import Site

Point = tuple[str, int]  # a fault point and its passage since the daemon's start, from 1
PREFIX = "/overlayd/prod/"


@dataclass
class Place:
    """The etcd, a node that lives through everything, and how many nodes there were."""

    lab: Lab
    etcd: Etcd
    first: Site
    made: int = 0

    def site(self) -> Site:
        self.made += 1
        return Site(self.lab, self.etcd, f"n{self.made}")


@contextmanager
def place() -> Iterator[Place]:
    with Lab() as lab, Etcd(lab) as etcd:
        first = Site(lab, etcd, "first")
        first.start("--cluster-cidr", "10.200.0.0/16", "--block-prefix", "26")
        first.join()
        yield Place(lab, etcd, first)


def _join(place: Place, site: Site) -> None:
    site.join()
    site.state("connected")


def _until(site: Site, condition: Callable[[], object], failing: Callable[[], object] | str = "") -> None:
    """Wait for what the node brings about; EOFError when it dies before."""

    def has_come() -> object:
        if site.node.daemon is not None and site.node.daemon.poll() is not None:
            raise EOFError("the daemon is dead")
        return condition()

    until(has_come, failing or site.node.log_tail)


def _grow(place: Place, site: Site) -> None:
    """A block has room for one service: another block is claimed, and another service has room in that."""
    for service in "ab":
        _until(site, lambda service=service: _set_up(site, service), "no further block")
    _until(site, lambda: len(_held(place, site)) == 3, lambda: f"{_held(place, site)}, not three blocks")


def _set_up(site: Site, service: str) -> bool:
    try:
        site.request("setup_service_overlay", service=service, mode="auto")
    except Refused:
        return False
    return True


def _news(place: Place, site: Site) -> None:
    """Another node comes, is another, and goes."""
    key = f"{PREFIX}s/node/other-{site.node.name}"
    block = f"10.200.{200 + place.made // 4}.{place.made % 4 * 64}/26"
    record = {"instance": "o", "id": 1, "key": b64encode(os.urandom(32)).decode(), "block": block, "version": "1"}
    for port in (1, 2):
        place.etcd.ctl("put", key, json.dumps(record | {"endpoint": f"192.0.2.9:{port}"}))
        _until(site, lambda port=port: f"192.0.2.9:{port}" in _endpoints(site))
    place.etcd.ctl("del", key)
    _until(site, lambda: "192.0.2.9" not in _endpoints(site))


def _endpoints(site: Site) -> str:
    return site.node.run(["wg", "show", site.status["interface"], "endpoints"])


def _turn(place: Place, site: Site) -> None:
    before = site.status["public_key"]
    if _stored_key(place, site) == before:
        site.request("rotate_key", after_secs=0)
    _until(site, lambda: site.status["public_key"] != before)


def _stored_key(place: Place, site: Site) -> str:
    return str(json.loads(place.etcd.ctl("get", "--print-value-only", f"{PREFIX}s/node/{site.node.name}"))["key"])


def _leave(place: Place, site: Site) -> None:
    if "left the cluster" not in site.part.get("error", ""):
        site.request("cluster_leave", force=True)


@dataclass(frozen=True)
class Act:
    """joined: whether the node is in the cluster before it.  leaves: whether it is not afterwards."""

    do: Callable[[Place, Site], None]
    joined: bool = True
    leaves: bool = False


ACTS = {
    "join": Act(_join, joined=False),
    "further block": Act(_grow),
    "news": Act(_news),
    "another key": Act(_turn),
    "leave": Act(_leave, leaves=True),
}


def points(place: Place, name: str) -> list[Point]:
    """The points that the daemon passes during an act."""
    site, act = place.site(), ACTS[name]
    trace = site.node.data_dir.with_name("trace")
    before = 0
    with _environment("OVERLAYD_FAULT_TRACE", str(trace)):
        site.start()
    if act.joined:
        _join(place, site)
        before = len(_passed(trace))
    act.do(place, site)
    _judge(place, site, act)
    site.node.stop()
    passed = _passed(trace)
    return [(point, passed[: at + 1].count(point)) for at, point in enumerate(passed) if at >= before]


def trial(place: Place, name: str, point: Point) -> bool:
    """Kill a node at a point of an act; AssertionError or TimeoutError when a rule does not hold afterwards.  Returns
    whether it was killed: how often some points are passed before is a matter of luck.
    """
    site, act = place.site(), ACTS[name]
    try:
        with _environment("OVERLAYD_FAULT", f"{point[0]}:{point[1]}"):
            site.start()
        if act.joined:
            _join(place, site)
        act.do(place, site)
        _judge(place, site, act)
    except (DaemonExited, EOFError, OSError, TimeoutError, RuntimeError, AssertionError, CommandFailed):
        if not _has_died(site):
            raise
        died = True
    else:
        died = _has_died(site, 0)
    if died:
        try:
            site.start()
            if not act.leaves or _held(place, site):
                _join(place, site)
            act.do(place, site)
            _judge(place, site, act)
        except (EOFError, OSError, DaemonExited, Refused) as error:
            raise AssertionError(f"after its death at {point}: {error!r}\n{site.node.log_tail()}") from error
    site.node.stop()
    return died


def _has_died(site: Site, within: float = 5) -> bool:
    """Whether its daemon has ended."""
    if site.node.daemon is not None:
        try:
            site.node.wait(within)
        except subprocess.TimeoutExpired:
            return False
    return True


def _judge(place: Place, site: Site, act: Act) -> None:
    held = _held(place, site)
    if act.leaves:
        assert not held, held
        assert site.node.name not in place.etcd.ctl("get", "--keys-only", "--prefix", f"{PREFIX}s/")
        return
    part = site.part
    assert held == sorted([part["block"], *part.get("blocks", [])]), (held, part)
    _until(site, lambda: _agrees(site))
    key = site.status["public_key"]
    _until(site, lambda: _routes(place.first, key) == held, lambda: (_routes(place.first, key), held))


def _agrees(site: Site) -> bool:
    with suppress(CommandFailed):
        return "agree" in site.node.overlayctl("cluster", "check")
    return False


def _held(place: Place, site: Site) -> list[str]:
    """The blocks of a node in the register."""
    lines = place.etcd.ctl("get", "--prefix", f"{PREFIX}b/").splitlines()
    register = dict(zip(lines[::2], map(json.loads, lines[1::2]), strict=True))
    mine = [key for key, value in register.items() if value.get("node") == site.node.name]
    return sorted(key.removeprefix(f"{PREFIX}b/").replace("-", "/") for key in mine)


def _routes(site: Site, key: str) -> list[str]:
    """The allowed IPs of a peer of a node's device."""
    found = (line.split() for line in site.device_peers())
    return sorted(next((networks for peer, *networks in found if peer == key), []))


def _passed(trace: Path) -> list[str]:
    return trace.read_text().splitlines() if trace.exists() else []


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """For the daemon that is started inside."""
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


def sample(found: Sequence[Point], chance: random.Random, others: int) -> list[Point]:
    """Those of the cluster, each once, and some others."""
    own = {name: point for point in reversed(found) if (name := point[0]).startswith("cluster:")}
    rest = [point for point in found if not point[0].startswith("cluster:")]
    return [*own.values(), *chance.sample(rest, min(others, len(rest)))]


def main() -> int:
    """`python -m crash.cluster`: all of them."""
    began, wrong, runs = time.monotonic(), 0, 0
    for name in ACTS:
        with place() as there:
            for point in points(there, name):
                runs += 1
                try:
                    trial(there, name, point)
                except (AssertionError, TimeoutError) as error:
                    wrong += 1
                    print(f"{name}, killed at {point}: {error}", flush=True)
    print(f"{runs} deaths of a node of a cluster, {wrong} wrong ({time.monotonic() - began:.0f} s)")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
