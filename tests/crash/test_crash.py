"""A sample of what `make crash` runs, and the proof that the harness finds what it is there for."""

import os
import random
from collections.abc import Iterator
from contextlib import closing

import pytest

from crash import campaign
from crash.campaign import Report, problems_of
from crash.scenarios import SCENARIOS
from crash.worker import Job, Workers

# The same in every run, so that `make test` is the same in every run; `make crash` draws its own.
SEED = int(os.environ.get("OVERLAYD_CRASH_SEED", "1"))
DISTURBED = 100  # of some 1,800
SEQUENCES = 5

# Each planted bug, with the scenario and the kind of trial that must find it; "": random sequences.
PLANTED = {
    "answers_before_it_is_durable": ("allocate from a service", "killed"),
    "leaves_half_of_a_failed_request": ("attach with join_global", "refused"),
    "keeps_the_address_of_a_detached_container": ("detach", "undisturbed"),
    "believes_that_the_kernel_is_as_it_was": ("service first", "killed"),
    "lets_everybody_in_at_once": ("", "sequence"),
}


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers() as workers:
        yield workers


@pytest.fixture(scope="module")
def jobs(workers: Workers) -> list[Job]:
    """Every disturbed run there is; the undisturbed ones have agreed with the reference."""
    report = Report()
    jobs = campaign.trials(workers, report)
    assert not report.wrong, "\n".join(report.wrong)
    assert report.runs == len(SCENARIOS)
    return jobs


def test_a_sample_of_deaths_and_refusals(workers: Workers, jobs: list[Job]) -> None:
    report = Report()
    chosen = random.Random(SEED).sample(jobs, DISTURBED)
    # The one request after whose way back a start knows nothing of what is left on the host.
    chosen += [job for job in jobs if (job["do"], job["scenario"]) == ("undone", "overlay first")]
    campaign.run(workers, report, chosen)
    print(f"seed {SEED}, of {len(jobs)} trials: {report}")
    assert report.runs >= DISTURBED
    assert not report.wrong, f"seed {SEED}\n" + "\n".join(report.wrong)


def test_random_sequences(workers: Workers) -> None:
    report = Report()
    campaign.run(workers, report, ({"do": "sequence", "seed": SEED + n} for n in range(SEQUENCES)))
    assert report.sequences == SEQUENCES
    assert not report.wrong, f"seeds from {SEED}\n" + "\n".join(report.wrong)


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found(workers: Workers, jobs: list[Job], bug: str) -> None:
    scenario, how = PLANTED[bug]
    suspects: list[Job] = [{**job, "bug": bug} for job in jobs if (job["scenario"], job.get("how")) == (scenario, how)]
    if how == "undisturbed":
        suspects = [{"do": "undisturbed", "scenario": scenario, "bug": bug}]
    elif how == "sequence":
        suspects = [{"do": "sequence", "seed": SEED + n, "bug": bug} for n in range(SEQUENCES)]
    with closing(workers.run(suspects)) as runs:
        for _, outcome in runs:
            # A daemon whose requests get into each other's way may also come to no end, which a trial cannot judge.
            assert how == "sequence" or "raised" not in outcome, outcome
            if problems_of(outcome):
                return
    pytest.fail(f"{bug} went unnoticed in {len(suspects)} runs")
