"""One attempt to reach a peer: which of its addresses are tried, in which order and for how long.

Owns: the ways to a peer, and the course of an attempt.  Must not know: sockets, devices, or the time: `now` is an
argument, in seconds of any clock that does not run backwards.

Two things are tried at once.  Connectivity checks (RFC 8445, section 7), which leave from WireGuard's port to all ways
every moment: they open the NATs on the path, and an answer to one says which way works, within a round trip.  And
WireGuard's own handshake, for which the device has to be pointed at one way after the other, long enough for WireGuard
to try it: that needs nothing of the other side but WireGuard.  What a check has found comes first.
"""

import math
from collections.abc import Container, Iterable
from typing import Literal, NamedTuple

from overlayd.model.candidates import HOST, PEER_REFLEXIVE, RELAY, SERVER_REFLEXIVE, Candidate, Endpoint, fewer

# Seconds that the device stays pointed at a way.  WireGuard sends an initiation again after REKEY_TIMEOUT, which is as
# long, and up to a third of a second of jitter (the WireGuard paper, sections 6.1 and 6.4), but none sooner: so each
# way gets one, at its beginning.
HOLD = 5.0

# Our own constants, seconds.
CHECKS_ALONE = 2.0  # at first, since an answer to a check spares all the rest
CHECK_PAUSE = 0.5  # between two checks of a way: the first retransmission of STUN (RFC 8489, section 6.2.1)
DIRECT_PREFERRED = 2.0  # a relay that works is not used for so long, to prefer a direct way that is about to
DIRECT_PREFERRED_BY_LOST = 0.5  # the same where traffic waits: reviews find the direct way later
REVIEW = 4.0  # what a review takes: for clocks that differ by less, and a lossy path
FIRST_PERIOD, LONGEST_PERIOD = 8, 256  # of attempts, doubling: powers of two

MET = 4  # our own constant: addresses that a peer may show in one attempt, beyond those it told

# RFC 8445, section 6.1.2.3, has both sides compute the same order of pairs, to agree on one.  We have no need to agree:
# either side may point its device at what works, and WireGuard follows the last authentic packet.  So pairs from one
# port are in the order of the peer's candidates, and those through a relay as follows.
_ORDER_THROUGH_RELAY = {RELAY: 0, SERVER_REFLEXIVE: 1, HOST: 2}  # the likeliest first: what a relay reaches is outside


# What an attempt is about.  search: a peer without a session.  cut off: one with a session that was relayed by an
# earlier daemon.  lost: one with a session whose path does not carry answers any more.  review: one whose path may be
# as good as ever, so that only what an answered check has proved is better than it.
Course = Literal["search", "cut off", "lost", "review"]


class Way(NamedTuple):
    """A pair of candidates.  endpoint: the peer's.  through_relay: ours is that of our TURN allocation, else it is
    WireGuard's port.  kind: the type of the peer's candidate.
    """

    kind: str
    endpoint: Endpoint
    through_relay: bool = False

    @property
    def relayed(self) -> bool:
        return self.through_relay or self.kind == RELAY


def ways(
    last: Endpoint | None,
    configured: Endpoint | None,
    candidates: Iterable[Candidate],
    *,
    versions: Container[int],
    relayed: Container[int],
    limit: int,
) -> list[Way]:
    """The ways to a peer, the best first, at most `limit`.  Of a host with many addresses some of these are left out,
    since a way round its NAT comes behind them.

    last: where it was heard of last.  configured: what add_peer gave, which counts as a host candidate.  candidates:
    its own, the best first.  versions: the IP versions that this host has.  relayed: those of its addresses on TURN
    servers, which reach peers that the host itself cannot.
    """
    kinds: dict[Endpoint, str] = {} if last is None else {last: PEER_REFLEXIVE}
    if configured is not None:
        kinds[configured] = HOST
    for candidate in candidates:
        endpoint = (candidate.address, candidate.port)
        if kinds.get(endpoint, PEER_REFLEXIVE) == PEER_REFLEXIVE:
            kinds[endpoint] = candidate.kind
    direct = [Way(kind, endpoint) for endpoint, kind in kinds.items() if endpoint[0].version in versions]
    direct.sort(key=lambda way: way.relayed)  # the rest stays in its order
    # A peer that is behind a NAT has host addresses that mean something else, or nothing, to a relay.
    hidden = SERVER_REFLEXIVE in kinds.values()
    through = [
        Way(kind, endpoint, True)
        for endpoint, kind in kinds.items()
        if endpoint[0].version in relayed and not (hidden and kind == HOST)
    ]
    through.sort(key=lambda way: _ORDER_THROUGH_RELAY.get(way.kind, 0))
    every = direct + through
    hosts = [way for way in every if way.kind == HOST]
    left = fewer(hosts, max(len(hosts) - max(len(every) - limit, 0), 1), lambda way: way.endpoint[0].version)
    return [way for way in every if way.kind != HOST or way in left][:limit]


class Attempt:
    """One attempt.  selected: the way that the device has to be pointed at, None while it may stay as it is.  outcome:
    how it ended.  tried: ways that WireGuard got its time on, for the next attempt to begin after them.

    ways: the best first.  timeout: seconds for all direct ways together.  symmetric: our NAT gives each destination
    another port, so that where a peer's NAT awaits us we are not.  after: begin with the way of that place.  hold:
    seconds for each way.  course: what it is about.
    """

    def __init__(
        self,
        ways: Iterable[Way],
        now: float,
        timeout: float,
        *,
        symmetric: bool = False,
        after: int = 0,
        hold: float = HOLD,
        course: Course = "search",
    ) -> None:
        self.selected: Way | None = None
        self.outcome: Literal["reached", "failed"] | None = None
        self.tried = after
        self._ways = list(ways)
        self._direct = [
            way for way in self._ways if not way.relayed and not (symmetric and way.kind == SERVER_REFLEXIVE)
        ]
        self._relayed = [way for way in self._ways if way.relayed]
        self._hold = hold
        self._answered: set[Way] = set()
        self._met = 0
        self._next_check = now
        self._direct_first = course != "lost"
        self._proven_only = course == "review"
        self._preferred = DIRECT_PREFERRED_BY_LOST if course == "lost" else DIRECT_PREFERRED
        self._until = now + (timeout if self._proven_only else min(CHECKS_ALONE, timeout))
        self._direct_until = now + timeout if self._direct else self._until

    @property
    def sure(self) -> bool:
        """Whether the selected way is known to work, from which follows that the peer is looking for us as well."""
        return self.selected in self._answered

    def next_timeout(self) -> float | None:
        """When to call `advance` and `checks_to_send` next; None when it is over."""
        return min(self._until, self._next_check) if self.outcome is None else None

    def checks_to_send(self, now: float) -> list[Way]:
        """The ways to which a check is to be sent now: at first the direct ones, which so answer first."""
        if self.outcome is not None or now < self._next_check:
            return []
        self._next_check = now + CHECK_PAUSE
        first, self._direct_first = self._direct_first, False
        return [way for way in self._ways if not (first and way.relayed and self._direct)]

    def advance(self, now: float) -> None:
        """Go on to the next way when this one has had its time."""
        if self.outcome is not None or now < self._until:
            return
        way = self._next(now)
        if way is None:
            self.outcome = "failed"
        else:
            self._select(way, now)

    def answered(self, way: Way, now: float) -> None:
        """A check was answered: the way works."""
        if self.outcome is not None or way in self._answered or way not in self._ways:
            return
        works = self.selected in self._answered
        self._answered.add(way)
        if not way.relayed:
            if not works or (self.selected is not None and self.selected.relayed):
                self._select(way, now)
        elif now < self._direct_until:  # the other side checks too: a direct way shows soon, or there is none
            self._direct_until = min(self._direct_until, now + self._preferred)
            if not works:
                self._until = self._direct_until
        elif not works:
            self._select(way, now)

    def met(self, way: Way, now: float) -> None:
        """The peer checks us from an address that it may not have told us: check that one too.

        way.kind: peer-reflexive, or relay.
        """
        if self.outcome is not None or any(way[1:] == known[1:] for known in self._ways) or self._met == MET:
            return
        self._met += 1
        self._ways.append(way)
        if way.relayed:
            self._relayed.append(way)
        self._next_check = now

    def reached(self) -> None:
        """There was a handshake."""
        if self.outcome is None:
            self.outcome = "reached"

    def _select(self, way: Way, now: float) -> None:
        self.selected = way
        if way in self._relayed:
            self._relayed.remove(way)
        patient = way.relayed or way in self._answered
        self._until = now + self._hold if patient else min(now + self._hold, self._direct_until)

    def _next(self, now: float) -> Way | None:
        """The next direct way while there is time for these, over and over; then each relayed one, those first of
        which we know that they work.
        """
        if self._proven_only:
            return next((way for way in self._relayed if way in self._answered), None)
        if self._direct and now < self._direct_until:
            way = self._direct[self.tried % len(self._direct)]
            self.tried += 1
            return way
        return next((way for way in self._relayed if way in self._answered), next(iter(self._relayed), None))


def phase(one: bytes, other: bytes) -> int:
    """Where two nodes meet in `next_attempt`: the same for both, and spread evenly over pairs.  Public keys."""
    return int.from_bytes(bytes(a ^ b for a, b in zip(one[-4:], other[-4:], strict=True)))


def next_attempt(failures: int, phase: int, now: float) -> float:
    """When a peer is tried again after so many failures in a row, at least a second from `now`: Unix seconds, for it
    is a rendezvous.

    A NAT is passed only when both sides try at one time, and nobody tells one when the other does.  So both try at the
    seconds that are `phase` modulo a period which doubles with each failure: the side that tries less often does so
    when the other one tries too.
    """
    return _rendezvous(min(FIRST_PERIOD << min(failures, 16), LONGEST_PERIOD), phase, now)


def next_review(interval: float, phase: int, now: float) -> float:
    """When a relayed peer's direct ways are tried again, at least a second from `now`, Unix seconds: at most `interval`
    seconds from one time to the next, if that is 8 or more.  A side with a longer interval meets the other one as well.
    """
    period = FIRST_PERIOD
    while 2 * period <= min(interval, LONGEST_PERIOD):
        period *= 2
    return _rendezvous(period, phase, now)


def _rendezvous(period: int, phase: int, now: float) -> float:
    first = math.floor(now) + 2
    return float(first + (phase - first) % period)
