"""Everything: every scenario killed and refused at every point, and random sequences.  `make crash`."""

import argparse
import secrets
import sys
import time

from crash import campaign
from crash.campaign import Report
from crash.worker import PROCESSES, Workers


def main() -> int:
    """Run it; 1 when something went wrong."""
    parser = argparse.ArgumentParser(prog="python -m crash", description=__doc__)
    parser.add_argument("--sequences", type=int, default=1000, help="how many random sequences (default 1000)")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32), help="of the first; others follow it")
    parser.add_argument("--processes", type=int, default=PROCESSES, help=f"trials at a time (default {PROCESSES})")
    options = parser.parse_args()
    started = time.monotonic()
    report = Report()
    with Workers(options.processes) as workers:
        jobs = campaign.trials(workers, report)
        print(f"{len(jobs)} disturbed runs", flush=True)
        campaign.run(workers, report, jobs)
        seeds = range(options.seed, options.seed + options.sequences)
        print(f"{len(seeds)} random sequences, seeds {seeds.start} to {seeds.stop - 1}", flush=True)
        campaign.run(workers, report, ({"do": "sequence", "seed": seed} for seed in seeds))
    print(f"{report} ({time.monotonic() - started:.0f} s)")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
