"""How the host names of endpoints are followed.

Owns: which of a name's addresses counts, and when it is asked for again.  Must not know: resolvers, clocks, or chance.
"""

from collections.abc import Sequence

from overlayd.model.objects import Address

# Our own constants, seconds.
FIRST_PAUSE = 1.0  # a name that does not resolve: doubling
LONGEST_PAUSE = 60.0
FIRST_STALE_PAUSE = 5.0  # a name that resolves, of a peer that does not answer: the record may be about to change
LONGEST_STALE_PAUSE = 300.0  # idle peers count as stale: 10,000 of them ask 33 times a second


def choose(answers: Sequence[Address], current: Address | None) -> Address:
    """The address to use, of at least one.

    The current one as long as it is among the answers, since the order of several changes with every query; else the
    first: they come in the order of preference of RFC 6724, which knows what this host can reach.
    """
    return current if current is not None and current in answers else answers[0]


def failure_pause(failures: int, jitter: float) -> float:
    """Seconds until a name is asked for again that failed `failures` times in a row.  jitter: 0 to 1, at random."""
    return _pause(FIRST_PAUSE, LONGEST_PAUSE, failures, jitter)


def stale_pause(lookups: int, jitter: float) -> float:
    """Seconds until the name of a stale peer is asked for again, after `lookups` since it went stale."""
    return _pause(FIRST_STALE_PAUSE, LONGEST_STALE_PAUSE, lookups, jitter)


def _pause(first: float, longest: float, times: int, jitter: float) -> float:
    """Doubling, and somewhere between half of that and all of it, so that many names do not ask at one time."""
    return min(first * 2.0 ** min(times, 32), longest) * (1 + jitter) / 2
