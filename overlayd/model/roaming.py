"""When a peer has moved by itself.

Owns: telling a peer's own move from an endpoint that was given to it.  Must not know: where endpoints are read, or who
is told.
"""

from collections.abc import Callable, Hashable, Mapping
from typing import Generic, TypeVar

E = TypeVar("E", bound=Hashable)


class RoamingTracker(Generic[E]):
    """The endpoints that a device's peers have now, which is where their last authentic packet came from (the
    WireGuard paper, section 2.1).
    """

    def __init__(self) -> None:
        self._at: dict[bytes, E] = {}
        self._away: dict[bytes, E | None] = {}  # those that have roamed, with the endpoint they were given then

    def observe(self, endpoints: Mapping[bytes, E | None], given: Callable[[bytes], E | None]) -> list[tuple[bytes, E]]:
        """Take the endpoints that a device shows of all its peers; return those of peers that moved by themselves.

        given: the endpoint that a peer was given, if any; asked of those that have moved only.  A move to the given
        endpoint is the peer's own if it was given no other since it left; that it was given the one to which it had
        moved goes unnoticed.  Peers that are no longer there are forgotten.
        """
        before, self._at = self._at, {key: at for key, at in endpoints.items() if at is not None}
        moved = []
        for key, at in self._at.items():
            if before.get(key) == at:
                continue
            to = given(key)
            if at != to:
                self._away[key] = to
                moved.append((key, at))
            elif key in self._away and self._away.pop(key) == to:
                moved.append((key, at))
        for key in [key for key in self._away if key not in self._at]:
            del self._away[key]
        return moved
