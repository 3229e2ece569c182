from typing import Self, final

STALE: int
"""Seconds for which an answer is kept after its time, for when no upstream answers (RFC 8767)."""

def key_of(query: bytes) -> bytes:
    """What tells a well-formed query's answer from others: the question without regard to letter case, and the bits RD,
    AD, CD and DO.  b"" for a query that is not well-formed.
    """

@final
class Answer:
    """What an upstream said, without what was for us alone: it is given to any client that asks the same."""

    code: int
    """Response code, the bits of EDNS included."""
    truncated: bool
    lifetime: int
    """Seconds for which it may be kept, 0 when it may not."""
    server: str | None
    """Who said it, for people."""

    @property
    def empty(self) -> bool:
        """Whether it says that there is nothing: no such name, or none of the type that was asked for."""
    def __init__(self, response: bytes) -> None:
        """ProtocolError for what is no whole response to one question."""
    @staticmethod
    def failure(error: int, text: str) -> Answer:
        """SERVFAIL, with an extended error (RFC 8914) for who speaks EDNS."""

@final
class Cache:
    """Answers by the queries that they answer.  `now` is in seconds of any clock that never goes back."""

    size: int
    """Bytes that the answers take."""
    hits: int
    misses: int
    refresh: bool
    """Whether the answer that was found last is popular and near its end, so that it is to be asked for again, once."""

    def __new__(cls, most: int, largest: int, secret: bytes = ...) -> Self:
        """most: entries; largest: bytes of them all.  secret: as `nametable.NameTable` takes it."""
    def __len__(self) -> int: ...
    def put(self, key: bytes, answer: Answer, now: float) -> None:
        """Keep an answer under the key of its query, if it may be kept."""
    def respond(self, query: bytes, stream: bool, client: bytes, now: float) -> bytes | None:
        """The response to a query, as `NameTable.respond` gives it; None when it is to be forwarded."""
    def stale(self, key: bytes, now: float) -> Answer | None:
        """The answer that was there, whether its time is over or not."""
    def give(self, answer: Answer, query: bytes, stream: bool, client: bytes, stale: bool = False) -> bytes:
        """The response to a client with an answer that has just come, or is stale."""
    def clear(self) -> int:
        """Forget all; how many entries there were."""
    def describe(self, now: float) -> list[tuple[bytes, int, int, int, int]]:
        """Of each entry: its key, response code, seconds left (negative when it is stale), hits and bytes."""
