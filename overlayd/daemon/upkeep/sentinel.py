"""Putting back what somebody else changed or removed, within moments.

Owns: when a suspect part of the node is looked at and repaired, how much effort goes into that, and what is logged.
Must not know: what makes a part suspect (`suspects`), how it is looked at (`inspect`) or put back (`apply`).

A suspect part is compared with what the state implies, under the same locks that a request takes; if nothing differs,
nothing happens.  Effort is bounded: a part that was looked at rests a while, and what goes again and again is put back
ever later (`model.pacing`).  Every few minutes everything is looked at, for what no event tells.
"""

import asyncio
import logging
import select
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Hashable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial

from overlayd.daemon.change import kernel_layout
from overlayd.daemon.change.apply import Failure, Kernel
from overlayd.daemon.change.node import Node
from overlayd.daemon.change.resources import peers_locks, service_lock
from overlayd.daemon.listeners import Listeners
from overlayd.daemon.tasks import KeepUp
from overlayd.daemon.upkeep.surroundings import Surroundings
from overlayd.daemon.upkeep.suspects import (
    EGRESS,
    EVERYTHING,
    FENCE,
    FORWARDING,
    HOST,
    RULESET,
    SURROUNDINGS,
    Judge,
    Part,
)
from overlayd.errors import MechanismError
from overlayd.linux import egress, forwarding, netns
from overlayd.linux.monitor import Monitor
from overlayd.linux.observe import all_links
from overlayd.model import drift
from overlayd.model.backoff import Backoff
from overlayd.model.layout import Facts, Layout, elements, fences, implied, of_device, of_peers, of_service
from overlayd.model.objects import NetnsPath, Object, Step, Veth
from overlayd.model.pacing import Pacing, pace_key
from overlayd.model.rows import Attachment, Host, Overlay, Service
from overlayd.model.state import State

log = logging.getLogger(__name__)

# Our own constants, seconds.
GATHER = 0.01  # from an event until it is read, with those that follow: the last may show that all is well
SETTLE = 0.002  # from its reading until a look
# After one about the way out, for a default route is replaced in two steps; or about what we are changing ourselves.
SETTLE_LONG = 0.1
AUDIT = 300.0  # between two looks at everything
RESTS = 4  # a part that was looked at rests so many times as long as that took


@dataclass(slots=True)
class _Suspicion:
    """due: when the part is looked at.  causes: see `suspects.Verdicts`, with who did it."""

    due: float
    causes: dict[str, str] = field(default_factory=dict)


class Sentinel:
    """At work within `running`.  monitor: subscribed before the first reconciliation, so that nothing is missed in
    between; closed at the end of the watch.  lost: is told of each container whose link is gone.
    """

    def __init__(
        self,
        node: Node,
        monitor: Monitor,
        host_changed: Callable[[], None],
        surroundings: Surroundings,
        lost: Callable[[str], None] = lambda _handle: None,
    ) -> None:
        self.repairs: Counter[str] = Counter()  # what was put right, by kind
        self._listeners = Listeners[Callable[[str], None]]()
        self.lost = lost
        self.failures: dict[Hashable, str] = {}  # what cannot be put back, by the object's key, and why
        self._node = node
        self._monitor = monitor
        self._host_changed = host_changed
        self._surroundings = surroundings
        self._judge = Judge(node, self)
        self._suspicions: dict[Part, _Suspicion] = {}
        self._busy: set[Part] = set()
        self._rested: dict[Part, float] = {}
        self._backoff = Backoff()
        self._pacing = Pacing(self._backoff)
        self._ready: select.epoll | None = None  # since it listens
        self._readings: dict[socket.socket, asyncio.TimerHandle] = {}
        self._woken = asyncio.Event()
        self._stopping = False
        self._ended = False  # a watch before this one
        self._failure: Exception | None = None  # of the reading

    def subscribe(self, listener: Callable[[str], None]) -> AbstractContextManager[None]:
        """Tell a listener the name of each object that is put right, until the block ends."""
        return self._listeners.with_another(listener)

    @asynccontextmanager
    async def running(self, keep_up: KeepUp) -> AsyncIterator[None]:
        """Watch until the block ends.  What is under way then is brought to its end."""
        keep_up(self.watch)
        try:
            yield
        finally:
            self._stopping = True
            self._woken.set()

    async def watch(self) -> None:
        """Listen, look, and repair; returns at the end of `running`, when what was begun is done.

        Raises what went wrong in the listening.  Called again, it subscribes again and looks at everything, for nobody
        knows what happened meanwhile.
        """
        if self._stopping:
            return
        loop = asyncio.get_running_loop()
        if self._ended:
            self._monitor, self._judge = Monitor(), Judge(self._node, self)
            self._failure = None
            self._busy.clear()
        audit = loop.time() + (0.0 if self._ended else AUDIT)
        try:
            self._judge.remember(await self._node.run(all_links))
            self._listen()
            self.suspect(FORWARDING, "start")
            self._suspicions[EVERYTHING] = _Suspicion(audit, {"audit": ""})
            async with asyncio.TaskGroup() as looking:
                while not self._stopping and self._failure is None:
                    for part in self._due():
                        self._busy.add(part)
                        looking.create_task(self._look_at(part, self._suspicions.pop(part)))
                    await self._pause()
            if self._failure is not None:
                raise self._failure
        finally:
            self._stop_listening()
            self._ended = True

    def suspect(self, part: Part, cause: str, who: str = "", *, changing: bool = False) -> None:
        """Look at a part soon.  See `suspects.Verdicts`."""
        now = asyncio.get_running_loop().time()
        settled = now + (SETTLE_LONG if part == EGRESS or changing else SETTLE)
        self._schedule(part, max(settled, self._rested.get(part, 0.0)), cause, who)

    def acquit(self, part: Part, cause: str) -> None:
        """A cause of suspicion has turned out to be none."""
        suspicion = self._suspicions.get(part)
        if suspicion is not None and suspicion.causes.pop(cause, None) is not None and not suspicion.causes:
            del self._suspicions[part]

    def _listen(self) -> None:
        """Each socket wakes the loop once, and again when it has been read."""
        self._ready = select.epoll()
        for source in self._monitor.sockets:
            self._ready.register(source, select.EPOLLIN | select.EPOLLONESHOT)
        asyncio.get_running_loop().add_reader(self._ready, self._hear)

    def _stop_listening(self) -> None:
        if self._ready is not None:
            asyncio.get_running_loop().remove_reader(self._ready)
            self._ready.close()
        for reading in self._readings.values():
            reading.cancel()
        self._readings.clear()
        self._monitor.close()

    def _hear(self) -> None:
        """Have what has come read in a moment."""
        assert self._ready is not None
        ready = {descriptor for descriptor, _ in self._ready.poll(0)}
        for source in self._monitor.sockets:
            if source.fileno() in ready:
                self._readings[source] = asyncio.get_running_loop().call_later(GATHER, self._read, source)

    def _read(self, source: socket.socket) -> None:
        assert self._ready is not None
        try:
            for event in self._monitor.read(source):
                self._judge.judge(event)
            if self._monitor.behind:
                # At once: what was read may have been undone by what was not.
                self._readings[source] = asyncio.get_running_loop().call_later(0, self._read, source)
            else:
                self._ready.modify(source, select.EPOLLIN | select.EPOLLONESHOT)
        except Exception as error:  # raised by `watch`, which waits for what is being repaired
            self._failure = error
            self._woken.set()

    def _schedule(self, part: Part, due: float, cause: str, who: str = "") -> None:
        suspicion = self._suspicions.setdefault(part, _Suspicion(due))
        suspicion.due = min(suspicion.due, due)
        suspicion.causes[cause] = who or suspicion.causes.get(cause, "")
        self._woken.set()

    def _due(self) -> list[Part]:
        now = asyncio.get_running_loop().time()
        return [part for part, each in self._suspicions.items() if each.due <= now and part not in self._busy]

    async def _pause(self) -> None:
        """Wait until something is due, or may be due earlier."""
        self._woken.clear()
        due = min((each.due for part, each in self._suspicions.items() if part not in self._busy), default=None)
        with suppress(TimeoutError):
            async with asyncio.timeout_at(due):
                await self._woken.wait()

    async def _look_at(self, part: Part, suspicion: _Suspicion) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        who = ", ".join(sorted({who for who in suspicion.causes.values() if who}))
        try:
            if part == EGRESS:
                await self._follow_egress()
            elif part == HOST:
                self._host_changed()
            elif part == SURROUNDINGS:
                await self._surroundings.look()
            else:
                await self._repair(part, who)
        except MechanismError as error:
            if self._again_later(part, loop.time() - started, who):
                log.error("looking at %s: %s; it is tried again", part, error)
        except Exception:  # a bug, after which the watch goes on
            if self._again_later(part, loop.time() - started, who):
                log.exception("looking at %s: unexpected error; it is tried again", part)
        now = loop.time()
        self._rested[part] = now + RESTS * (now - started)
        self._busy.discard(part)
        if part == EVERYTHING:
            await self._node.check_journal()  # which says in the log what it found
            self._backoff.forget_calm(now)
            self._schedule(EVERYTHING, now + AUDIT, "audit")
        self._woken.set()

    def _again_later(self, part: Part, cost: float, who: str) -> bool:
        """A look has failed: come back, ever later.  Returns whether to speak of it."""
        now = asyncio.get_running_loop().time()
        self._backoff.restored(part, now, cost)
        self._schedule(part, self._backoff.due(part, now), "again", who)
        return self._is_news(part)

    async def _repair(self, part: Part, who: str) -> None:
        """Put right what of the part is due, and come back for the rest."""
        if part in (FORWARDING, EVERYTHING):
            await self._repair_forwarding(who)
        if part == EVERYTHING:
            await self._surroundings.look()
        if part == FORWARDING:
            return
        loop = asyncio.get_running_loop()
        of, look, exclusive = _way(part)
        async with self._node.comparing(of, look, exclusive=exclusive) as found:
            steps = [step for step in found if not self._is_dead(step)]
            began = loop.time()
            due, again = self._pacing.split(steps, began)
            failures = await self._node.repair(due)
        ended = loop.time()
        self._pacing.taken(due, ended, ended - began)
        if part == EVERYTHING:
            differ = {pace_key(step) for step in steps}
            self.failures = {key: why for key, why in self.failures.items() if key in differ}
        self._report(part, due, failures, who, ended - began)
        retry = self._pacing.split([step for step, _ in failures], ended).again
        if later := [each for each in (again, retry) if each is not None]:
            self._schedule(part, min(later), "again", who)

    def _is_dead(self, step: Step) -> bool:
        """Whether a link is missing because its container's namespace is gone, of which is told."""
        veth = step.want if step.have is None else None
        if not isinstance(veth, Veth) or not isinstance(veth.netns, NetnsPath) or netns.leads_to(veth.netns):
            return False
        attachment = self._node.state.of_link(veth.name)
        if attachment is not None:
            self.lost(attachment.handle)
        return True

    async def _repair_forwarding(self, who: str) -> None:
        loop = asyncio.get_running_loop()
        due = self._backoff.due(FORWARDING, loop.time())
        if due > loop.time():
            self._schedule(FORWARDING, due, "again", who)
            return
        faults = await self._node.run_exclusively(_forward, self._node)
        if not faults:
            return
        self._backoff.restored(FORWARDING, loop.time(), 0.0)
        if self._is_news(FORWARDING):
            log.warning("%s%s: set again", "; ".join(faults), _by(who))

    async def _follow_egress(self) -> None:
        """The overlay's MTU follows that of the way out; without any, it stays."""
        node = self._node
        await self._keep_listening()
        way = await node.run(egress.physical_egress)
        mtu = egress.overlay_mtu(way)
        if way is not None and mtu != node.facts.mtu:
            log.info(
                "the way out is %s with MTU %d: MTU %d inside, was %d", way.interface, way.mtu, mtu, node.facts.mtu
            )
            await node.update_facts(lambda facts: replace(facts, mtu=mtu), ())
            async with node.comparing(implied, kernel_layout.audit) as steps:
                failures = await node.repair(steps)
            if failures:
                self.suspect(EVERYTHING, "mtu")  # which says what, and tries again

    async def _keep_listening(self) -> None:
        """A link that comes while the host forwards takes no router advertisements, as it did before we made it so."""
        host = self._node.state.get(Host)
        if host is None or 6 not in host.closed:
            return
        names = await self._node.run(egress.possible_uplinks)
        for name in await self._node.run(forwarding.keep_listening, names):
            log.info("%s goes on taking router advertisements (accept_ra 2), though this host forwards", name)

    # What is said.

    def _report(self, part: Part, steps: list[Step], failures: list[Failure], who: str, cost: float) -> None:
        failed = {pace_key(step): str(error) for step, error in failures}
        done = [step for step in steps if pace_key(step) not in failed and self._is_news(pace_key(step))]
        self.repairs.update(type(step.want or step.have).__name__.lower() for step in done)
        for name, problem in drift.describe(done):
            for listener in self._listeners:
                listener(name)
            log.warning("%s %s%s: put right in %.0f ms", name, problem, _by(who), cost * 1000)
        for step, error in failures:
            if pace_key(step) not in self.failures and self._is_news(pace_key(step)):
                for name, problem in drift.describe([step]):
                    log.error("%s %s, and cannot be put right: %s", name, problem, error)
        if part != EVERYTHING and failed.keys() - self.failures.keys():
            self.suspect(EVERYTHING, "failure")  # what is in the way may be seen from farther off
        for step in steps:
            self.failures.pop(pace_key(step), None)
        self.failures |= failed

    def _is_news(self, key: Hashable) -> bool:
        """Whether to speak of what was put back: of what is lost again and again the 1st, 2nd, 4th, 8th... time."""
        strikes = self._backoff.strikes(key)
        return not strikes & (strikes - 1)


def _forward(node: Node) -> list[str]:
    """Have the host and our links forward, if there are any; what had to be set for that.  In a worker thread, while no
    change is in flight: one that is refused must not leave a host that forwards.
    """
    names = link_names(node.state)
    faults = forwarding.faults(names) if names else []
    if faults:
        forwarding.enable()
        forwarding.settle(names)
    return faults


def link_names(state: State) -> list[str]:
    """Our links that forward: bridges, devices, and the host ends that are on no bridge."""
    names = [service.bridge for service in state.table(Service).values()]
    names += [service.device for service in state.table(Service).values() if service.dedicated]
    names += [
        each.host_end("g")
        for each in state.table(Attachment).values()
        if each.namespace is not None and each.global_address is not None
    ]
    overlay = state.get(Overlay)
    return [*names, overlay.interface] if overlay is not None and overlay.up else names


Way = tuple[Callable[[State, Facts], Iterator[Object]], Callable[[Kernel, Layout], Layout], Collection[str] | None]


def _way(part: Part) -> Way:
    """What belongs to a part, how it is looked at, and what nobody may change meanwhile (None: anything)."""
    match part.kind:
        case "service":
            return partial(of_service, name=part.name), kernel_layout.service, [service_lock(part.name)]
        case "device":
            return partial(of_device, scope=part.name), kernel_layout.look, None
        case "peers":
            return partial(of_peers, scope=part.name), kernel_layout.peers, peers_locks(part.name)
        case RULESET.kind:
            return elements, kernel_layout.members, None
        case FENCE.kind:
            return fences, kernel_layout.look, None
        case _:
            return implied, kernel_layout.audit, None


def _by(who: str) -> str:
    return f", by {who}" if who else ""
