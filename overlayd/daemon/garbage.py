"""How long the garbage collector may stop the process.

Owns: when it looks, and at which objects.  Must not know: what they are.

A node of ten thousand peers holds half a million objects for as long as it runs.  To look at all of them takes 60 ms in
which nobody is answered, and CPython does so whenever a quarter as many were made since, as one look at the whole
layout does.  So what outlives a collection is frozen (gc.freeze): it is not looked at again.  It is freed all the same
with its last reference; only what holds itself in a circle stays, until everything is looked at again after a while.
"""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager

# Our own constant: seconds between two looks at everything.
EVERYTHING = 3600.0

# Our own constants: objects made before a collection of the youngest generation, those before one of the middle, and
# those before a full one, which so looks at some 26,000 objects.  With those of CPython it is 93,000, from 3.13 on
# 260,000.
THRESHOLDS = 700, 10, 2

_OLDEST = 2  # the generation whose collection is a full one


def postpone() -> None:
    """Collect nothing while the state is loaded: all of it is there to stay."""
    gc.disable()


def begin() -> None:
    """Collect from now on, and never look at what is there."""
    gc.freeze()
    gc.callbacks.append(_Freezing())
    gc.set_threshold(*THRESHOLDS)
    gc.enable()


@contextmanager
def nothing_stays() -> Iterator[None]:
    """Collect nothing meanwhile: what is made in the block is gone at its end.  To look at it takes an eighth of the
    time of making it.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


class _Freezing:
    """Called before and after each collection (gc.callbacks)."""

    def __init__(self) -> None:
        self._looked = time.monotonic()

    def __call__(self, phase: str, about: dict[str, int]) -> None:
        if about["generation"] != _OLDEST:
            return
        if phase == "stop":
            gc.freeze()
        elif time.monotonic() - self._looked > EVERYTHING:
            self._looked = time.monotonic()
            gc.unfreeze()
