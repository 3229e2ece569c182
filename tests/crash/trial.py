"""One scenario in one cell: undisturbed, or disturbed at one fault point, and what must be true afterwards.

Owns: doing steps, and the rules.  Must not know: which scenarios there are, or how trials are spread over processes.

The undisturbed run tells the points that the act passes, and what the cell shows before the act, after it and after it
was repeated (`model` says whether that is right).  Then the rules are:

- killed: the next daemon shows what was before or what was to come, wholly; the latter if the act was acknowledged, or
  if nobody asked for it but it happened.  Repeating the request leads where it leads undisturbed.
- refused an operation: if the request got `err`, all is as before; else it was done.  Repeating it leads as above.
"""

import os
import shutil
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from errno import ENOMEM, ENOSPC
from typing import Any

from lab.patience import LIMIT

from crash.cell import HOME, Cell
from crash.damage import DAMAGES, DISPLACEMENTS
from crash.model import Model
from crash.scenarios import KEYS, Scenario, Step
from crash.shown import seen
from crash.shown import view as shown
from crash.together import Answer, Sent
from crash.view import View, blank, difference, remains, rows, take

Point = tuple[str, int]  # a fault point and its passage since the daemon's start, from 1


class Wrong(Exception):
    """Something is not as it must be, whatever was disturbed."""


def perform_together(cell: Cell, sent: Sequence[Sent]) -> list[Answer | None]:
    """Send requests at once; their answers, None for those that the daemon did not give before it died."""
    answers = cell.request_together(sent)
    if None in answers:
        cell.await_end()
    return [Answer(answer[0], blank(answer[1], KEYS)) if answer else None for answer in answers]


def perform(cell: Cell, step: Step, fault: str = "") -> dict[str, Any] | None:
    """Do a step; its answer, None when the daemon died before it gave one.  fault: for a daemon that is started."""
    op, keys = step["op"], {key: value for key, value in step.items() if key != "op"}
    if not op.startswith("!"):
        answer = blank(cell.request(op, **keys), KEYS)
        if answer is None:
            cell.await_end()
        if op == "shutdown" and answer == {"result": "ok"}:
            cell.await_end()
        return answer
    if op == "!container":
        cell.start_container(keys["pid"])
    elif op == "!die":
        cell.kill_container(keys["pid"])
        return {"result": "ok"} if _reclaimed(cell, keys["pid"]) else None
    elif op == "!damage":
        return {"result": "ok"} if _damaged(cell, keys["what"]) else None
    elif op == "!displace":
        return {"result": "ok"} if _displaced(cell, keys["how"]) else None
    elif op == "!teardown":
        return {"result": "ok"} if _torn_down(cell, fault) else None
    else:
        cell.kill_daemon()
        if op == "!reboot":
            cell.reboot()
        elif op in ("!orphan", "!replace"):
            cell.kill_container(keys["pid"])
            if op == "!replace":
                cell.start_container(keys["pid"])
        elif op == "!stranger":
            if not cell.refuses_to_start_with_another_state():
                raise Wrong(f"a daemon that does not know what is on this machine starts\n{cell.last_words()}")
            shutil.rmtree(HOME / "other")
        if not cell.start(fault):
            return None
    return {"result": "ok"}


def _reclaimed(cell: Cell, pid: int) -> bool:
    """Wait until what a dead container held is free; False when the daemon died of it, or was refused to free it."""

    def is_free() -> bool:
        names = {name for _, name in socket.if_nameindex()}
        holds = any(row.startswith((f"attachment pid:{pid}", f"attachment netns:c{pid}/")) for row in rows(cell))
        return not holds and f"veth-{pid}-s" not in names

    # Answered when nothing else is under way.
    return cell.until(is_free) and cell.request("teardown_service_overlay", service="unknown") is not None


def _damaged(cell: Cell, what: str) -> bool:
    """Do damage, and wait until it is made good; False when the daemon died of it."""
    before = _without_names(take(cell, KEYS))
    DAMAGES[what](cell)
    deadline = time.monotonic() + LIMIT
    problems = ["it cannot be seen"]
    while problems and not cell.ended():
        if time.monotonic() > deadline:
            raise Wrong("\n".join((f"damage to {what} stays", *problems, cell.last_words())))
        with suppress(
            RuntimeError, FileNotFoundError
        ):  # the daemon, or a device that is looked at, may end at any moment
            problems = difference(before, _without_names(take(cell, KEYS)))
    return bool(cell.daemon)


def _displaced(cell: Cell, how: str) -> bool:
    """Disturb the journal, and have the daemon look at it; False when it died of it; then the file is brought back."""
    journal = cell.data / "journal"
    kept = journal.read_bytes()
    DISPLACEMENTS[how](journal)
    if cell.request("doctor") is None:
        cell.await_end()
        cell.data.mkdir(mode=0o700, exist_ok=True)
        journal.touch(0o600)
        journal.write_bytes(kept)
    for stranger in cell.data.glob("journal.displaced-*"):
        stranger.unlink()
    return bool(cell.daemon)


def _torn_down(cell: Cell, fault: str) -> bool:
    """Run `overlayd --teardown`; whether its first run came to its end."""
    cell.kill_daemon()
    done = cell.tear_down(fault)
    if not done and not cell.tear_down():
        raise Wrong(f"what was half torn down cannot be torn down\n{cell.last_words()}")
    left = remains(cell)
    if left:
        raise Wrong("\n".join(("left behind:", *left, cell.last_words())))
    return done


def undisturbed(cell: Cell, scenario: Scenario) -> dict[str, Any]:
    """What `disturbed` needs to know: points, answers and views."""
    _prepare(cell, scenario)
    before = take(cell, KEYS)
    earlier = 0 if scenario.starts_daemon else len(cell.passed())
    answer = perform(cell, scenario.act)
    if answer is None or answer["result"] == "err":
        raise Wrong(f"{scenario.name}: {answer}\n{cell.last_words()}")
    passed = cell.passed()
    if not cell.daemon:
        cell.start()
    after = take(cell, KEYS)
    repeated, again = answer, after
    if scenario.asked:
        repeated = perform(cell, scenario.act)
        if not cell.daemon:
            cell.start()
        again = take(cell, KEYS)
    _agree(Model(), scenario, answer, (before, after, again))
    points = [(name, passed[: at + 1].count(name)) for at, name in enumerate(passed) if at >= earlier]
    return {"points": points, "answer": answer, "repeated": repeated, "before": before, "after": after, "again": again}


def _agree(model: Model, scenario: Scenario, answer: dict[str, Any], views: tuple[View, View, View]) -> None:
    """Compare what an undisturbed run has shown with the reference."""
    for step in scenario.before:
        model, _ = model.after(step)
    later, expected = model.after(scenario.act)
    last = later.after(scenario.act)[0] if scenario.asked else later
    problems = [f"the answer: expected {expected}, found {answer}"] if answer != expected else []
    for when, state, view in zip(("before", "after", "again"), (model, later, last), views, strict=True):
        problems += [f"{when}: {line}" for line in difference(shown(state), seen(view))]
    if problems:
        raise Wrong("\n".join(("the reference does not agree", *problems)))


def killed(
    cell: Cell, scenario: Scenario, point: Point, known: dict[str, Any], refusal: Point | None = None
) -> list[str]:
    """Kill the daemon at a point; returns what was found wrong.  refusal: a point where it is refused an operation, so
    that it is killed while it takes the request back.
    """
    fault = f"{point[0]}:{point[1]}"
    answer = _up_to(cell, scenario, f"{_refusal(refusal)},{fault}" if refusal else fault)
    if cell.stop():  # some of the work is done after the answer
        if scenario.asked and not refusal:
            return [f"the point was not passed this time (answer: {answer})"]
        if refusal:
            return []  # it was passed after the answer the first time
        cell.start()
        # How much of a dead container the kernel has cleared away itself is a matter of luck.
        return _headed("not made up for", difference(known["after"], take(cell, KEYS)))
    refused = refusal is not None and answer is not None and answer["result"] == "err"
    if answer is not None and answer != known["answer"] and not scenario.starts_daemon and not refused:
        return [f"the answer was {answer} instead of {known['answer']}"]
    if not cell.start():
        return [f"the next daemon did not start\n{cell.last_words()}"]
    found = take(cell, KEYS)
    if refusal:  # a name that was given and not quite taken back does no harm, as any alternative name
        found, known = _without_alternatives(found), _without_alternatives(known)
    done = not difference(known["after"], found) and not refused
    if not done and (answer is not None or not scenario.asked) and not refused:
        return ["lost, though acknowledged" if answer else "not made up for", *difference(known["after"], found)]
    if not done and not scenario.parts and difference(known["before"], found):
        nearest = min(("before", "after"), key=lambda view: len(difference(known[view], found)))
        return [f"neither wholly there nor wholly absent; from {nearest}:", *difference(known[nearest], found)]
    return _repeated(cell, scenario, known, done, lenient=refusal is not None)


def refused(cell: Cell, scenario: Scenario, point: Point, known: dict[str, Any]) -> list[str]:
    """Refuse the daemon an operation; returns what was found wrong."""
    number = errno_of(point)
    answer = _up_to(cell, scenario, _refusal(point))
    if not scenario.asked:
        cell.stop()
        if not cell.start():
            return [f"the next daemon did not start\n{cell.last_words()}"]
        return _headed("not made up for", difference(known["after"], take(cell, KEYS)))
    if answer is None:
        return [f"the daemon died of errno {number}\n{cell.last_words()}"]
    done = answer["result"] != "err"
    if not done and os.strerror(number) not in answer["message"]:
        return [f"the answer does not tell of errno {number}: {answer}"]
    if not cell.daemon:
        cell.start()
    if scenario.parts and not done:
        return _repeated(cell, scenario, known, done)
    found = take(cell, KEYS)
    problems = _headed(
        "not done, though acknowledged" if done else "not as before",
        difference(known["after" if done else "before"], found),
    )
    return problems or _repeated(cell, scenario, known, done)


def _without_names(shown: View) -> View:
    """Without the other names of links, and sockets that are named after the first one."""
    kept: View = _without_alternatives({**shown, "left": {**shown["left"], "files": None}})
    return kept


def _without_alternatives(shown: Any) -> Any:
    if not isinstance(shown, dict):
        return shown
    return {key: _without_alternatives(value) for key, value in shown.items() if key != "altnames"}


def way_back(cell: Cell, scenario: Scenario, point: Point) -> list[Point]:
    """The points that the daemon passes after it was refused an operation."""
    _up_to(cell, scenario, _refusal(point))
    passed = cell.passed()
    struck = [at for at, name in enumerate(passed) if name == point[0]][point[1] - 1]
    return [(name, passed[: at + 1].count(name)) for at, name in enumerate(passed) if at > struck]


def _refusal(point: Point) -> str:
    return f"{point[0]}:{point[1]}:{errno_of(point)}"


def errno_of(point: Point) -> int:
    """With which errno an operation is refused there."""
    return ENOSPC if point[0].startswith("journal:") else ENOMEM


def _prepare(cell: Cell, scenario: Scenario, fault: str = "") -> None:
    """Do what comes before the act."""
    cell.start(fault)
    for step in scenario.before:
        answer = perform(cell, step)
        if answer is None or answer["result"] == "err":
            raise Wrong(f"{scenario.name}: {step}: {answer}\n{cell.last_words()}")


def _up_to(cell: Cell, scenario: Scenario, fault: str) -> dict[str, Any] | None:
    """Everything up to and including the act, with the fault in the daemon that does the act."""
    _prepare(cell, scenario, "" if scenario.starts_daemon else fault)
    return perform(cell, scenario.act, fault)


def _repeated(cell: Cell, scenario: Scenario, known: dict[str, Any], done: bool, lenient: bool = False) -> list[str]:
    """lenient: whatever alternative names there are."""
    if not scenario.asked:
        return []
    answer = perform(cell, scenario.act)
    expected = known["repeated" if done else "answer"]  # what can be had only once is refused
    if answer is None or answer["result"] != expected["result"]:
        return [f"repeating it was answered by {answer} instead of {expected}\n{cell.last_words()}"]
    if not cell.daemon:
        cell.start()
    problems = difference(known["again" if done else "after"], take(cell, KEYS))
    return _headed("repeating it led astray", [line for line in problems if " altnames:" not in line or not lenient])


def _headed(title: str, lines: list[str]) -> list[str]:
    return [title, *lines] if lines else []
