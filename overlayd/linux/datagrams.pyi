from collections.abc import Callable
from typing import Self, final

from overlayd._fast.dnscache import Cache
from overlayd._fast.nametable import NameTable

BATCH: int
"""Datagrams that are taken from a socket in its turn, at most."""

@final
class Datagrams:
    """The UDP side of a name server: takes queries from sockets in batches, and answers what table and cache can."""

    def __new__(cls, table: NameTable, cache: Cache, before_cache: Callable[[], object]) -> Self:
        """before_cache: called in each batch before the cache is asked, if it is."""
    def admit(self, network: bytes, prefix_length: int) -> None:
        """Take queries from sources in this network only, packed (4 or 16 bytes); before the first call from nobody."""
    def serve(self, ready: int, now: float, seconds: float) -> list[tuple[int, bytes, bytes]]:
        """Take queries from the non-blocking sockets that an epoll(7) descriptor watches, a batch from each in turn,
        until nobody waits any more, one is to be forwarded, or so many seconds have passed since `now`.

        now: of the monotonic clock, by which the cache counts too.  Returns the queries that are to be forwarded, each
        with its socket's descriptor and the sender's address as the kernel writes it (struct sockaddr), b"" for one
        that was answered and is to be asked again for the cache alone.  OSError when a socket fails; answers that the
        kernel does not take are lost, as datagrams may be.
        """
    def send(self, descriptor: int, response: bytes, receiver: bytes) -> None:
        """Send a response to an address that came from `serve`; it may be lost."""
