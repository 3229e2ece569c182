"""What a device's readings say of its peers and of itself: healthy, roamed, hung.

Owns: when a peer is healthy and when that has changed, telling a peer's own move from an endpoint that was given to it,
and how many readings without an answer make a device count as hung.  Must not know: where readings come from, or who is
told.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from typing import Generic, Literal, Protocol, TypeVar

import msgspec

from overlayd.model.path_loss import INITIATION

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


# Seconds for which what was sent may go without any answer: WireGuard itself then tries a new handshake
# (KEEPALIVE_TIMEOUT + REKEY_TIMEOUT, section 6.5), and sends one every 5 s for as long as there is something to send.
UNANSWERED = 15

# How a peer is: a fresh handshake vouches for it; there is none, and nothing that was sent waits for an answer; what
# was sent, be it a keepalive, has waited for too long.
Condition = Literal["answers", "idle", "silent"]


class Seen(Protocol):
    """What a device shows of a peer.  endpoint: None when unknown; last_handshake: Unix seconds, 0 = never.  rx_bytes,
    tx_bytes: that came from it authentic, and that left for it, handshakes with it.
    """

    @property
    def endpoint(self) -> object | None: ...
    @property
    def last_handshake(self) -> int: ...
    @property
    def rx_bytes(self) -> int: ...
    @property
    def tx_bytes(self) -> int: ...


def is_fresh(last_handshake: int, now: float, fresh: float = FRESH) -> bool:
    """Whether a handshake (Unix seconds, 0 = never) still vouches for its peer."""
    return last_handshake > 0 and now - last_handshake < fresh


class _Peer(msgspec.Struct):
    """announced: whether it is healthy, as its observers know, None when nobody told them.  waiting_since: since when
    something that was sent, with no fresh handshake, has had no answer.
    """

    announced: bool | None
    condition: Condition = "idle"
    endpoint: object | None = None
    last_handshake: int = 0
    rx_bytes: int = 0
    tx_bytes: int = 0
    waiting_since: float | None = None


class HealthTracker:
    """The health of a device's peers.  fresh: seconds for which a handshake vouches for a peer.

    A peer is unhealthy when its last handshake is not fresh any more and what was sent since has no answer; from then
    on only a handshake helps.  One to which nothing is sent, without keepalive, is idle, and as healthy as before.  One
    that was never heard of gets as long for its first answer as a handshake is fresh, at each endpoint.
    """

    def __init__(self, fresh: float = FRESH) -> None:
        self._fresh = fresh
        self.turned: dict[bytes, Condition] = {}  # those whose condition the last observation has changed
        self._patience = min(UNANSWERED, fresh)
        self._peers: dict[bytes, _Peer] = {}
        self._counts: Counter[Condition] = Counter()
        self._silent: dict[bytes, _Peer] = {}

    def condition(self, key: bytes) -> Condition:
        """How a peer was at the last observation."""
        known = self._peers.get(key)
        return known.condition if known is not None else "idle"

    def count(self, condition: Condition) -> int:
        """How many peers are so."""
        return self._counts[condition]

    def silent(self, now: float) -> dict[bytes, float]:
        """The peers that do not answer, and for how many seconds what was sent has waited."""
        silent = self._silent.items()
        return {key: now - since for key, known in silent if (since := known.waiting_since) is not None}

    def waited(self, key: bytes, now: float) -> float:
        """For how many seconds what was sent to a peer has had no answer; 0 while nothing waits."""
        known = self._peers.get(key)
        return now - known.waiting_since if known is not None and known.waiting_since is not None else 0.0

    def resume(self, peers: Mapping[bytes, Seen], now: float) -> None:
        """Take what a device shows that an earlier daemon watched.

        now: Unix seconds.  Whether that one announced a peer without a fresh handshake is not known: its next change
        is announced, whichever it is.
        """
        for key, seen in peers.items():
            known = self._peers[key] = _Peer(announced=None, tx_bytes=seen.tx_bytes, rx_bytes=seen.rx_bytes)
            self._update(known, seen, now)
            if known.condition == "answers":
                known.announced = True
        self._peers_are(self._peers)

    def observe(self, peers: Mapping[bytes, Seen], now: float) -> list[tuple[bytes, bool]]:
        """Take what a device shows of all its peers; return those whose health has changed, and what it is now.

        now: Unix seconds.  Peers that are no longer there are forgotten.  What others ask meanwhile is answered by what
        was or by what is.
        """
        now_known: dict[bytes, _Peer] = {}
        turned: dict[bytes, Condition] = {}
        changes = []
        for key, seen in peers.items():
            known = now_known[key] = self._peers.get(key) or _Peer(announced=True)
            was = known.condition
            self._update(known, seen, now)
            if known.condition != was:
                turned[key] = known.condition
            healthy = known.announced if known.condition == "idle" else known.condition == "answers"
            if healthy is not None and healthy != known.announced:
                known.announced = healthy
                changes.append((key, healthy))
        self._peers_are(now_known)
        self.turned = turned
        return changes

    def _peers_are(self, peers: dict[bytes, _Peer]) -> None:
        """What is asked every second is counted here, in a worker thread."""
        counts = Counter([known.condition for known in peers.values()])
        silent = {key: known for key, known in peers.items() if known.condition == "silent"}
        self._peers, self._counts, self._silent = peers, counts, silent

    def _update(self, known: _Peer, seen: Seen, now: float) -> None:
        received = seen.rx_bytes - known.rx_bytes
        # A peer whom our answers do not reach initiates on and on: that is no answer to us.
        heard = (received > 0 and received % INITIATION != 0) or seen.last_handshake > known.last_handshake
        sent = seen.tx_bytes > known.tx_bytes
        if is_fresh(seen.last_handshake, now, self._fresh):
            known.condition, known.waiting_since = "answers", None
        else:
            if known.condition == "answers" or heard or seen.tx_bytes < known.tx_bytes:  # less: the device is new
                known.condition, known.waiting_since = "idle", None
            if known.waiting_since is not None and seen.endpoint != known.endpoint and known.condition == "idle":
                known.waiting_since = now
            if known.waiting_since is None and sent and not heard:
                known.waiting_since = now
            patience = self._patience if seen.last_handshake else self._fresh
            if known.waiting_since is not None and now - known.waiting_since >= patience:
                known.condition = "silent"
        known.endpoint, known.last_handshake = seen.endpoint, seen.last_handshake
        known.rx_bytes, known.tx_bytes = seen.rx_bytes, seen.tx_bytes


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
