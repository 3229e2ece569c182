"""This node's addresses on TURN servers, one of each IP version that some server gives.

Owns: which server gives them, when servers are asked again, and who may reach us.  Must not know: the dialogue with a
server (`turn_connection`), how it travels (`turn_transport`), where WireGuard finds a relayed peer (`loopback`), or
when a peer is relayed (`traversal`).

All servers are asked at once, at an address of each IP version, and the first that gives an allocation has us: a dead
one costs nothing.  Those of connections begin a little later, since tunnels in datagrams are better, and so do further
addresses of one name.  An allocation of IPv4 is asked to be one of IPv6 as well (RFC 8656, section 7.1); only where it
is none there is one for each.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Sequence
from contextlib import suppress
from typing import Any

from overlayd import wire
from overlayd.daemon.nat.loopback import Loopback
from overlayd.daemon.nat.reflexive import resolve, some
from overlayd.daemon.nat.turn_connection import TurnConnection
from overlayd.daemon.nat.turn_transport import Connection, Datagrams, connect, words
from overlayd.daemon.peers.lookup import Lookups
from overlayd.model.candidates import Endpoint
from overlayd.model.endpoints import nobodys
from overlayd.model.layout import endpoint_text
from overlayd.proto import turn_uri
from overlayd.proto.stun import Failure, is_stun
from overlayd.proto.turn import Allocated, Failed, Refused

log = logging.getLogger(__name__)

VERSIONS = (4, 6)

# Our own constants, seconds.
BRIEF = 10.0  # an allocation that ends sooner is as good as none: there is a pause before the next one
PAUSE = 60.0  # before servers are asked again that refuse: somebody may have repaired it
FIRST_PAUSE = 1.0  # before those are asked again that do not answer, or end what they gave, doubling up to PAUSE
UNSUPPORTED_PAUSE = 3600.0  # before servers are asked again of which none relays for an IP version
BOTH = 2.0  # for an allocation of both IP versions, before one of IPv6 is asked for
ALTERNATES = 3  # servers that one names after the other
HEAD_START = 1.0  # of what is preferred: a datagram may be lost, and is sent again after half of it

UNSUPPORTED = 440  # RFC 8656, section 18.5: address family not supported

_Asked = TurnConnection | Failed  # what came of asking


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
        self._first_tried = asyncio.Event()  # whether it is known what came of asking for both
        self._failures: dict[int, list[str]] = {}  # why there is none, by IP version
        self._complained = ""
        self._told: set[str] = set()  # of servers that fail while another one has us
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
        """Keep the allocations, forever."""
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
        for connection in set(self._held.values()):
            connection.doubt()

    def _relayed(self, version: int) -> Endpoint | None:
        connection = self._held.get(version)
        return connection.relayed.get(version) if connection is not None else None

    def _all_permitted(self) -> frozenset[Endpoint]:
        return frozenset[Endpoint]().union(*self._permitted.values())

    async def _keep(self, version: int) -> None:
        """Keep an allocation of one IP version, forever."""
        loop = asyncio.get_running_loop()
        silent = brief = 0  # times in a row that no server answered, or that an allocation was brief
        while True:
            if version == VERSIONS[0]:
                self._first_tried.clear()
            else:
                await self._have_both(version)
            first, failed = await _race([self._ask(server, version) for server in self._servers])
            if first is None:
                self._failures[version] = [each.failure.reason for each in failed]
                self._first_tried.set()
                self._settle()
                silent = silent + 1 if all(each.failure.code == 0 for each in failed) else 0
                await asyncio.sleep(_pause(failed, silent))
                continue
            silent = 0
            self._tell(failed)
            versions = [each for each in first.relayed if each == version or each not in self._held]
            for each in versions:
                self._hold(each, first)
            self._first_tried.set()
            since = loop.time()
            try:
                over = await first.over
                log.warning("TURN server %s has ended the allocation: %s", first.name, over.failure)
            finally:
                for each in versions:
                    self._held.pop(each, None)
                first.close()
            brief = brief + 1 if loop.time() - since < BRIEF else 0
            if brief:
                await asyncio.sleep(_growing(brief))

    async def _have_both(self, version: int) -> None:
        """Wait as long as an allocation of the other IP version is one of this as well, or may become one."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(BOTH):
                    await self._first_tried.wait()
            held = self._held.get(version)
            if held is None:
                return
            await asyncio.wait((held.over,))
            self._first_tried.clear()
            if self._held.get(version) is held:
                del self._held[version]

    async def _ask(self, server: wire.TurnServer, version: int) -> _Asked:
        """Ask one server, at its addresses, the preferred ones first.  The failure names the server."""
        at = turn_uri.read(server.addr)
        if at.transport != "udp" and any(turn_uri.read(each.addr).transport == "udp" for each in self._servers):
            await asyncio.sleep(HEAD_START)
        try:
            found = await resolve(self._lookups, at.at)
        except (OSError, ValueError) as error:
            return _named(server, Failure(0, str(error) or "no answer"))
        places = [(order, endpoint) for each in VERSIONS for order, endpoint in enumerate(some(found, each))]
        won, failed = await _race([self._ask_at(endpoint, at, server, version, order) for order, endpoint in places])
        if won is not None:
            return won
        telling = [each for each in failed if each.failure.code] or failed
        return _named(server, telling[0].failure, telling[0].retry_after)

    async def _ask_at(
        self, endpoint: Endpoint, at: turn_uri.Server, server: wire.TurnServer, version: int, order: int
    ) -> _Asked:
        """Ask there, or at the server that this one names instead (RFC 8489 section 10), with the same credential.
        order: how many addresses are preferred to this one.
        """
        await asyncio.sleep(order * HEAD_START)
        asked = {endpoint}
        while True:
            answer = await self._ask_one(endpoint, at, server, version)
            instead = answer.instead if isinstance(answer, Failed) else None
            if instead is None or instead in asked or len(asked) > ALTERNATES:
                return answer
            log.info("TURN server %s sends us to %s", server.addr, endpoint_text(instead))
            asked.add(instead)
            endpoint = instead

    async def _ask_one(self, endpoint: Endpoint, at: turn_uri.Server, server: wire.TurnServer, version: int) -> _Asked:
        try:
            if at.transport == "udp":
                transport: Datagrams | Connection = Datagrams(endpoint)
            else:
                host = at.at.rpartition(":")[0].strip("[]")
                transport = await connect(endpoint, tls=at.transport == "tls", host=host, ca_file=server.ca_file)
        except (OSError, TimeoutError) as error:
            return Failed(Failure(0, words(error)), None)
        connection = TurnConnection(transport, server, version, self._take, self._refused)
        try:
            answer = await connection.first
        except asyncio.CancelledError:
            connection.close()
            raise
        if isinstance(answer, Allocated) and version in connection.relayed:
            wrong = next((at for at in connection.relayed.values() if nobodys(at[0]) or not at[1]), None)
            if wrong is None:
                return connection
            answer = Failed(Failure(0, f"the server gives us {endpoint_text(wrong)}, where nobody can be"), PAUSE)
        connection.close()
        if isinstance(answer, Allocated):  # of the other IP version alone, which is asked for by itself
            return Failed(Failure(UNSUPPORTED, f"the server does not relay for IPv{version}"), None)
        return answer if isinstance(answer, Failed) else Failed(answer.failure, None)

    def _hold(self, version: int, connection: TurnConnection) -> None:
        self._held[version] = connection
        self._failures.pop(version, None)
        self._complained = ""
        self.settled.set()
        log.info("reached through a relay at %s", endpoint_text(connection.relayed[version]))
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

    def _tell(self, failed: Sequence[Failed]) -> None:
        """Say once of servers that are of no use, though there is no need for them now."""
        for each in failed:
            if each.failure.code != UNSUPPORTED and each.failure.reason not in self._told:
                self._told.add(each.failure.reason)
                log.warning("%s; another one has us", each.failure.reason)

    def _take(self, data: bytes, peer: Endpoint) -> None:
        if is_stun(data):
            self._heard(data, peer)
        else:
            self.loopback.deliver(data, peer)

    def _refused(self, refused: Refused) -> None:
        log.debug("the TURN server does not relay to %s: %s", endpoint_text(refused.peer), refused.failure)


async def _race(attempts: Sequence[Coroutine[Any, Any, _Asked]]) -> tuple[TurnConnection | None, list[Failed]]:
    """The connection that is first to have an allocation; and why those before it, or all, have none."""
    tasks = [asyncio.create_task(attempt) for attempt in attempts]
    failed: list[Failed] = []
    won: TurnConnection | None = None
    try:
        for coming in asyncio.as_completed(tasks):
            answer = await coming
            if isinstance(answer, TurnConnection):
                won = answer
                break
            failed.append(answer)
    finally:
        for task in tasks:
            if not task.done():
                task.cancel()
            elif not task.cancelled() and task.exception() is None:
                other = task.result()
                if isinstance(other, TurnConnection) and other is not won:
                    other.close()
    return won, failed


def _named(server: wire.TurnServer, failure: Failure, retry_after: float | None = None) -> Failed:
    return Failed(Failure(failure.code, f"TURN server {server.addr}: {failure}"), retry_after)


def _pause(failed: Sequence[Failed], silent: int) -> float:
    """Seconds before servers are asked again that all failed."""
    if all(each.failure.code == UNSUPPORTED for each in failed):
        return UNSUPPORTED_PAUSE
    if silent:
        return _growing(silent)
    return min(each.retry_after or PAUSE for each in failed)


def _growing(times: int) -> float:
    """Seconds before the next try, after so many that failed."""
    return min(FIRST_PAUSE * (1 << min(times - 1, 16)), PAUSE)
