"""Host names in endpoints: asked for off the request path, and again while their peer does not answer.

Owns: when a name is asked for, and what came of it.  Must not know: requests; it sees rows change.

A name is asked for when its peer is added or gets another endpoint, at the daemon's start, and again with growing
pauses while it does not resolve or its peer does not answer.  The host's own resolver is asked, so /etc/hosts counts;
it prefers one of several addresses as RFC 6724 says.  The device is told of an address only when it is not the one
before: a peer that has roamed is not called back by a name that has not changed, and never while it answers.  While
NAT traversal has an endpoint for the peer (`Facts.selected`), that one counts: the name is then one of the ways that
the next attempt tries, and counts again when an attempt has failed.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace

from overlayd.daemon.change.node import Node
from overlayd.daemon.change.resources import peers_locks
from overlayd.daemon.peers.health import Health, Listener
from overlayd.daemon.peers.lookup import Lookups
from overlayd.daemon.tasks import Spawn
from overlayd.errors import MechanismError
from overlayd.model.endpoints import nobodys
from overlayd.model.layout import Facts, endpoint_text
from overlayd.model.objects import Address
from overlayd.model.resolution import choose, failure_pause, stale_pause
from overlayd.model.routing import routed_into_overlay
from overlayd.model.rows import Change, Peer, numeric_endpoint, peer_key

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Name:
    """A peer with a host name.  address: what the device was told; adopted: it may have an endpoint from before the
    daemon's start; again: ask now.
    """

    peer: Peer
    adopted: bool
    address: Address | None = None
    failures: int = 0  # in a row
    lookups: int = 0  # that changed nothing for a peer that does not answer
    again: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def host(self) -> str:
        return self.peer.endpoint.rpartition(":")[0]

    @property
    def port(self) -> int:
        return int(self.peer.endpoint.rpartition(":")[2])

    @property
    def key(self) -> tuple[str, str]:
        """As in `Facts.resolved`."""
        return (self.peer.key, self.peer.endpoint)


class Resolver(Listener):
    """The host names of a node's peers.  spawn: starts a task; jitter: a number from 0 to 1, at random."""

    def __init__(
        self,
        node: Node,
        health: Health,
        lookups: Lookups,
        spawn: Spawn,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._node = node
        self._health = health
        self._spawn = spawn
        self._jitter = jitter
        self._names: dict[str, _Name] = {}  # by the key of the peer's row
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._lookups = lookups
        self._found: dict[_Name, Address] = {}
        self._arrived = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow the names, those that are there and those that come, until the block ends."""
        with self._health.subscribe(self), self._node.subscribe(self.follow):
            telling = self._spawn(self._tell())
            for peer in self._node.state.table(Peer).values():
                self._apply(peer, adopted=True)
            try:
                yield
            finally:
                for key in list(self._names):
                    self._forget(key)
                telling.cancel()

    def follow(self, change: Change) -> None:
        """Follow the names of peers that were put, forget those of peers that went."""
        for (table, key), row in change.items():
            if table == Peer.table:
                known = self._names.get(key)
                if isinstance(row, Peer) and known is not None and known.peer.endpoint == row.endpoint:
                    known.peer = row
                else:
                    self._forget(key)
                    if isinstance(row, Peer):
                        self._apply(row, adopted=False)

    def ask_again(self) -> None:
        """Ask now for the names of all peers that do not answer."""
        for name in self._names.values():
            if not self._health.is_fresh(name.peer.scope, name.peer.public_key):
                name.again.set()

    def _apply(self, peer: Peer, adopted: bool) -> None:
        if peer.endpoint and numeric_endpoint(peer.endpoint) is None:
            name = self._names[peer.key] = _Name(peer, adopted)
            self._tasks[peer.key] = self._spawn(self._follow_name(name))

    def _forget(self, key: str) -> None:
        if self._names.pop(key, None) is not None:
            self._tasks.pop(key).cancel()

    def health_changed(self, scope: str, public_key: bytes, healthy: bool) -> None:
        name = self._names.get(peer_key(scope, public_key))
        if name is not None and not healthy:
            name.lookups = 0
            name.again.set()

    async def _follow_name(self, name: _Name) -> None:
        while True:
            pause: float | None = None  # until the peer goes stale
            try:
                answers = self._outside(await self._lookups.addresses(name.host))
            except (OSError, UnicodeError) as error:
                log.log(
                    logging.DEBUG if name.failures else logging.WARNING,
                    "%s does not resolve: %s; it is tried again",
                    name.host,
                    error or "no answer",
                )
                pause = failure_pause(name.failures, self._jitter())
                name.failures += 1
            else:
                name.failures = 0
                address = choose(answers, name.address)
                if address != name.address:
                    self._found[name] = address
                    self._arrived.set()
                if not self._health.is_fresh(name.peer.scope, name.peer.public_key):
                    pause = stale_pause(name.lookups, self._jitter())
                    name.lookups += 1
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await name.again.wait()
            name.again.clear()

    def _outside(self, answers: list[Address]) -> list[Address]:
        """The answers to which a tunnel may lead.  OSError when there are none."""
        wrong = {address: self._wrong(address) for address in answers}
        right = [address for address in answers if not wrong[address]]
        if not right:
            address, why = next(iter(wrong.items()))
            raise OSError(f"{address} {why}")
        return right

    def _wrong(self, address: Address) -> str:
        if nobody := nobodys(address):  # which some resolvers answer for what they block
            return nobody
        network = routed_into_overlay(self._node.state, address)
        return f"is in {network}, and the tunnel would be led into itself" if network else ""

    async def _tell(self) -> None:
        """Tell the devices what was found, many at once, forever."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            found, self._found = self._found, {}
            for scope in {name.peer.scope for name in found}:
                here = {name: address for name, address in found.items() if name.peer.scope == scope}
                try:
                    await self._tell_device(scope, here)
                except MechanismError as error:
                    log.error("%s", error)
                    for name in here:
                        name.failures += 1
                        pause = failure_pause(name.failures, self._jitter())
                        asyncio.get_running_loop().call_later(pause, name.again.set)

    async def _tell_device(self, scope: str, found: dict[_Name, Address]) -> None:
        told = {name: address for name, address in found.items() if self._may_be_told(name)}
        # What is found at a start of a peer that answers is noted, for when its device has to be made again.
        touched = [name.peer.id for name in told if not (name.adopted and self._answers(name))]

        def update(facts: Facts) -> Facts:
            followed = {name.key for name in self._names.values()}
            resolved = {key: endpoint for key, endpoint in facts.resolved.items() if key in followed}
            return replace(
                facts, resolved=resolved | {name.key: (address, name.port) for name, address in told.items()}
            )

        await self._node.update_facts(update, touched, exclusive=peers_locks(scope))
        for name, address in told.items():
            if name.peer.id in touched:
                log.info("%s is %s", name.peer.endpoint, endpoint_text((address, name.port)))
            name.address, name.adopted = address, False

    def _may_be_told(self, name: _Name) -> bool:
        """Whether a new address counts: the first one of an endpoint always does, a later one if the peer does not
        answer where it is.
        """
        return self._names.get(name.peer.key) is name and (name.address is None or not self._answers(name))

    def _answers(self, name: _Name) -> bool:
        return self._health.is_fresh(name.peer.scope, name.peer.public_key)
