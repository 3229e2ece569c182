"""What a container runtime calls by the shim, with the daemon killed, or refused an operation, at every point of it.

Owns: those calls, and what must hold.  Must not know: overlayd.

The rules: the shim waits for the next daemon and tells the runtime what it tells undisturbed: so an ADD has the address
that it had begun with.  Then the cell shows what it shows undisturbed: nothing is left of the first try.  A call that
is refused says by which errno, and leaves everything as it was; the runtime's next one leads where it leads
undisturbed.
"""

import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from subprocess import Popen
from typing import Any

from cni.shim import CONFIG, Ended, finish, start, variables

from crash.cell import HOME, Cell, inside
from crash.points import CANNOT_FAIL
from crash.scenarios import FIRST, SECOND, UP
from crash.trial import Point, Wrong, errno_of
from crash.view import View, difference, take

SOCKET = HOME / "cni.sock"
SLICE = {**CONFIG, "subnet": "slice"}


def call(command: str, pid: int = SECOND, **keys: Any) -> "Popen[bytes]":
    """Execute the shim for the container of that process."""
    given = {"containerid": f"c{pid}", "netns": f"/proc/{pid}/ns/net"}
    return start(variables(command, SOCKET, **given), {**SLICE, **keys})


def valid(*pids: int) -> dict[str, Any]:
    return {"cni.dev/valid-attachments": [{"containerID": f"c{pid}", "ifname": "eth0"} for pid in pids]}


@dataclass(frozen=True)
class Act:
    """attached: the containers that are before it.  damaged: the second one has done something to its interface.
    whole: it is done wholly or not at all.
    """

    begin: Callable[[], "Popen[bytes]"]
    attached: Sequence[int] = ()
    damaged: bool = False
    whole: bool = True


ACTS = {
    "the first ADD": Act(lambda: call("ADD"), whole=False),  # what it sets up for the service stays
    "ADD": Act(lambda: call("ADD"), [FIRST]),
    "ADD again": Act(lambda: call("ADD"), [FIRST, SECOND], damaged=True, whole=False),
    "DEL": Act(lambda: call("DEL"), [FIRST, SECOND]),
    "GC": Act(lambda: call("GC", **valid(FIRST)), [FIRST, SECOND]),
}


def prepare(cell: Cell, act: Act, fault: str = "") -> None:
    """A daemon, two containers, and those attached that are."""
    cell.start(fault)
    for step in UP:
        cell.request(**step)
    for pid in (FIRST, SECOND):
        cell.start_container(pid)
    for pid in act.attached:
        ended = finish(call("ADD", pid))
        if ended.exit:
            raise Wrong(f"{ended}\n{cell.last_words()}")
    if act.damaged:
        cell.run(["nsenter", "-t", str(SECOND), "-n", "ip", "link", "set", "eth0", "down"])


@dataclass(frozen=True)
class Known:
    """What an act passes and shows undisturbed."""

    points: Sequence[Point]
    ended: Ended
    before: View
    after: View


def undisturbed(name: str) -> Known:
    act = ACTS[name]

    def work(cell: Cell) -> dict[str, Any]:
        prepare(cell, act)
        before = take(cell)
        earlier = len(cell.passed())
        ended = finish(act.begin())
        if ended.exit:
            raise Wrong(f"{ended}\n{cell.last_words()}")
        after = take(cell)
        passed = cell.passed()
        points = [(point, passed[: at + 1].count(point)) for at, point in enumerate(passed) if at >= earlier]
        return {"points": points, "ended": ended, "before": before, "after": after}

    found = inside(work)
    points = [(str(point), int(passage)) for point, passage in found["points"]]
    return Known(points, Ended(*found["ended"]), found["before"], found["after"])


def killed(name: str, point: Point, known: Known) -> list[str]:
    """Kill the daemon at a point, and start the next one while the shim waits; returns what was found wrong."""
    act = ACTS[name]

    def work(cell: Cell) -> list[str]:
        prepare(cell, act, f"{point[0]}:{point[1]}")
        shim = act.begin()
        while not cell.ended() and shim.poll() is None:
            time.sleep(0.001)
        if cell.stop():  # some of the work is done after the answer
            finish(shim)
            return []
        cell.start()
        return _compare(cell, act, finish(shim), known)

    return list(inside(work))


def refused(name: str, point: Point, known: Known) -> list[str]:
    """Refuse the daemon an operation, and call again; returns what was found wrong."""
    act, number = ACTS[name], errno_of(point)

    def work(cell: Cell) -> list[str]:
        prepare(cell, act, f"{point[0]}:{point[1]}:{number}")
        ended = finish(act.begin())
        if cell.ended():
            return [f"the daemon died of errno {number}\n{cell.last_words()}"]
        if not ended.exit:
            return _compare(cell, act, ended, known)
        code, words = ended.error
        problems = []
        if (code, os.strerror(number) in words) != (11 if point[0].startswith("journal:") else 100, True):
            problems.append(f"it was told as {code}: {words}")
        if act.whole:
            problems += [f"not as before: {line}" for line in difference(known.before, take(cell))]
        return problems or _compare(cell, act, finish(act.begin()), known)

    return list(inside(work))


def _compare(cell: Cell, act: Act, ended: Ended, known: Known) -> list[str]:
    """The answer, what the cell shows, and both once more."""
    problems = []
    for found in (ended, finish(act.begin())):
        if found != known.ended:
            problems.append(f"the answer: expected {known.ended}, found {found}\n{cell.last_words()}")
        problems += difference(known.after, take(cell))
    left = SOCKET.with_name("cni-del")
    return problems + [f"{file.name} is left in {left}" for file in left.iterdir()]


HOW: dict[str, Callable[[str, Point, Known], list[str]]] = {"killed": killed, "refused": refused}


def trials(known: Known) -> list[tuple[str, Point]]:
    """How an act is disturbed, and where."""
    return [(how, point) for point in known.points for how in HOW if how == "killed" or point[0] not in CANNOT_FAIL]


def main() -> int:
    """Every act at every point; 1 when something went wrong."""
    wrong = 0
    for name in ACTS:
        known = undisturbed(name)
        chosen = trials(known)
        random.shuffle(chosen)
        for how, point in chosen:
            if problems := HOW[how](name, point, known):
                wrong += 1
                print("\n   ".join((f"{name}, {how} at {point}", *problems)), flush=True)
        print(f"{name}: {len(chosen)} disturbed calls of the shim, {wrong} wrong until now", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
