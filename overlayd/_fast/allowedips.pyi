from collections.abc import Iterator
from typing import Generic, TypeVar, final

_V = TypeVar("_V")

@final
class AllowedIPs(Generic[_V]):
    """A map from IP prefixes to values; the length of the packed address, 4 or 16 bytes, tells IPv4 from IPv6.

    Bits of an address beyond the prefix length are ignored.  A value is any object but None.  Entries are listed as
    (packed network address, prefix length, value).  Every method raises ValueError for an address of another length and
    for a prefix length out of range; RuntimeError from a listing if a finaliser changes the map under it.
    """

    def __init__(self) -> None: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[tuple[bytes, int, _V]]:
        """All entries as of now, IPv4 first, by address and then by prefix length."""
    def insert(self, packed: bytes, prefix_len: int, value: _V) -> _V | None:
        """Map a prefix to a value; returns the previous value of exactly that prefix, None when it is new."""
    def remove(self, packed: bytes, prefix_len: int) -> _V | None:
        """Forget a prefix; returns its value, None when exactly that prefix is not there."""
    def exact(self, packed: bytes, prefix_len: int) -> _V | None:
        """The value of exactly that prefix."""
    def lookup(self, packed: bytes) -> _V | None:
        """The value of the longest prefix that contains the address."""
    def covering(self, packed: bytes, prefix_len: int) -> list[tuple[bytes, int, _V]]:
        """The entries that contain the prefix, itself included, the shortest first."""
    def within(self, packed: bytes, prefix_len: int) -> list[tuple[bytes, int, _V]]:
        """The entries inside the prefix, itself included, by address and then by prefix length."""
