from collections.abc import Callable
from typing import Self, final

from overlayd._fast.dnscache import Cache
from overlayd._fast.nametable import NameTable

BATCH: int
"""Datagrams that one `serve` takes at most."""

@final
class Datagrams:
    """The UDP side of a name server: takes queries from sockets in batches, and answers what table and cache can."""

    def __new__(cls, table: NameTable, cache: Cache, before_cache: Callable[[], object]) -> Self:
        """before_cache: called in each batch before the cache is asked, if it is."""
    def admit(self, network: bytes, prefix_length: int) -> None:
        """Take queries from sources in this network only, packed (4 or 16 bytes); before the first call from nobody."""
    def serve(self, descriptor: int, now: float) -> list[tuple[bytes, bytes]]:
        """Take up to BATCH queries that wait on a non-blocking socket, and answer what can be answered at once.

        now: as the cache counts.  Returns the queries that are to be forwarded, each with the sender's address as the
        kernel writes it (struct sockaddr), b"" for one that was answered and is to be asked anew for the cache alone.
        OSError when the socket fails; answers that the kernel does not take are lost, as datagrams may be.
        """
    def send(self, descriptor: int, response: bytes, receiver: bytes) -> None:
        """Send a response to an address that came from `serve`; it may be lost."""
