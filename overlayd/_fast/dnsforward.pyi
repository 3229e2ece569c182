from typing import Self, final

@final
class Query:
    """What a client asks, as far as an upstream server hears of it: the question and the bits RD, AD, CD and DO."""

    key: bytes
    """What tells its answer from others, as `dnscache.key_of` has it."""
    edns: bool
    """Whether the client sent an OPT record."""
    dnssec: bool
    """Whether it asks for signatures by it."""

    def __new__(cls, message: bytes) -> Self:
        """Read a query; ProtocolError when it is not well-formed, or for nobody to answer."""
    @property
    def name(self) -> bytes:
        """On the wire, in lower case."""
    def for_upstream(self, id: int, *, edns: bool) -> bytes:
        """The query as it goes to a server, under an id of our own.  edns: with an OPT record; some old servers take
        none.
        """
    def answered_by(self, response: bytes, id: int) -> bool:
        """Whether a message is the response to the query that went out under this id: the same id, a response, the same
        question but for letter case.  A server that could not read the query, or refuses, may leave the question away.
        """
