"""Which trials there are, and what came of those that were run.

Owns: the list of (scenario, point, passage, how), and the count.  Must not know: how a trial is run.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from crash.points import CANNOT_FAIL
from crash.scenarios import SCENARIOS
from crash.worker import Job, Workers

HOW = ("killed", "refused")
TELL_EVERY = 60.0  # seconds: a campaign takes many minutes


@dataclass
class Report:
    """The outcome of a campaign.  trials: distinct (scenario, point, passage, how).  wrong: a text a failure."""

    trials: set[tuple[str, str, int, str]] = field(default_factory=set)
    sequences: int = 0
    runs: int = 0
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        first: dict[tuple[str, str, str], int] = {}
        for scenario, point, passage, how in self.trials:
            place = (scenario, point, how)
            first[place] = min(passage, first.get(place, passage))
        ops = {
            (SCENARIOS[scenario].act["op"], point, passage - first[scenario, point, how])
            for scenario, point, passage, how in self.trials
        }
        situations = {trial[:3] for trial in self.trials}
        return (
            f"{len(ops)} pairs of op and point (each passage of it), {len(situations)} of scenario and point; "
            f"{self.runs} runs, {self.sequences} of them random sequences; {len(self.wrong)} went wrong"
        )

    def add(self, job: Job, outcome: Any) -> None:
        """Count a job that was done."""
        self.runs += 1
        if job["do"] == "disturbed":
            self.trials.add((job["scenario"], job["point"], job["passage"], job["how"]))
        elif job["do"] == "undone":
            for point, passage in outcome.get("trials", ()):
                self.runs += 1
                self.trials.add((job["scenario"], point, passage, f"killed after {job['point']} {job['passage']}"))
        elif job["do"] == "sequence":
            self.sequences += 1
        problems = problems_of(outcome)
        if problems:
            title = ", ".join(str(value) for key, value in job.items() if key not in ("do", "known") and value)
            self.wrong.append("\n   ".join((f"{job['do']} {title}", *problems)))


def problems_of(outcome: Any) -> list[str]:
    """What was wrong in a job's outcome."""
    if isinstance(outcome, list):
        return outcome
    if "raised" in outcome:
        return [str(outcome["raised"])]
    found: list[str] = outcome.get("problems", [])
    return found


def trials(workers: Workers, report: Report, scenarios: Iterable[str] = tuple(SCENARIOS)) -> list[Job]:
    """Run scenarios undisturbed; the jobs that disturb each of them everywhere."""
    jobs: list[Job] = []
    shown: dict[str, Any] = {}
    for job, outcome in workers.run({"do": "undisturbed", "scenario": name} for name in scenarios):
        report.add(job, outcome)
        points = outcome.get("points", ())
        shown[job["scenario"]] = outcome
        jobs += [
            {"do": "disturbed", "scenario": job["scenario"], "how": how, "point": point, "passage": passage}
            for point, passage in points
            for how in HOW
            if how == "killed" or point not in CANNOT_FAIL
        ]
        kernel = [each for each in points if each[0] not in CANNOT_FAIL and not each[0].startswith("journal:")]
        if kernel and SCENARIOS[job["scenario"]].asked:
            point, passage = kernel[-1]  # the longest way back
            jobs.append({"do": "undone", "scenario": job["scenario"], "point": point, "passage": passage})
    return [{**job, "known": shown[job["scenario"]]} for job in sorted(jobs, key=str)]


def run(workers: Workers, report: Report, jobs: Iterable[Job]) -> None:
    """Do jobs, report each that goes wrong as soon as it does, and now and then how far it is."""
    told = time.monotonic()
    for job, outcome in workers.run(jobs):
        before = len(report.wrong)
        report.add(job, outcome)
        for text in report.wrong[before:]:
            print(text, flush=True)
        if time.monotonic() - told > TELL_EVERY:
            told = time.monotonic()
            print(f"so far: {report}", flush=True)
