"""Looking for peers that do not answer: carrying out the attempts that `model.traversal` describes.

Owns: which peers are being looked for, when they are again, and what came of it.  Must not know: requests; it sees
rows change.  Nor sockets: checks leave by `checks`, what passes a relay by `allocation`; nor how the device hears of
it (`selection`).

A peer that answers is left alone, wherever it roams to.  A silent one that was reached without any NAT or relay is as
good as reached while it is not sent anything: it is looked for when it is missed.

A peer whose session lasts is looked for in three cases, and then what is heard of it counts, for there is no handshake:
its path is lost (`model.path_loss`); its candidates have changed; it is relayed, and a direct way may have opened.  In
the latter two only an answered check moves it: the path that it has may be a good one.
"""

import asyncio
import logging
import math
import time
from collections.abc import Mapping
from contextlib import suppress

from overlayd import keys, wire
from overlayd.daemon.change.node import Node
from overlayd.daemon.nat.allocation import Allocation
from overlayd.daemon.nat.checks import Checks
from overlayd.daemon.nat.reflexive import Reflexive
from overlayd.daemon.nat.selection import Selection
from overlayd.daemon.nat.stun_port import StunPort
from overlayd.daemon.peers.health import Health, Listener
from overlayd.daemon.tasks import Spawn
from overlayd.errors import MechanismError
from overlayd.model.candidates import RELAY, Endpoint, peer_candidates
from overlayd.model.health import Condition
from overlayd.model.layout import Selected, configured_address, endpoint_address, endpoint_text
from overlayd.model.objects import GLOBAL
from overlayd.model.path_loss import PathLoss
from overlayd.model.routing import routed_into_overlay
from overlayd.model.rows import Change, Peer, RowId, peer_of
from overlayd.model.traversal import HOLD, REVIEW, Attempt, Course, Way, next_attempt, next_review, phase, ways
from overlayd.proto.wireguard import Activity

log = logging.getLogger(__name__)

# Our own constants.
AT_ONCE = 32  # attempts: each sends a check every half second to each of some ten addresses
REVIEWS_AT_ONCE = 128  # of peers that are reached: to each of some three addresses
# Two handshakes that cross cancel each other, and WireGuard begins the next ones 5 s later.  So when both sides know at
# one time which way works, the one with the smaller key lets the other begin.
YIELD = 1.0  # seconds
TAKEN_UP_AT_ONCE = 256  # peers at a start, before others get their turn
ALLOCATION_PATIENCE = 3.0  # seconds that a first attempt waits for our own address on a relay

# A peer that was relayed when an earlier daemon ended has a session still, so that no handshake shows which way works,
# but what is heard; and the least that is heard is its keepalive.
HOLD_CUT_OFF = 30.0  # seconds


class Traversal(Listener):
    """The peers of the global overlay.  At work from `resume` until `close`.

    spawn: starts work.
    """

    def __init__(
        self,
        node: Node,
        health: Health,
        config: wire.NatConfig,
        *,
        port: StunPort,
        checks: Checks,
        reflexive: Reflexive,
        allocation: Allocation,
        selection: Selection,
        spawn: Spawn,
    ) -> None:
        self._node = node
        self._health = health
        self._config = config
        self._port = port
        self._checks = checks
        self._reflexive = reflexive
        self._allocation = allocation
        self._selection = selection
        self._spawn = spawn
        self._own_key = keys.public(node.state.node.private_key)
        self._peers: dict[bytes, Peer] = {}  # as they were last seen, to tell what of them has changed
        self._queue: dict[bytes, None] = {}  # in their order
        self._running: dict[bytes, tuple[asyncio.Task[None], asyncio.Event]] = {}
        self._later: dict[bytes, asyncio.TimerHandle] = {}
        self._failures: dict[bytes, int] = {}  # in a row
        self._tried: dict[bytes, int] = {}  # see Attempt.tried
        self._loss = PathLoss()
        self._reviews: dict[bytes, asyncio.TimerHandle] = {}  # of relayed peers, when a direct way is tried
        self._at_rest: dict[bytes, int] = {}  # silent, but not missed; by how much was sent to them, bytes

    async def resume(self) -> None:
        """Take up all peers, at a start or a change of the configuration; later changes come through `follow`."""
        found: dict[RowId, tuple[Peer, Selected]] = {}
        for place, (key, peer) in enumerate(list(self._node.state.peers(GLOBAL).items())):
            if place % TAKEN_UP_AT_ONCE == 0:
                await asyncio.sleep(0)
            if self._node.state.peers(GLOBAL).get(key) is not peer:
                continue  # it has changed meanwhile, and came through `follow`
            self._peers[key] = peer
            activity = self._health.activity(GLOBAL, key)
            if not self._health.is_fresh(GLOBAL, key):
                self._lost(key)
            elif activity is not None and activity.endpoint is not None:
                if self._selection.is_cut_off(peer, activity.endpoint):
                    self._begin(key)
                    continue
                if self._selection.connection(peer, activity.endpoint) == "relayed":
                    self._permit(peer)
                    self._review_later(key)
                if peer.candidates and (where := self._selection.settled(peer, activity.endpoint)) is not None:
                    found[peer.id] = (peer, where)
        await self._selection.hold_on(found)

    def follow(self, change: Change) -> None:
        """Look for a new peer at once if it has candidates, and for one of which something new is known; forget those
        that went.
        """
        for (table, id), row in change.items():
            if table != Peer.table:
                continue
            key, scope = peer_of(id)
            if scope == GLOBAL and isinstance(row, Peer):
                self._put(row)
            elif scope == GLOBAL:
                self._stop(key)

    def condition_changed(self, scope: str, public_key: bytes, condition: Condition) -> None:
        if scope != GLOBAL or public_key not in self._peers:
            return
        if condition == "answers" and public_key not in self._running:
            self._leave(public_key)
            self._failures.pop(public_key, None)
            if self._is_relayed(self._peers[public_key]):
                self._review_later(public_key)
        elif condition == "idle":
            self._lost(public_key)
        elif condition == "silent":
            self._begin(public_key)

    def activity_read(self, scope: str, activity: Mapping[bytes, Activity]) -> None:
        """Wake those who wait for a handshake, and look for those who are missed now."""
        if scope != GLOBAL:
            return
        for key in self._loss.observe(activity, asyncio.get_running_loop().time()):
            if key in self._peers and self._health.is_fresh(GLOBAL, key):
                self._path_lost(key)
        for _, woken in self._running.values():
            woken.set()
        for key, sent in list(self._at_rest.items()):
            seen = activity.get(key)
            if seen is not None and seen.tx_bytes > sent:
                self._begin(key)

    def peer_moved(self, scope: str, public_key: bytes, endpoint: Endpoint) -> None:
        """A peer that has gone to a relay by itself goes back when it can."""
        peer = self._peers.get(public_key)
        if scope == GLOBAL and peer is not None and self._selection.connection(peer, endpoint) == "relayed":
            self._review_later(public_key)

    def retry(self) -> None:
        """Look now for all peers that do not answer."""
        for key in self._peers:
            if not self._health.is_fresh(GLOBAL, key):
                self._failures.pop(key, None)
                self._begin(key)

    def close(self) -> None:
        self._queue.clear()
        for key in list(self._peers):
            self._stop(key)

    # --- who is looked for, and when ----------------------------------------------------------------------------------

    def _put(self, peer: Peer) -> None:
        key = peer.public_key
        before = self._peers.get(key)
        self._peers[key] = peer
        if before is None or (before.endpoint, before.candidates) != (peer.endpoint, peer.candidates):
            self._leave(key)
            self._failures.pop(key, None)
            if peer.candidates and not self._passes(peer, new=before is None):
                self._allocation.doubt()  # what the peer has lost we may have lost too: a relay that was restarted
                self._begin(key)

    def _passes(self, peer: Peer, *, new: bool) -> bool:
        """Whether a peer that was told is well where it is: its session lasts, and it is at an address that it tells.
        Not one whose path is lost: its session outlasts that, and nobody would look for it again.
        """
        key = peer.public_key
        if not self._health.is_fresh(GLOBAL, key) or self._loss.is_lost(key):
            return False
        return new or self._is_told(peer)

    def _stop(self, key: bytes) -> None:
        self._leave(key)
        self._allocation.permit(key, ())
        self._peers.pop(key, None)
        self._failures.pop(key, None)
        self._tried.pop(key, None)
        self._selection.forget(key)

    def _leave(self, key: bytes) -> None:
        """Do nothing more for a peer for now."""
        self._at_rest.pop(key, None)
        self._queue.pop(key, None)
        for timers in (self._later, self._reviews):
            if (timer := timers.pop(key, None)) is not None:
                timer.cancel()
        if (running := self._running.pop(key, None)) is not None:
            running[0].cancel()  # at whose end another one's turn comes

    def _path_lost(self, key: bytes) -> None:
        log.info("peer %s does not answer any more where it is", keys.text(key))
        self._allocation.doubt()
        self._failures.pop(key, None)
        if key in self._running:
            self._leave(key)  # what was only a review
        self._begin(key)

    def _is_told(self, peer: Peer, *, by_relay: bool = False) -> bool:
        """Whether a peer is where it says that it may be reached, by a relay or without one."""
        activity = self._health.activity(GLOBAL, peer.public_key)
        if activity is None or activity.endpoint is None:
            return False
        at = self._allocation.loopback.remote(activity.endpoint) or activity.endpoint
        through = at != activity.endpoint
        return any(
            (candidate.address, candidate.port) == at and (through or candidate.kind == RELAY) == by_relay
            for candidate in peer_candidates(peer.candidates)
        )

    def _is_relayed(self, peer: Peer) -> bool:
        activity = self._health.activity(GLOBAL, peer.public_key)
        if activity is None or activity.endpoint is None:
            return False
        return self._selection.connection(peer, activity.endpoint) == "relayed"

    def _review_later(self, key: bytes) -> None:
        """Try once in a while whether a direct way to a relayed peer has opened."""
        if key in self._reviews or key in self._running:
            return
        now = time.time()
        pause = next_review(self._config.stun_refresh_interval_secs, phase(self._own_key, key), now) - now
        self._reviews[key] = asyncio.get_running_loop().call_later(pause, self._review, key)

    def _review(self, key: bytes) -> None:
        del self._reviews[key]
        if key in self._running or key in self._queue or key in self._later:
            return
        if not self._health.is_fresh(GLOBAL, key) or not self._is_relayed(self._peers[key]):
            return
        if len(self._running) < REVIEWS_AT_ONCE:
            self._run(key)
        else:
            self._review_later(key)

    def _lost(self, key: bytes) -> None:
        """Note that nothing vouches for a peer any more."""
        peer, activity = self._peers[key], self._health.activity(GLOBAL, key)
        selected = self._selection.of(peer)
        kept_up = peer.keepalive or (selected is not None and selected.keepalive)
        if activity is not None and activity.last_handshake and not kept_up:
            self._at_rest[key] = activity.tx_bytes
        else:
            self._begin(key)

    def _begin(self, key: bytes) -> None:
        """Look for a peer, when it is its turn, if there is more to do than WireGuard does by itself."""
        if key in self._running or key in self._queue:
            return
        self._leave(key)
        peer = self._peers[key]
        given, here = configured_address(peer, self._node.facts), self._known_endpoint(peer)
        if peer.candidates or (self._config.turn_servers and given is not None) or here not in (None, given):
            self._queue[key] = None
            self._fill()

    def _fill(self) -> None:
        while self._queue and len(self._running) < AT_ONCE:
            key = next(iter(self._queue))
            del self._queue[key]
            self._run(key)

    def _run(self, key: bytes) -> None:
        woken = asyncio.Event()
        self._running[key] = (self._spawn(self._look_for(key, woken)), woken)

    def _known_endpoint(self, peer: Peer) -> Endpoint | None:
        activity = self._health.activity(GLOBAL, peer.public_key)
        return activity.endpoint if activity is not None else endpoint_address(peer, self._node.facts)

    # --- one attempt --------------------------------------------------------------------------------------------------

    async def _look_for(self, key: bytes, woken: asyncio.Event) -> None:
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(ALLOCATION_PATIENCE):
                    await self._allocation.settled.wait()
            peer, before = self._peers[key], self._health.activity(GLOBAL, key)
            course, selected = self._course(peer), self._selection.of(peer)
            with self._port.used():
                reached = await self._attempt(peer, course, woken)
            if reached:
                await self._settle(key, before)
            elif course == "review":
                await self._stay(key, selected)
            else:
                await self._give_up(key)
        except (MechanismError, OSError) as error:
            log.error("looking for peer %s: %s", keys.text(key), error)
            self._try_later(key)
        finally:
            if self._running.get(key, (None,))[0] is asyncio.current_task():
                del self._running[key]
                if key in self._peers and self._is_relayed(self._peers[key]):
                    self._review_later(key)
            self._fill()

    def _course(self, peer: Peer) -> Course:
        key = peer.public_key
        activity = self._health.activity(GLOBAL, key)
        if activity is None or activity.endpoint is None or not self._health.is_fresh(GLOBAL, key):
            return "search"
        if self._selection.is_cut_off(peer, activity.endpoint):
            return "cut off"
        return "lost" if self._loss.is_lost(key) else "review"

    def _ways(self, peer: Peer) -> list[Way]:
        activity = self._health.activity(GLOBAL, peer.public_key)
        last = activity.endpoint if activity is not None and activity.last_handshake else None
        if last is not None and last[0].is_loopback:
            last = None
        return ways(
            last,
            configured_address(peer, self._node.facts),
            [
                each
                for each in peer_candidates(peer.candidates)
                if not routed_into_overlay(self._node.state, each.address)
            ],
            versions=self._port.versions or (4, 6),
            relayed=self._allocation.relayed,
            limit=self._config.max_candidate_pairs,
        )

    async def _attempt(self, peer: Peer, course: Course, woken: asyncio.Event) -> bool:
        """Whether the peer was reached."""
        loop = asyncio.get_running_loop()
        key = peer.public_key
        session = course != "search"
        relayed = course == "review" and self._is_relayed(peer)
        found = self._ways(peer)
        if relayed and self._is_told(peer, by_relay=True):
            at = self._known_endpoint(peer)
            found = [way for way in found if not way.relayed and way.endpoint != at]
        attempt = Attempt(
            found,
            loop.time(),
            {"cut off": 0.0, "review": REVIEW}.get(course, self._config.hole_punch_timeout_secs),
            symmetric=self._reflexive.symmetric,
            after=self._tried.get(key, 0),
            hold=HOLD_CUT_OFF if course == "cut off" else HOLD,
            course=course,
        )
        self._permit(peer)

        def answered(way: Way) -> None:
            attempt.answered(way, loop.time())
            woken.set()

        def met(way: Way) -> None:
            attempt.met(way, loop.time())
            woken.set()

        pointed_at: Way | None = None
        speak_at = math.inf
        heard = self._heard(key, session)
        with self._checks.of(key, answered, met):
            while (due := attempt.next_timeout()) is not None:
                for way in attempt.checks_to_send(loop.time()):
                    self._checks.check(key, way)
                attempt.advance(loop.time())
                if attempt.selected is not None and attempt.selected != pointed_at:
                    pointed_at = attempt.selected
                    # With a session no handshake is due: a keepalive takes the other side along.
                    yields = attempt.sure and not session and self._own_key < key
                    speak_at = loop.time() + (YIELD if yields else 0.0)
                    await self._selection.point(peer, pointed_at, silently=yields or session)
                if pointed_at is not None and loop.time() >= speak_at:
                    await self._selection.point(peer, pointed_at)
                    speak_at = math.inf
                woken.clear()
                due = min(attempt.next_timeout() or due, speak_at)
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(due):
                        await woken.wait()
                if (now_heard := self._heard(key, session)) <= heard:
                    continue
                heard = now_heard
                if not relayed or (
                    pointed_at is not None and self._known_endpoint(peer) == self._selection.endpoint_of(pointed_at)
                ):
                    attempt.reached()
                elif pointed_at is not None:  # what was still on its way by the relay has taken it back
                    await self._selection.point(peer, pointed_at, silently=True)
                    speak_at = loop.time()
        self._tried[key] = attempt.tried
        return attempt.outcome == "reached"

    def _heard(self, key: bytes, session: bool) -> int:
        """What grows when a peer is heard of: its last handshake, or, while its session lasts, what it answers."""
        if session:
            return self._loss.answers(key)
        activity = self._health.activity(GLOBAL, key)
        return activity.last_handshake if activity is not None else 0

    def _permit(self, peer: Peer) -> None:
        """Let a peer reach us through our relay, from any of its addresses."""
        candidates = peer_candidates(peer.candidates)
        self._allocation.permit(peer.public_key, [(candidate.address, candidate.port) for candidate in candidates])

    async def _settle(self, key: bytes, before: Activity | None) -> None:
        """A peer is reached: let it stay where it is, and say so."""
        peer, activity = self._peers[key], self._health.activity(GLOBAL, key)
        self._failures.pop(key, None)
        self._tried.pop(key, None)
        if activity is None or activity.endpoint is None:
            return
        at = activity.endpoint
        told = endpoint_address(peer, self._node.facts) != at  # a peer's own move is told where it is seen
        connection, shown = self._selection.connection(peer, at), self._allocation.loopback.remote(at) or at
        if connection != "relayed":
            self._allocation.permit(key, ())
        await self._selection.put(peer, self._selection.settled(peer, at))
        log.info("peer %s is reached at %s, %s", keys.text(key), endpoint_text(shown), connection)
        was = before.endpoint if before is not None and before.last_handshake else None
        if not told and at not in (was, configured_address(peer, self._node.facts)):
            self._health.publish(wire.NatEndpointChanged(keys.text(key), endpoint_text(shown)))

    async def _stay(self, key: bytes, selected: Selected | None) -> None:
        """Let the peer keep the way that it has: no better one was found."""
        if not self._is_relayed(self._peers[key]):
            self._allocation.permit(key, ())
        await self._selection.put(self._peers[key], selected)

    async def _give_up(self, key: bytes) -> None:
        """Go back to what is configured, until the next attempt."""
        failures = self._failures.get(key, 0)
        log.log(logging.DEBUG if failures else logging.INFO, "peer %s is not to be reached yet", keys.text(key))
        self._allocation.permit(key, ())
        await self._selection.put(self._peers[key], None)
        self._try_later(key)

    def _try_later(self, key: bytes) -> None:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        now = time.time()
        pause = next_attempt(failures - 1, phase(self._own_key, key), now) - now
        self._later[key] = asyncio.get_running_loop().call_later(pause, self._begin, key)
