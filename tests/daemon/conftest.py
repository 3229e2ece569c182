"""Fixtures of the daemon's tests."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest


@pytest.fixture
def pin() -> Iterator[Callable[[Path], int]]:
    """The inode of a file, which no other file gets before the test is over."""
    with ExitStack() as stack:
        yield lambda path: os.fstat(stack.enter_context(path.open("rb")).fileno()).st_ino
