from typing import Self, final

from typing_extensions import Buffer

from overlayd.errors import ProtocolError

MAX_BODY: int

class FrameTooLarge(ProtocolError):
    """A frame's body is over MAX_BODY; `length` is the body length that was advertised, in bytes."""

    length: int
    def __init__(self, length: int) -> None: ...

@final
class Inbox:
    """Bytes received on one connection and not yet consumed, and the messages that they make up.

    initial: size of the first block in bytes, to which the inbox returns whenever it is drained; ValueError below 8.
    """

    def __new__(cls, initial: int = 16384) -> Self: ...
    @property
    def buffered(self) -> int:
        """Bytes received and not yet consumed."""
    @property
    def capacity(self) -> int:
        """Bytes of memory behind the inbox, not counting older blocks that views still hold."""
    @property
    def foreign(self) -> bool:
        """The next message is an envelope: `take` returns nothing until `consume` has passed it."""
    @property
    def partial(self) -> bool:
        """The last message held is unfinished, on either wire: an end of the stream now would truncate it."""
    def get_buffer(self, sizehint: int) -> memoryview:
        """Writable free space, never empty, for one read that `received` reports (asyncio.BufferedProtocol.get_buffer).

        Write only until the next call on this inbox.  sizehint is ignored.  The inbox grows with what is not taken, so
        a caller that stops taking must stop reading.
        """
    def received(self, n: int) -> None:
        """n bytes were written into the window of the last get_buffer; ValueError if that is more than it had."""
    def feed(self, data: Buffer) -> None:
        """Copy `data` in, for users without a BufferedProtocol."""
    def take(self, limit: int, enough: int = MAX_BODY) -> list[memoryview]:
        """Consume up to `limit` whole JSON bodies, in order, as read-only views, valid as long as they are held; none
        after those that make up `enough` bytes, headers included.

        Raises FrameTooLarge when the next header advertises more than MAX_BODY, before its body is there, on this and
        every later call; frames before it are returned first.  Stops, without an error, at an envelope.
        """
    def peek(self) -> memoryview:
        """A read-only view of everything buffered, valid as long as it is held."""
    def consume(self, n: int) -> None:
        """Drop the first n bytes that are buffered; ValueError if there are not as many."""

def frame(body: bytes) -> bytes:
    """One frame of the JSON wire, header and body; raises FrameTooLarge over MAX_BODY bytes."""
