"""What a worker can be asked to do.

Owns: the table of jobs.  Must not know: who asks.
"""

import gc
from typing import Any

from crash import sequences, trial
from crash.cell import Cell, inside
from crash.planted import BUGS
from crash.scenarios import SCENARIOS

Known = dict[str, Any]  # what the undisturbed run of a scenario has shown


def undisturbed(scenario: str, bug: str = "") -> Known:
    """See `trial.undisturbed`.  bug: the name of one that is planted into the daemon."""

    def work(cell: Cell) -> Known:
        if bug:
            cell.plant(BUGS[bug])
        try:
            return trial.undisturbed(cell, SCENARIOS[scenario])
        except trial.Wrong as wrong:
            return {"points": [], "problems": str(wrong).splitlines()}

    result: Known = inside(work)
    return result


def disturbed(scenario: str, how: str, point: str, passage: int, *, known: Known, bug: str = "") -> list[str]:
    """Kill the daemon (how: "killed") or refuse it an operation ("refused") at a passage of a point; what was wrong.

    bug: the name of one that is planted into the daemon.
    """
    rule = {"killed": trial.killed, "refused": trial.refused}[how]

    def work(cell: Cell) -> list[str]:
        if bug:
            cell.plant(BUGS[bug])
        problems = rule(cell, SCENARIOS[scenario], (point, passage), known)
        return [*problems, cell.last_words()] if problems else []

    result: list[str] = inside(work)
    return result


def undone(scenario: str, point: str, passage: int, known: Known) -> dict[str, Any]:
    """Refuse the daemon an operation, and kill it at every point that it passes while it takes the request back.
    Returns how many trials that took, and what was wrong.
    """
    refusal = (point, passage)
    back: list[list[Any]] = inside(lambda cell: trial.way_back(cell, SCENARIOS[scenario], refusal))
    problems: list[str] = []
    for name, number in back:
        death = (name, number)
        problems += inside(lambda cell, death=death: trial.killed(cell, SCENARIOS[scenario], death, known, refusal))
    return {"problems": problems, "trials": [[name, number] for name, number in back]}


JOBS = {
    "undisturbed": undisturbed,
    "disturbed": disturbed,
    "undone": undone,
    "sequence": sequences.run,
}
gc.freeze()  # what is imported stays: forks need not touch it
