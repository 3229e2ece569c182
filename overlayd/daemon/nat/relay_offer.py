"""The relay that this node offers to others: from one configuration to the next.

Owns: the running relay, and why there is none.  Must not know: what it does (`relay`).
"""

import logging
from collections.abc import Callable

from overlayd import wire
from overlayd.daemon.nat.relay import Relay
from overlayd.errors import MechanismError, RequestError
from overlayd.model.objects import Address, Network

log = logging.getLogger(__name__)

OPEN_TO_ANYBODY = "nat.relay_server.auth_credential: a relay without one would be open to anybody: set a secret"


class RelayOffer:
    """failure: why there is no relay though there should be one, in words; empty when all is well.

    is_known: whether a node of the cluster is known to be at an address.
    """

    def __init__(self, is_known: Callable[[Address], bool]) -> None:
        self._is_known = is_known
        self.failure = ""
        self._running: tuple[wire.RelayServer, Network, Relay] | None = None

    def require(self, wanted: wire.RelayServer | None, cluster: Network) -> None:
        """Have this relay, or none, also if it has no credential: it would relay for anybody.  What it relays ends when
        it changes.  RequestError: it cannot be had, and the one that there was is there again.
        """
        if wanted is not None and not wanted.auth_credential:
            wanted = None
        before = self._running
        if before is not None and before[:2] == (wanted, cluster):
            return
        relay = (
            Relay(wanted, [cluster], self._is_known) if wanted is not None else None
        )  # refuses before anything has changed
        self.close()
        if wanted is None or relay is None:
            return
        try:
            relay.start()
        except MechanismError as error:
            if before is not None:
                self.restore(*before[:2])
            raise RequestError(f"request.nat.relay_server.listen_port: {error}") from error
        self._running = (wanted, cluster, relay)

    def restore(self, wanted: wire.RelayServer | None, cluster: Network) -> None:
        """Have this relay, or none; if it cannot be had, say so in the log, and remember why."""
        before, self.failure = self.failure, ""
        try:
            self.require(wanted, cluster)
            if wanted is not None and not wanted.auth_credential:
                self.failure = OPEN_TO_ANYBODY
        except RequestError as error:
            self.failure = str(error).removeprefix("request.")
        if self.failure and self.failure != before:
            log.error("there is no relay: %s", self.failure)

    def close(self) -> None:
        """End the relay, if there is one."""
        if self._running is not None:
            self._running[2].close()
            self._running = None
