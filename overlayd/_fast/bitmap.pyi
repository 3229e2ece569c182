from typing import Self, final

@final
class Bitmap:
    """Bits 0 to size-1, all clear at first.  size: 0 to 65,536, else ValueError."""

    def __new__(cls, size: int) -> Self: ...
    @property
    def size(self) -> int: ...
    @property
    def count(self) -> int:
        """How many bits are set."""
    def set(self, i: int) -> bool:
        """Set bit i; returns whether it was clear.  IndexError out of range."""
    def clear(self, i: int) -> bool:
        """Clear bit i; returns whether it was set.  IndexError out of range."""
    def test(self, i: int) -> bool:
        """Whether bit i is set.  IndexError out of range."""
    def first_clear(self, start: int = 0) -> int:
        """The lowest clear bit at or after start (0 to size, else IndexError), -1 when there is none."""
    def allocate(self) -> int:
        """Set the lowest clear bit and return it, -1 when all are set; O(1) amortised over allocations."""
    def copy(self) -> Bitmap: ...
