from typing import Self, final

TTL: int
"""Seconds for which an answer from the table may be kept."""

MAX_POINTERS: int
"""Names that the reverse name of one address may stand for."""

MAX_ADDRESSES: int
"""Addresses that a name may have."""

@final
class NameTable:
    """Names with their addresses, reverse names with theirs, and the zones that hold no other names.

    Every name is given as `dnsquery.wire_name` returns it, every address packed (4 or 16 bytes).
    """

    def __new__(cls, secret: bytes = ...) -> Self:
        """secret: what server cookies are made with, `dnsquery.SECRET` bytes."""
    def set_addresses(self, name: bytes, addresses: tuple[bytes, ...]) -> None:
        """Let a name have these addresses, of which the first MAX_ADDRESSES count, or none."""
    def set_pointers(self, name: bytes, targets: tuple[bytes, ...], address: bytes) -> None:
        """Let the reverse name of an address stand for `targets`, of which the first MAX_POINTERS count."""
    def set_group(self, address: bytes, group: int | None) -> None:
        """Let an address be a member of an isolation network, from 1: then only other members of it, and the node, hear
        of the address, forward or reverse.  0: it is the node's own, which hears everything.  None: neither.
        """
    def add_zone(self, name: bytes) -> None:
        """Whatever is at or below `name` is answered from the table alone.  Adding it again changes nothing."""
    def remove_zone(self, name: bytes) -> None:
        """An unknown zone is no error."""
    def respond(self, query: bytes, stream: bool, client: bytes = b"") -> bytes | None:
        """The response to a query; b"" when it deserves none, None when it is to be forwarded.

        stream: it came by TCP, so the response may be long; else it is cut to what the client takes, and at most
        `dnsquery.MAX_DATAGRAM`.  client: its packed address, empty when nobody knows.  Only a query that is
        well-formed, of class IN and for names that are not ours is forwarded.
        """
