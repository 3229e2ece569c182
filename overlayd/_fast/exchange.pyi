from collections.abc import Callable
from typing import Any, Self, final

from overlayd._fast.frame import Inbox

@final
class Exchange:
    """What came on one connection, and the answers to it.

    decode: a frame's body to an object with an `id` and a `request`; raises for what is none.  answers: what answers a
    request, by its type, as JSON; what it raises is left to the one that is handed the request.  large: bytes from
    which on a body is not decoded here.

    taken: how many frames the last `advance` took.  left: the frame that it could not answer, decoded, or its body when
    that was large or cannot be decoded; None for none.  size: the bytes of that body.
    """

    taken: int
    left: Any
    size: int
    def __new__(
        cls,
        inbox: Inbox,
        decode: Callable[[memoryview], object],
        answers: dict[Any, Any],
        large: int,
    ) -> Self: ...
    def advance(self, most: int, enough: int, at_once: bool = True) -> list[bytes]:
        """Take up to `most` whole JSON frames, and answer each, for as long as neither they nor the answers make up
        `enough` bytes.  Returns the answers, in frames, in pieces.  Ends with the first that it cannot answer, which is
        `left`; at_once: False to answer none, so that this is the first.

        Raises FrameTooLarge as `Inbox.take`.
        """
