"""Renewing a device: the process that serves it ends, and the newest program serves it from then on.

Owns: the order, and what the new device is told of the old one.  Must not know: who asks, or which program it is.

No row changes, so a crash in between costs nothing but time: the next start finds a device missing, and makes it.  The
sessions end with the process.  So each peer that had one is sent a handshake at once, to where the old device saw it
last; what it sends until that is answered is lost.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import msgspec

from overlayd import fault
from overlayd.daemon.change import kernel_layout
from overlayd.daemon.change.apply import Kernel
from overlayd.daemon.change.node import Node
from overlayd.errors import MechanismError
from overlayd.linux.wireguard.backend import Backend
from overlayd.model.health import FRESH
from overlayd.model.layout import Layout, of_device
from overlayd.model.objects import Address, Device, DevicePeer, Step

log = logging.getLogger(__name__)

# Our own constants.
PATIENCE = 1.0  # seconds that handshakes are waited for
POLL = 0.005  # seconds between two looks for them
WAKING = 1  # seconds: a keepalive is sent as soon as it is switched on, and brings a handshake


class Renewal(msgspec.Struct, frozen=True):
    """What became of a device.  before, after: the versions, empty when unknown.  down: seconds without a device that
    could send or receive.  sessions: peers that had one; answered: those that have one again; restored: seconds from
    the end of the old process to the last of these.
    """

    device: str
    before: str
    after: str
    down: float
    sessions: int
    answered: int
    restored: float


async def renew(node: Node, scope: str, *, force: bool) -> Renewal | None:
    """Renew the device of a scope, while nothing else changes.  None when that is not there, or when its program is the
    one that would serve a new device (unless `force`).  MechanismError: the old process does not end, or the new device
    cannot be made, which is tried again in the background.
    """
    backend = node.kernel.backend
    if backend is None:
        return None
    work = _Work(backend, force)
    async with node.comparing(partial(of_device, scope=scope), work.end) as steps:
        failures = await node.repair(work.awake(steps))
        # Once more at once: a node should not be without its device for one refusal.
        failures = await node.repair([step for step, _ in failures])
        if failures:
            raise failures[0][1]
        return await node.run(work.finish)


def _pass(point: str, device: str) -> None:
    try:
        fault.point(point)
    except OSError as error:
        raise MechanismError("renew WireGuard device", device, error.errno or 0) from error


class _Work:
    """One renewal; its methods but `awake` block."""

    def __init__(self, backend: Backend, force: bool) -> None:
        self._backend = backend
        self._force = force
        self._device = ""
        self._before = ""
        self._sessions: dict[bytes, tuple[Address, int] | None] = {}  # by public key, where each peer was seen
        self._woken: list[Step] = []
        self._began = 0.0

    def end(self, kernel: Kernel, want: Layout) -> Layout:
        """End the old process.  Returns what the kernel has of `want` then."""
        device = next((thing.name for thing in want.values() if isinstance(thing, Device)), "")
        if not device or (not self._force and self._backend.is_current(device)):
            return want
        try:
            now, peers = time.time(), self._backend.read(device).peers
            self._sessions = {key: peer.endpoint for key, peer in peers.items() if now - peer.last_handshake < FRESH}
        except MechanismError as error:
            log.warning("the sessions of %s are not known: %s", device, error)
        self._device, self._before = device, self._backend.version(device)
        self._began = time.monotonic()
        _pass("renewal:end", device)
        try:
            self._backend.delete(device)
        except MechanismError as error:
            if self._backend.alive(device):
                raise
            log.warning("%s; it is made again", error)  # what is left of it goes then
        return kernel_layout.look(kernel, want)

    def awake(self, steps: Sequence[Step]) -> list[Step]:
        """The steps, with peers that had a session where they were seen, and with a keepalive that wakes them."""
        changed = []
        for step in steps:
            peer = step.want
            if not isinstance(peer, DevicePeer) or peer.public_key not in self._sessions:
                changed.append(step)
                continue
            seen = self._sessions[peer.public_key] or peer.endpoint
            awake = replace(peer, endpoint=seen, keepalive=peer.keepalive or WAKING)
            self._woken.append(Step(awake, replace(awake, keepalive=peer.keepalive)))
            changed.append(Step(step.have, awake, step.along))
        return changed

    def finish(self) -> Renewal | None:
        """Wait for handshakes, and let peers sleep again that may."""
        if not self._device:
            return None
        down = time.monotonic() - self._began
        try:
            answered, restored = self._await_handshakes()
        finally:
            self._backend.set_peers(self._device, self._woken)
        done = Renewal(
            device=self._device,
            before=self._before,
            after=self._backend.version(self._device),
            down=down,
            sessions=len(self._sessions),
            answered=answered,
            restored=restored,
        )
        log.info(
            "%s is renewed: version %s, was %s; down for %d ms, %d of %d sessions are back after %d ms",
            done.device,
            done.after or "unknown",
            done.before or "unknown",
            done.down * 1000,
            done.answered,
            done.sessions,
            done.restored * 1000,
        )
        return done

    def _await_handshakes(self) -> tuple[int, float]:
        """How many peers have a session again, and after how many seconds the last one had."""
        deadline = time.monotonic() + PATIENCE
        answered, restored = 0, 0.0
        while answered < len(self._woken) and time.monotonic() < deadline:
            activity = self._backend.activity(self._device)
            shaken = sum(1 for key in self._sessions if key in activity and activity[key].last_handshake)
            if shaken > answered:
                answered, restored = shaken, time.monotonic() - self._began
            else:
                time.sleep(POLL)
        return answered, restored
