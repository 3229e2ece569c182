"""What is measured: one module a subject, each with a `GROUP` of cases that share their set-up.

Owns: what a case and a group are.  Must not know: who is compared, how often.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

from check.tree import Tree
from check.verdict import Sample

YARDSTICK = "yardstick"  # the name of the subject beside the versions
# subject -> case -> a function that makes one sample
Subjects = Mapping[str, Mapping[str, Callable[[], Sample]]]


@dataclass(frozen=True)
class Case:
    """what: one operation, for people.  beside: its yardstick."""

    name: str
    what: str
    beside: str


def _nothing() -> str:
    return ""


@dataclass(frozen=True)
class Group:
    """open: starts the daemons of trees, by their subject's name, and the yardstick, for as long as the block runs;
    what it does not yield is not measured.  missing: why something cannot be measured here, and what to install, or
    nothing.
    """

    name: str
    cases: tuple[Case, ...]
    open: Callable[[Mapping[str, Tree]], AbstractContextManager[Subjects]]
    missing: Callable[[], str] = _nothing
