from typing import Generic, Self, TypeVar, final

from overlayd._fast.dnsforward import Query

_Owner = TypeVar("_Owner")

LONGEST: int
"""Responses that one `receive` takes at most."""

def random16() -> int:
    """16 random bits of the kernel's."""

@final
class Asking(Generic[_Owner]):
    """A connected datagram socket, and what was asked from it and is not answered yet: each query under a random id of
    its own, with somebody whom the answer is for.
    """

    def __new__(cls, descriptor: int) -> Self:
        """Who opened the descriptor closes it."""
    def __len__(self) -> int:
        """How many queries wait."""
    def ask(self, query: Query, owner: _Owner, *, edns: bool) -> int:
        """Send a query; returns its id.  OSError; what the kernel has no room for is lost, as datagrams may be."""
    def forget(self, id: int) -> None:
        """No answer is wanted any more; an unknown id is no error."""
    def owners(self) -> list[_Owner]:
        """For whom the queries are that wait."""
    def receive(self) -> tuple[list[tuple[_Owner, bytes]], bool, int]:
        """Take what has come, up to LONGEST messages.  Returns those that answer a query, each with its owner; whether
        there were responses to others, which were forgotten; and the errno of a socket that failed, else 0.  A query
        waits on until it is forgotten.
        """
