"""This node's addresses on TURN servers, one of each IP version that some server gives.

Owns: which server gives them, when servers are asked again, and who may reach us.  Must not know: the dialogue with a
server (`turn_connection`), where WireGuard finds a relayed peer (`loopback`), or when a peer is relayed (`traversal`).

All servers are asked at once, and the first that gives an allocation has us: a dead one costs nothing.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence

from overlayd import wire
from overlayd.daemon.nat.loopback import Loopback
from overlayd.daemon.nat.reflexive import resolve
from overlayd.daemon.nat.turn_connection import TurnConnection
from overlayd.daemon.peers.lookup import Lookups
from overlayd.model.candidates import Endpoint
from overlayd.model.layout import endpoint_text
from overlayd.proto.stun import Failure, is_stun
from overlayd.proto.turn import Allocated, Failed, Refused

log = logging.getLogger(__name__)

VERSIONS = (4, 6)

# Our own constants, seconds.
PAUSE = 60.0  # before servers are asked again that refuse: somebody may have repaired it
FIRST_PAUSE = 1.0  # before those are asked again that do not answer, doubling up to PAUSE
UNSUPPORTED_PAUSE = 3600.0  # before servers are asked again of which none relays for an IP version

UNSUPPORTED = 440  # RFC 8656, section 18.5: address family not supported


class Allocation:
    """settled: set once it is known whether there is an address.  loopback: where WireGuard meets relayed peers.

    wg_port: WireGuard's.  heard: called with STUN that came through the relay, and its sender.
    """

    def __init__(
        self,
        servers: Sequence[wire.TurnServer],
        lookups: Lookups,
        wg_port: int,
        heard: Callable[[bytes, Endpoint], None],
    ) -> None:
        self.settled = asyncio.Event()
        self.loopback = Loopback(wg_port, self.send)
        self._servers = servers
        self._lookups = lookups
        self._heard = heard
        self._held: dict[int, TurnConnection] = {}  # by IP version
        self._failures: dict[int, list[str]] = {}  # why there is none, by IP version
        self._complained = ""
        self._permitted: dict[bytes, frozenset[Endpoint]] = {}
        if not servers:
            self.settled.set()

    @property
    def relayed(self) -> dict[int, Endpoint]:
        """Where we are reached through a relay, by IP version."""
        return {version: at for version in VERSIONS if (at := self._relayed(version)) is not None}

    @property
    def failure(self) -> str:
        """Why there is no address at all, in words, once that is known."""
        if self._held or len(self._failures) < len(VERSIONS):
            return ""
        told = list(dict.fromkeys(each for failures in self._failures.values() for each in failures))
        telling = [each for each in told if f": {UNSUPPORTED} " not in each]
        return "; ".join(telling or told)

    async def watch(self) -> None:
        """Keep the allocations, for ever."""
        async with asyncio.TaskGroup() as group:
            for version in VERSIONS:
                group.create_task(self._keep(version))

    def close(self) -> None:
        """Give everything back."""
        for connection in self._held.values():
            connection.close()
        self._held.clear()
        self.loopback.close()

    def permit(self, peer: bytes, endpoints: Collection[Endpoint]) -> None:
        """Let a peer (its public key) reach us from these addresses, through this and later allocations, and no longer
        from others.
        """
        before = self._permitted.pop(peer, frozenset())
        if endpoints:
            self._permitted[peer] = frozenset(endpoints)
        if not self._held:
            return
        for endpoint in self._permitted.get(peer, frozenset()) - before:
            if (connection := self._held.get(endpoint[0].version)) is not None:
                connection.permit(endpoint)
        if before:
            for endpoint in before - self._all_permitted():
                if (connection := self._held.get(endpoint[0].version)) is not None:
                    connection.forget(endpoint)

    def send(self, datagram: bytes, to: Endpoint) -> None:
        """Send a datagram through the relay."""
        if (connection := self._held.get(to[0].version)) is not None:
            connection.send(datagram, to)

    def doubt(self) -> None:
        """Find out whether the allocations are still there."""
        for connection in list(self._held.values()):
            connection.doubt()

    def _relayed(self, version: int) -> Endpoint | None:
        connection = self._held.get(version)
        return connection.relayed if connection is not None else None

    def _all_permitted(self) -> frozenset[Endpoint]:
        return frozenset[Endpoint]().union(*self._permitted.values())

    async def _keep(self, version: int) -> None:
        """Keep an allocation of one IP version, for ever."""
        silent = 0  # times in a row that no server answered
        while True:
            first, failed = await self._first(version)
            if first is None:
                self._failures[version] = [f"TURN server {name}: {each.failure}" for name, each in failed]
                self._settle()
                silent = silent + 1 if all(each.failure.code == 0 for _, each in failed) else 0
                await asyncio.sleep(_pause([each for _, each in failed], silent))
                continue
            silent = 0
            self._hold(version, first)
            try:
                over = await first.over
                log.warning("TURN server %s has ended the allocation: %s", first.name, over.failure)
            finally:
                self._held.pop(version, None)
                first.close()

    async def _first(self, version: int) -> tuple[TurnConnection | None, list[tuple[str, Failed]]]:
        """Ask all servers at once.  Returns the connection to the first that gives an allocation, else why each does
        not.
        """
        tasks = [asyncio.create_task(self._ask(server, version)) for server in self._servers]
        failed: list[tuple[str, Failed]] = []
        won: TurnConnection | None = None
        try:
            for coming in asyncio.as_completed(tasks):
                answer = await coming
                if isinstance(answer, TurnConnection):
                    won = answer
                    return won, []
                failed.append(answer)
            return None, failed
        finally:
            for task in tasks:
                if not task.done():
                    task.cancel()
                elif not task.cancelled() and task.exception() is None:
                    other = task.result()
                    if isinstance(other, TurnConnection) and other is not won:
                        other.close()

    async def _ask(self, server: wire.TurnServer, version: int) -> TurnConnection | tuple[str, Failed]:
        """Ask one server, at one of its addresses."""
        try:
            found = await resolve(self._lookups, server.addr)
            connection = TurnConnection(found[0], server, version, self._take, self._refused)
        except (OSError, ValueError) as error:
            return server.addr, Failed(Failure(0, str(error) or "no answer"), None)
        try:
            answer = await connection.first
        except asyncio.CancelledError:
            connection.close()
            raise
        if isinstance(answer, Allocated):
            return connection
        connection.close()
        return server.addr, answer if isinstance(answer, Failed) else Failed(answer.failure, None)

    def _hold(self, version: int, connection: TurnConnection) -> None:
        self._held[version] = connection
        self._failures.pop(version, None)
        self._complained = ""
        self.settled.set()
        if connection.relayed is not None:
            log.info("reached through a relay at %s", endpoint_text(connection.relayed))
        for endpoint in self._all_permitted():
            if endpoint[0].version == version:
                connection.permit(endpoint)

    def _settle(self) -> None:
        """Say what is known once each IP version is settled."""
        if len(self._failures) + len(self._held) < len(VERSIONS):
            return
        self.settled.set()
        if (failure := self.failure) and failure != self._complained:
            self._complained = failure
            log.warning("no relay, asked again later: %s", failure)

    def _take(self, data: bytes, peer: Endpoint) -> None:
        if is_stun(data):
            self._heard(data, peer)
        else:
            self.loopback.deliver(data, peer)

    def _refused(self, refused: Refused) -> None:
        log.debug("the TURN server does not relay to %s: %s", endpoint_text(refused.peer), refused.failure)


def _pause(failed: Sequence[Failed], silent: int) -> float:
    """Seconds before servers are asked again that all failed."""
    if all(each.failure.code == UNSUPPORTED for each in failed):
        return UNSUPPORTED_PAUSE
    if silent:
        return min(FIRST_PAUSE * (1 << min(silent - 1, 16)), PAUSE)
    return min(each.retry_after or PAUSE for each in failed)
