"""When a peer is healthy, and when that has changed.

Owns: the rule, and what was announced of each peer.  Must not know: where handshakes are read, or who is told.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

# Seconds for which a handshake vouches for a peer: WireGuard rejects a session after 180 s (REJECT_AFTER_TIME, the
# WireGuard paper, section 6.1), so a peer that answers at all has a younger one while there is traffic.
FRESH = 180


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
