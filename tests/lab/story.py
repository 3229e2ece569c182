"""A demonstration, told step by step in a laboratory of its own.

Owns: how it reads, and its end.  Must not know: what happens in it.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lab import netns
from lab.lab import Lab, Terminated


class Story:
    """Prints the steps of a demonstration, so many in all."""

    def __init__(self, steps: int) -> None:
        self._all = steps
        self._begun = 0

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Print the title, let the work print its facts, then say how long it took."""
        self._begun += 1
        print(f"\n[{self._begun}/{self._all}] {title}", flush=True)
        began = time.monotonic()
        yield
        self.fact(f"({time.monotonic() - began:.2f} s)")

    def fact(self, text: str) -> None:
        """One line, or some, below the step."""
        for line in text.splitlines():
            print(f"      {line}".rstrip(), flush=True)


def tell(run: Callable[[Lab], None]) -> int:
    """Run a demonstration, which checks what it claims; returns the exit code."""
    if os.geteuid():
        print("the demo makes network namespaces and must run as root", file=sys.stderr)
        return 1
    began = time.monotonic()
    try:
        with Lab() as lab:
            run(lab)
    except KeyboardInterrupt as interrupt:
        print("\ninterrupted; namespaces, processes and files of the demo are removed", file=sys.stderr)
        return 128 + (interrupt.number if isinstance(interrupt, Terminated) else signal.SIGINT)
    assert not netns.named(lab.prefix), "namespaces are left behind"
    print(f"\nAll checks held; nothing is left behind. {time.monotonic() - began:.1f} s in all.")
    return 0
