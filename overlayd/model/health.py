"""What a device's readings say of its peers and of itself: healthy, roamed, hung.

Owns: when a peer is healthy and when that has changed, telling a peer's own move from an endpoint that was given to it,
and how many readings without an answer make a device count as hung.  Must not know: where readings come from, or who is
told.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

E = TypeVar("E", bound=Hashable)

# Seconds for which a handshake vouches for a peer: WireGuard rejects a session after 180 s (REJECT_AFTER_TIME, the
# WireGuard paper, section 6.1), so a peer that answers at all has a younger one while there is traffic.
FRESH = 180

# Our own constants, all in readings in a row and not seconds: when the whole machine stood still, and we with it, no
# reading was lost but the one that was under way.
# Each waits five seconds for what takes milliseconds, and once more before the end: half a minute.  A device that is
# merely starved, on a machine with many times more to do than it can, answers one of so many; and so long without being
# told anything costs a tunnel that works nothing.
HUNG = 5
LONGEST = 32 * HUNG  # what hangs again and again is ended every quarter of an hour at most
CALM = 300  # so many answers, five minutes, and what was is forgotten


class Seen(Protocol):
    """What a device shows of a peer.  endpoint: None when unknown; last_handshake: Unix seconds, 0 = never."""

    @property
    def endpoint(self) -> object | None: ...
    @property
    def last_handshake(self) -> int: ...


def is_fresh(last_handshake: int, now: float, fresh: float = FRESH) -> bool:
    """Whether a handshake (Unix seconds, 0 = never) still vouches for its peer."""
    return last_handshake > 0 and now - last_handshake < fresh


@dataclass(slots=True)
class _Peer:
    """healthy: as announced.  waiting_since: since when it has had its endpoint without a handshake."""

    healthy: bool
    endpoint: object | None = None
    last_handshake: int = 0
    waiting_since: float = 0


class HealthTracker:
    """The health of a device's peers.  fresh: seconds for which a handshake vouches for a peer.

    A peer is healthy while its last handshake is fresh.  A new one, never heard of, passes for healthy until it has
    had an endpoint for as long; after that only a handshake helps.
    """

    def __init__(self, fresh: float = FRESH) -> None:
        self._fresh = fresh
        self._peers: dict[bytes, _Peer] = {}

    def resume(self, peers: Mapping[bytes, Seen], now: float) -> None:
        """Take what a device shows that an earlier daemon watched: what has been announced is not announced again.

        now: Unix seconds.  Of a peer that has an endpoint and no handshake it is not known for how long; it passes for
        unhealthy, so that nothing is announced twice.
        """
        for key, seen in peers.items():
            known = self._peers[key] = _Peer(healthy=seen.endpoint is None, waiting_since=now)
            self._update(known, seen, now)

    def observe(self, peers: Mapping[bytes, Seen], now: float) -> list[tuple[bytes, bool]]:
        """Take what a device shows of all its peers; return those whose health has changed, and what it is now.

        now: Unix seconds.  Peers that are no longer there are forgotten.
        """
        before, self._peers = self._peers, {}
        changes = []
        for key, seen in peers.items():
            known = self._peers[key] = before.get(key) or _Peer(healthy=True, waiting_since=now)
            if self._update(known, seen, now):
                changes.append((key, known.healthy))
        return changes

    def _update(self, known: _Peer, seen: Seen, now: float) -> bool:
        """Whether the peer's health has changed."""
        if seen.last_handshake:
            healthy = is_fresh(seen.last_handshake, now, self._fresh)
        else:
            if known.last_handshake or seen.endpoint != known.endpoint:  # added anew, or tried elsewhere from now on
                known.waiting_since = now
            healthy = known.healthy and (seen.endpoint is None or now - known.waiting_since < self._fresh)
        changed = healthy != known.healthy
        known.healthy, known.endpoint, known.last_handshake = healthy, seen.endpoint, seen.last_handshake
        return changed


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


class Silence:
    """What is known of one device's answering."""

    def __init__(self) -> None:
        self.unheard = 0  # readings without an answer, since the last one with
        self.patience = HUNG
        self._answers = 0

    def answered(self) -> bool:
        """A reading had an answer.  Returns whether the one before it had none."""
        was_silent, self.unheard = self.unheard > 0, 0
        self._answers += 1
        if self._answers >= CALM:
            self.patience = HUNG
        return was_silent

    def unanswered(self) -> bool:
        """A reading had no answer.  Returns whether the device counts as hung, which takes twice as long the next
        time.
        """
        self._answers = 0
        self.unheard += 1
        if self.unheard < self.patience:
            return False
        self.unheard, self.patience = 0, min(2 * self.patience, LONGEST)
        return True
