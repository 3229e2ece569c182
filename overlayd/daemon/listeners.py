"""Who is told of something, for as long as it wants to hear of it.

Owns: their order, and that none outlives its block.  Must not know: what is told.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

L = TypeVar("L")


class Listeners(list[L]):
    """In the order in which they came."""

    @contextmanager
    def with_another(self, listener: L) -> Iterator[None]:
        """Have this one told as well, until the block ends."""
        self.append(listener)
        try:
            yield
        finally:
            self.remove(listener)
