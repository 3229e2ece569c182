"""`--smoke`, an option of every script: everything once and with little, to see that the script works at all.

Owns: that option.  Must not know: what a script measures.
"""

import sys

import pyperf

SMOKE = "--smoke" in sys.argv
if SMOKE:
    sys.argv.remove("--smoke")


def make_runner(**options: object) -> pyperf.Runner:
    """pyperf's runner; under `--smoke` it makes one loop of each benchmark, and in this process."""
    if SMOKE:
        sys.argv += ["--worker", "--debug-single-value", "--quiet"]
    return pyperf.Runner(**options)
