"""A process that runs trials, each in a cell of its own.

Owns: the dialogue with such processes: one JSON text a line, a job in, its outcome out.  Must not know: what makes a
trial good.
"""

import json
import subprocess
import sys
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from queue import SimpleQueue
from typing import Any

from lab.processes import environment

Job = dict[str, Any]  # do: the name of a function of JOBS; its other keys are for it
PROCESSES = 2


class Workers:
    """A context manager: so many processes, and the jobs they share."""

    def __init__(self, processes: int = PROCESSES) -> None:
        argv = [sys.executable, "-m", "crash.worker"]
        self._processes = [
            subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment())
            for _ in range(processes)
        ]
        self._idle: SimpleQueue[subprocess.Popen[str]] = SimpleQueue()
        for process in self._processes:
            self._idle.put(process)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()  # and its cell with it
            process.communicate()

    def run(self, jobs: Iterable[Job]) -> Generator[tuple[Job, Any], None, None]:
        """Jobs with their outcomes, as they are done; whoever asks for no more of them has the rest left undone.  An
        outcome {"raised": text} is an exception's.
        """
        threads = ThreadPoolExecutor(len(self._processes))
        try:
            for done in as_completed([threads.submit(self._do, job) for job in jobs]):
                yield done.result()
        finally:
            threads.shutdown(cancel_futures=True)

    def _do(self, job: Job) -> tuple[Job, Any]:
        process = self._idle.get()
        try:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        finally:
            self._idle.put(process)  # also a dead one: whoever takes it next is told as well
        if not answer:
            asked = {key: value for key, value in job.items() if key != "known"}
            raise RuntimeError(f"a worker died of {asked}, exit code {process.wait(5)}")
        return job, json.loads(answer)


def _serve() -> None:
    """Be such a process."""
    from crash.jobs import JOBS  # noqa: PLC0415  the daemon's modules, which the process that asks does without

    for line in sys.stdin:
        job = json.loads(line)
        try:
            outcome = JOBS[job.pop("do")](**job)
        except RuntimeError as error:
            outcome = {"raised": str(error)}
        print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    _serve()
