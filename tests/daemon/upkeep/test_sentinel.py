"""When a part is looked at, what becomes of it, and what is said: on a node whose kernel is a map.

What a real kernel tells, and shows, is tested end to end (test_drift); which step is taken when, in test_pacing.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from errno import EPERM
from pathlib import Path

import pytest
from lab.patience import LIMIT
from node_with_peers import set_up_overlay

from overlayd.daemon.change.apply import one_by_one
from overlayd.daemon.change.journal import Journal
from overlayd.daemon.change.node import Node
from overlayd.daemon.tasks import Tasks
from overlayd.daemon.upkeep import sentinel
from overlayd.daemon.upkeep.sentinel import Sentinel
from overlayd.daemon.upkeep.surroundings import Surroundings
from overlayd.daemon.upkeep.suspects import EVERYTHING, Part
from overlayd.errors import MechanismError
from overlayd.linux.monitor import Overrun
from overlayd.model import services
from overlayd.model.layout import Facts, implied, of_service
from overlayd.model.rows import Node as Identity
from overlayd.model.state import State

WEB, BRIDGE = Part("service", "web"), ("bridge", "web")


class MapKernel:
    """Takes every step, or none while it `refuses`.  looks: how often it was looked at."""

    backend = None

    def __init__(self) -> None:
        self.things = {}
        self.refuses = False
        self.looks = 0

    def apply(self, steps) -> None:
        self.repair(steps)

    def apply_together(self, changes):
        return one_by_one(self.apply, changes)

    def repair(self, steps):
        if self.refuses:
            return [(step, MechanismError("create", "zl-web-b", EPERM)) for step in steps]
        for step in steps:
            thing = step.want or step.have
            self.things.pop(thing.key, None)
            if step.want is not None:
                self.things[thing.key] = step.want
        return []

    def look(self, want):
        self.looks += 1
        return {key: self.things[key] for key in want if key in self.things}

    def forget(self, addresses) -> None:
        pass

    def close(self) -> None:
        pass


class Line:
    """A monitor that tells what a test puts into `events`, or raises it.  opened: how many there were."""

    opened = 0

    def __init__(self) -> None:
        Line.opened += 1
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.sockets = (theirs,)
        self.events = []

    def tell(self, event) -> None:
        self.events.append(event)
        self.ours.send(b".")

    def read(self, source):
        source.recv(100)
        events, self.events = self.events, []
        for event in events:
            if isinstance(event, Exception):
                raise event
        return events

    def close(self) -> None:
        for each in (self.ours, *self.sockets):
            each.close()


class Watched:
    """A node with a service, and its sentinel."""

    def __init__(self, node: Node, kernel: MapKernel) -> None:
        self.node, self.kernel = node, kernel
        self.line = Line()
        self.sentinel = Sentinel(node, self.line, lambda: None, Surroundings(node))  # type: ignore[arg-type]

    async def until(self, condition) -> None:
        async with asyncio.timeout(LIMIT):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    async def settled(self) -> None:
        """What is suspected is looked at, and every look is over."""
        await asyncio.sleep(0)
        waiting = self.sentinel._suspicions
        await self.until(lambda: waiting.keys() == {EVERYTHING} and not self.sentinel._busy)


@asynccontextmanager
async def ready(directory: Path) -> AsyncIterator[Watched]:
    journal, kernel = Journal.open(directory), MapKernel()
    node = Node(State([Identity(private_key=b"k" * 32)]), journal, kernel, Facts(mtu=1420))  # type: ignore[arg-type]
    await node.change(
        set_up_overlay,
        everything=True,
    )
    await node.change(
        lambda draft: services.setup_service(draft, "web", subnet=None, dedicated_key=None), everything=True
    )
    watched = Watched(node, kernel)
    async with Tasks() as tasks, watched.sentinel.running(tasks.keep_up):
        await watched.settled()
        yield watched
    await node.close()
    await journal.close()


@pytest.fixture
async def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watched]:
    def way(part: Part):
        of = (lambda state, facts: of_service(state, facts, name="web")) if part == WEB else implied
        return of, MapKernel.look, None

    monkeypatch.setattr(sentinel, "_way", way)
    monkeypatch.setattr(sentinel, "all_links", list)
    monkeypatch.setattr(sentinel.forwarding, "faults", lambda _: [])
    monkeypatch.setattr(sentinel, "Monitor", Line)
    monkeypatch.setattr("overlayd.daemon.tasks.PAUSE", 0.0)
    async with ready(tmp_path) as made:
        yield made


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def test_what_is_lost_comes_back_and_who_took_it_is_said(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    bridge = watched.kernel.things.pop(BRIDGE)
    watched.sentinel.suspect(WEB, "link", "ip (process 7)")
    await watched.settled()
    assert watched.kernel.things[BRIDGE] == bridge
    [line] = said(caplog)
    assert bridge.name in line
    assert "by ip (process 7)" in line


async def test_nothing_is_done_and_said_when_all_is_well_and_no_look_is_taken_at_whom_is_acquitted(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    looks = watched.kernel.looks
    watched.sentinel.suspect(WEB, "link")
    watched.sentinel.acquit(WEB, "link")
    await watched.settled()
    assert watched.kernel.looks == looks
    watched.sentinel.suspect(WEB, "link")
    watched.sentinel.suspect(WEB, "address")
    watched.sentinel.acquit(WEB, "link")
    await watched.settled()
    assert watched.kernel.looks == looks + 1
    assert said(caplog) == []


async def test_what_cannot_be_put_back_is_told_once_and_tried_until_it_can(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    watched.kernel.refuses = True
    bridge = watched.kernel.things.pop(BRIDGE)
    watched.sentinel.suspect(WEB, "link")
    await watched.until(lambda: BRIDGE in watched.sentinel.failures)
    looks = watched.kernel.looks
    await watched.until(lambda: watched.kernel.looks > looks + 1)
    assert "Operation not permitted" in watched.sentinel.failures[BRIDGE]
    assert sum("cannot be put right" in line for line in said(caplog)) == 1
    watched.kernel.refuses = False
    await watched.until(lambda: watched.kernel.things.get(BRIDGE) == bridge)
    await watched.settled()
    assert watched.sentinel.failures == {}


async def test_a_line_that_fails_is_opened_anew_and_everything_is_looked_at(watched: Watched) -> None:
    opened = Line.opened
    bridge = watched.kernel.things.pop(BRIDGE)
    watched.line.tell(ZeroDivisionError())
    await watched.until(lambda: watched.kernel.things.get(BRIDGE) == bridge)
    assert Line.opened == opened + 1
    assert watched.line.ours.fileno() == -1


async def test_lost_events_make_everything_suspect(watched: Watched) -> None:
    bridge = watched.kernel.things.pop(BRIDGE)
    watched.line.tell(Overrun(ruleset=False))
    await watched.until(lambda: watched.kernel.things.get(BRIDGE) == bridge)


async def test_the_end_waits_for_a_look_that_is_under_way(
    tmp_path: Path, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended = asyncio.Event(), []

    async def slow(self: Sentinel, part: Part, who: str) -> None:
        begun.set()
        await asyncio.sleep(0.05)
        ended.append(part)

    async with ready(tmp_path / "other") as other:
        monkeypatch.setattr(Sentinel, "_repair", slow)
        other.sentinel.suspect(WEB, "link")
        await begun.wait()
    assert ended == [WEB]
    assert other.line.ours.fileno() == -1
