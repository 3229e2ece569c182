"""Where STUN servers see WireGuard's port: this node's server-reflexive candidates.

Owns: which servers are asked and when, and what they said.  Must not know: how a NAT is passed (`traversal`).

Asking also keeps the NAT's mapping alive.  Who is not reachable costs nothing: all are asked at once, where nothing is
known yet the first answer counts at once, lookups have threads of their own, and no request waits for an answer.
"""

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from contextlib import suppress

from overlayd.daemon.nat.stun_port import StunPort
from overlayd.daemon.peers.lookup import Lookups
from overlayd.model.candidates import Endpoint, is_symmetric
from overlayd.model.endpoints import nobodys
from overlayd.model.layout import endpoint_text
from overlayd.model.rows import numeric_endpoint
from overlayd.proto.stun import Failure
from overlayd.proto.stun_client import Binding

log = logging.getLogger(__name__)

# Our own constants, seconds but for ADDRESSES.
PATIENCE = 5.0  # for an answer: four requests are under way by then
SHORTEST_INTERVAL = 1.0  # between two rounds, whatever the configuration says
ADDRESSES = 3  # of one name that are asked, of each IP version
SOON = 5.0  # after the first round that brought nothing: at boot the network may not be there yet


class Reflexive:
    """mapped: where the servers see the port, in the order of the servers, which is by chance the same for all of them
    unless the NAT is symmetric.  refreshed: when they last said so, Unix seconds.

    servers: `host:port`.  interval: seconds.
    """

    def __init__(self, port: StunPort, lookups: Lookups, servers: Sequence[str], interval: float) -> None:
        self.mapped: list[Endpoint] = []
        self.refreshed = 0
        self._port = port
        self._lookups = lookups
        self._servers = servers
        self._interval = max(interval, SHORTEST_INTERVAL)
        self._again = asyncio.Event()
        self._complained = False

    @property
    def symmetric(self) -> bool:
        return is_symmetric(self.mapped)

    def refresh_soon(self) -> None:
        self._again.set()

    async def watch(self) -> None:
        """Ask now and then, forever."""
        soon = True
        while True:
            self._again.clear()
            self._take(await self._ask_all())
            pause = min(SOON, self._interval) if soon and not self.mapped else self._interval
            soon = False
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._again.wait()

    def _take(self, mapped: list[Endpoint]) -> None:
        if mapped:
            self.refreshed = int(time.time())
            self._complained = False
        elif not self._complained:
            self._complained = True
            log.warning("no STUN server answers (%s); they are asked again", ", ".join(self._servers))
        if mapped != self.mapped:
            known, self.mapped = set(self.mapped), mapped
            if mapped and set(mapped) != known:
                seen = ", ".join(endpoint_text(endpoint) for endpoint in dict.fromkeys(mapped))
                log.info("seen from outside as %s%s", seen, " (a symmetric NAT)" if self.symmetric else "")

    async def _ask_all(self) -> list[Endpoint]:
        """Ask each server by all IP versions that both have."""
        answers: dict[tuple[int, int], Endpoint] = {}  # by the server's place and that of its address
        nothing_known = not self.mapped

        def said() -> list[Endpoint]:
            return [answers[key] for key in sorted(answers)]

        async def ask(place: int, number: int, at: Endpoint) -> None:
            if (answer := await self._ask(at)) is not None:
                answers[place, number] = answer
                if nothing_known:
                    self._take(said())

        async def ask_server(place: int, server: str) -> None:
            await asyncio.gather(*(ask(place, *each) for each in enumerate(await self._places(server))))

        with self._port.used():
            await asyncio.gather(*(ask_server(place, server) for place, server in enumerate(self._servers)))
        return said()

    async def _places(self, server: str) -> list[Endpoint]:
        """Where to ask a server: at a few of its addresses, since one may be dead."""
        try:
            found = await resolve(self._lookups, server)
        except (OSError, ValueError) as error:
            log.debug("STUN server %s: %s", server, error or "no answer")
            return []
        return [endpoint for version in sorted(self._port.versions) for endpoint in some(found, version)]

    async def _ask(self, server: Endpoint) -> Endpoint | None:
        loop = asyncio.get_running_loop()
        binding = Binding(os.urandom(12), loop.time())
        answered = asyncio.Event()

        def hear(datagram: bytes, sender: Endpoint) -> None:
            if sender == server and binding.datagram_received(datagram):
                answered.set()

        with self._port.subscribe(hear), suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while (due := binding.next_timeout()) is not None:
                    for datagram in binding.datagrams_to_send(loop.time()):
                        self._port.send(datagram, server)
                    with suppress(TimeoutError):
                        async with asyncio.timeout_at(binding.next_timeout() or due):
                            await answered.wait()
        outcome = binding.outcome
        if outcome is not None and not isinstance(outcome, Failure):
            if outcome[1] and not nobodys(outcome[0]) and outcome[0].is_loopback == server[0].is_loopback:
                return outcome
            outcome = Failure(0, f"it sees us at {endpoint_text(outcome)}, where nobody can be")
        log.debug("STUN server %s: %s", endpoint_text(server), outcome or "no answer")
        return None


async def resolve(lookups: Lookups, server: str) -> list[Endpoint]:
    """Where a server `host:port` is, at least one place, the preferred first.  OSError, ValueError: nowhere."""
    numeric = numeric_endpoint(server)
    if numeric is not None:
        return [numeric]
    host, _, port = server.rpartition(":")
    return [(address, int(port)) for address in await lookups.addresses(host)]


def some(found: Sequence[Endpoint], version: int) -> list[Endpoint]:
    """The places of an IP version that are asked of all where a server is."""
    return [endpoint for endpoint in found if endpoint[0].version == version][:ADDRESSES]
