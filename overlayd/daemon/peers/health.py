"""What peers did lately, read from the devices in the background, and who is told when it matters.

Owns: the newest activity of every peer, when it is read, and the end of a device that cannot be read any more.  Must
not know: requests; they read what is here, however old; how wrong peers, or a device that has gone, are put
back (`sentinel`).
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Set
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from errno import ETIMEDOUT
from typing import NamedTuple

from overlayd import keys, wire
from overlayd.daemon.change.node import Node
from overlayd.daemon.listeners import Listeners
from overlayd.daemon.tasks import KeepUp
from overlayd.errors import MechanismError
from overlayd.model.health import FRESH, Condition, HealthTracker, RoamingTracker, Silence, is_fresh
from overlayd.model.layout import endpoint_address
from overlayd.model.objects import GLOBAL, Address
from overlayd.model.rows import Edge, Service
from overlayd.proto.wireguard import Activity

log = logging.getLogger(__name__)

# Our own constants.
INTERVAL = 1.0  # seconds between two readings of a small device
SOONEST = 0.2  # of that time at least passes between two
PEERS_A_SECOND = 2000  # a reading of a large device takes 4 us a peer: this keeps it under 1 % of a processor

Endpoint = tuple[Address, int]


class Listener:
    """A subscriber of `Health`.  A class that derives from this one defines what it wants to hear, and no more.

    scope: the device's.
    """

    def activity_read(self, scope: str, activity: Mapping[bytes, Activity]) -> None:
        """A device was read: what its peers did, by public key."""

    def peer_moved(self, scope: str, public_key: bytes, endpoint: Endpoint) -> None:
        """A peer has moved by itself; endpoint: where the device sees it."""

    def health_changed(self, scope: str, public_key: bytes, healthy: bool) -> None:
        """A peer answers again, or does not answer any more."""

    def condition_changed(self, scope: str, public_key: bytes, condition: Condition) -> None:
        """A peer answers, is idle, or does not answer; after `health_changed`, if that has changed too."""

    def peers_doubted(self, scope: str) -> None:
        """A device may have other peers than it should have."""

    def published(self, event: wire.Event) -> None:
        """Something has happened that every client is told of."""


class Health:
    """The activity of all peers of all devices, `generation` growing when it changes.

    fresh: seconds for which a handshake vouches for a peer.
    """

    def __init__(self, node: Node, fresh: float = FRESH) -> None:
        self.generation = 0
        self._node = node
        self._fresh = fresh
        self._scopes: dict[str, _Scope] = {}
        self._listeners = Listeners[Listener]()
        self._wanted = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []  # for a reading that has not begun

    @property
    def silent(self) -> list[str]:
        """The names of the devices that did not answer when they were last read."""
        return [device for scope, device in self.devices().items() if self._scope(scope).silence.unheard]

    def activity(self, scope: str, public_key: bytes) -> Activity | None:
        """What a peer did, as far as it is known."""
        known = self._scopes.get(scope)
        return known.activity.get(public_key) if known is not None else None

    def is_fresh(self, scope: str, public_key: bytes) -> bool:
        """Whether a peer has been heard of lately."""
        activity = self.activity(scope, public_key)
        return activity is not None and is_fresh(activity.last_handshake, time.time(), self._fresh)

    def condition(self, scope: str, public_key: bytes) -> Condition:
        """How a peer is."""
        known = self._scopes.get(scope)
        return known.health.condition(public_key) if known is not None else "idle"

    def unanswered(self) -> dict[tuple[str, bytes], float]:
        """The peers, by scope and key, that do not answer, and for how many seconds what was sent has waited."""
        now = time.time()
        return {
            (scope, key): waited
            for scope, known in self._scopes.items()
            for key, waited in known.health.silent(now).items()
        }

    def waited(self, scope: str, public_key: bytes) -> float:
        """For how many seconds what was sent to a peer has had no answer, be it for long or not."""
        known = self._scopes.get(scope)
        return known.health.waited(public_key, time.time()) if known is not None else 0.0

    def peers(self) -> Iterator[tuple[str, bytes, Activity]]:
        """What every peer did, with its scope and key."""
        for scope, known in [*self._scopes.items()]:  # in a worker thread, scopes may come and go meanwhile
            for key, activity in known.activity.items():
                yield scope, key, activity

    def count(self, condition: Condition) -> int:
        """How many peers are so; those that answer have a fresh handshake."""
        return sum(known.health.count(condition) for known in self._scopes.values())

    def subscribe(self, listener: Listener) -> AbstractContextManager[None]:
        """Tell a listener, until the block ends."""
        return self._listeners.with_another(listener)

    @asynccontextmanager
    async def running(self, keep_up: KeepUp) -> AsyncIterator[None]:
        """Read the devices until the block ends; what they show at its beginning is told to nobody."""
        await self.resume()
        watch = keep_up(self.watch)
        try:
            yield
        finally:
            watch.cancel()

    async def resume(self) -> None:
        """Read every device once, and announce nothing: an earlier daemon may have."""
        for scope, found in (await self._read()).items():
            known = self._scope(scope)
            known.activity = found
            known.health.resume(found, time.time())
            known.moved(found)

    async def watch(self) -> None:
        """Read the devices, forever."""
        while True:
            peers = sum(len(known.activity) for known in self._scopes.values())
            interval = max(INTERVAL, peers / PEERS_A_SECOND)
            await asyncio.sleep(interval * SOONEST)
            with suppress(TimeoutError):
                async with asyncio.timeout(interval * (1 - SOONEST)):
                    await self._wanted.wait()
            self._wanted.clear()
            waiting, self._waiting = self._waiting, []
            await self.refresh()
            for each in waiting:
                if not each.done():
                    each.set_result(None)

    async def read_soon(self) -> None:
        """Wait for a reading that begins after now, and sooner than it would have."""
        reading = asyncio.get_running_loop().create_future()
        self._waiting.append(reading)
        self._wanted.set()
        await reading

    async def refresh(self) -> None:
        """Read every device once, and announce what has changed."""
        devices = self.devices()
        for scope in self._scopes.keys() - devices.keys():
            del self._scopes[scope]
            self.generation += 1
        for scope, found in (await self._read()).items():
            known = self._scope(scope)
            # That takes 100 ms for 50,000 peers.
            reading = await self._node.run(known.compare, found, time.time())
            if reading.differs:
                known.activity = found
                self.generation += 1
            for key, endpoint in reading.moved:
                for listener in self._listeners:
                    listener.peer_moved(scope, key, endpoint)
            for key, healthy in reading.changes:
                log.info("peer %s %s", keys.text(key), "answers" if healthy else "does not answer any more")
                self.publish(wire.PeerHealthChanged(keys.text(key), healthy))
                for listener in self._listeners:
                    listener.health_changed(scope, key, healthy)
            for key, condition in known.health.turned.items():
                for listener in self._listeners:
                    listener.condition_changed(scope, key, condition)
            for listener in self._listeners:
                listener.activity_read(scope, found)

    def publish(self, event: wire.Event) -> None:
        """Tell every client."""
        for listener in self._listeners:
            listener.published(event)

    async def _read(self) -> dict[str, dict[bytes, Activity]]:
        """What the devices show of the peers that we gave them; of those that do not answer nothing."""
        backend = self._node.kernel.backend
        shown = {}
        # One after the other, so that silent ones keep one thread waiting and not all; and those last.
        for scope, device in sorted(self.devices().items(), key=lambda each: self._scope(each[0]).silence.unheard):
            assert backend is not None
            try:
                found = await self._node.run(backend.activity, device)
            except MechanismError as error:
                if error.errno == ETIMEDOUT:
                    await self._hear_nothing(scope, device)
                else:
                    log.debug("reading %s: %s", device, error)
                continue
            self._hear(scope, device, found.keys())
            shown[scope] = await self._node.run(_of_these, found, self._node.state.peers(scope))
        return shown

    def _scope(self, scope: str) -> "_Scope":
        known = self._scopes.get(scope)
        if known is None:
            known = self._scopes[scope] = _Scope(self._node, scope, self._fresh)
        return known

    async def _hear_nothing(self, scope: str, device: str) -> None:
        """End a device that has been silent for too long; its link goes with it, which the sentinel sees."""
        silence = self._scope(scope).silence
        if not silence.unheard:
            log.warning("%s does not answer; after %d readings without an answer it is ended", device, silence.patience)
        if not silence.unanswered():
            return
        backend = self._node.kernel.backend
        assert backend is not None
        try:
            if ended := await self._node.run(backend.end_if_silent, device):
                log.error("%s did not answer for too long: ended process %d, which served it", device, ended)
        except MechanismError as error:
            log.error("%s does not answer, and cannot be ended: %s", device, error)

    def _hear(self, scope: str, device: str, found: Set[bytes]) -> None:
        """Have a look taken at the peers of a device that was silent, or that has others than it should have."""
        known = self._scope(scope)
        was_silent, differs = known.silence.answered(), known.differs(found)
        if was_silent:
            log.warning("%s answers again", device)
        if was_silent or differs:
            for listener in self._listeners:
                listener.peers_doubted(scope)

    def devices(self) -> dict[str, str]:
        """The names of our devices by scope, the global one first."""
        state = self._node.state
        if self._node.kernel.backend is None:
            return {}
        devices = {} if state.overlay is None else {GLOBAL: state.overlay.interface}
        dedicated = (service for service in state.table(Service).values() if service.dedicated)
        return devices | {service.name: service.device for service in dedicated}


def _of_these(found: Mapping[bytes, Activity], peers: Collection[bytes]) -> dict[bytes, Activity]:
    """In a worker thread; peers: are only looked up, for some come and go meanwhile."""
    return {key: activity for key, activity in found.items() if key in peers}


class _Reading(NamedTuple):
    """What a reading of a device shows: whether anything is otherwise than before, whose health has changed, and who
    has moved.
    """

    differs: bool
    changes: list[tuple[bytes, bool]]
    moved: list[tuple[bytes, Endpoint]]


class _Scope:
    """What is known of one device and its peers."""

    def __init__(self, node: Node, scope: str, fresh: float) -> None:
        self.activity: Mapping[bytes, Activity] = {}
        self.health = HealthTracker(fresh)
        self.silence = Silence()
        self._roaming: RoamingTracker[Endpoint] = RoamingTracker()
        self._node = node
        self._scope = scope
        self._wanted: set[bytes] | None = None  # the keys of its peers, at the last reading

    def differs(self, found: Set[bytes]) -> bool:
        """Whether the device shows other peers than it should.  Those that came or went since the last reading, which
        the device is perhaps being told of, do not count.
        """
        state = self._node.state
        now = set(state.peers(self._scope))
        if self._scope == GLOBAL:
            now.update(edge.public_key for edge in state.table(Edge).values())
        before, self._wanted = self._wanted, now
        if now == found or before is None:
            return False
        return bool((before & now) - found or found - before - now)

    def compare(self, found: Mapping[bytes, Activity], now: float) -> _Reading:
        """Take what the device shows now (Unix seconds).  In a worker thread; nobody else does meanwhile."""
        changes = self.health.observe(found, now)
        return _Reading(bool(self.health.turned) or found != self.activity, changes, self.moved(found))

    def moved(self, found: Mapping[bytes, Activity]) -> list[tuple[bytes, Endpoint]]:
        """The peers that have moved by themselves, and where they are."""
        return self._roaming.observe({key: activity.endpoint for key, activity in found.items()}, self._given)

    def _given(self, key: bytes) -> Endpoint | None:
        peer = self._node.state.peers(self._scope).get(key)
        return endpoint_address(peer, self._node.facts) if peer is not None else None
