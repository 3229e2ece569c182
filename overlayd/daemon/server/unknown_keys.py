"""What is said of keys that the contract does not have.

Owns: who was told of which key, and how often it came.  Must not know: what a request does, or sockets.
"""

import logging
from collections import Counter
from collections.abc import Sequence

from overlayd.daemon.server.listener import Credentials
from overlayd.wire import UnknownKey

log = logging.getLogger(__name__)

# Our own constant: pairs of a client and a key that are remembered; beyond, the oldest may be warned of again.
MOST = 4096


class UnknownKeys:
    """Warns once of each client and key, and counts how often it came."""

    def __init__(self) -> None:
        self._seen: Counter[tuple[int, int, str]] = Counter()

    def told(self, client: Credentials, keys: Sequence[UnknownKey]) -> None:
        """A request of this client had these keys."""
        for key in keys:
            who = (client.pid, client.uid, key.path)
            if who not in self._seen:
                self._make_room()
                log.warning("passed over: %s (%s)", key, client)
            self._seen[who] += 1

    def left(self, client: Credentials) -> None:
        """The last connection of a client is closed: say how often its keys came, and forget it."""
        for who in [who for who in self._seen if who[:2] == (client.pid, client.uid)]:
            times = self._seen.pop(who)
            if times > 1:
                log.info("%s: unknown key, sent %d times (%s)", who[2], times, client)

    def _make_room(self) -> None:
        if len(self._seen) >= MOST:
            del self._seen[next(iter(self._seen))]
