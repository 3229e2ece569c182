from typing import final

MAX_DATAGRAM: int
"""Bytes of the largest DNS datagram that we send, or take."""

TTL: int
"""Seconds for which an answer from the table may be kept."""

MAX_POINTERS: int
"""Names that the reverse name of one address may stand for."""

def wire_name(text: str) -> bytes:
    """A name as it stands in messages (RFC 1035, section 3.1), in lower case; "" and "." are the root.

    ValueError when a label is empty or longer than 63 bytes, or the whole is longer than 255, or is not ASCII.
    """

@final
class NameTable:
    """Names with their addresses, reverse names with theirs, and the zones that hold no other names.

    Every name is given as `wire_name` returns it.
    """

    def __init__(self) -> None: ...
    def set_address(self, name: bytes, address: bytes | None) -> None:
        """Let a name have one address, packed (4 or 16 bytes), or none."""
    def set_pointers(self, name: bytes, targets: tuple[bytes, ...]) -> None:
        """Let a reverse name stand for `targets`, of which the first MAX_POINTERS count."""
    def add_zone(self, name: bytes) -> None:
        """Whatever is at or below `name` is answered from the table alone.  Adding it again changes nothing."""
    def remove_zone(self, name: bytes) -> None:
        """An unknown zone is no error."""
    def respond(self, query: bytes, stream: bool) -> bytes | None:
        """The response to a query; b"" when it deserves none, None when it is to be forwarded.

        stream: it came by TCP, so the response may be long; else it is cut to what the client takes, and at most
        MAX_DATAGRAM.  Only a query that is well-formed, of class IN and for names that are not ours is forwarded.
        """
