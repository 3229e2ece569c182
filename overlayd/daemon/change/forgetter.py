"""Forgetting the connections of released addresses, and those that break a rule, behind the answers.

Owns: one thread that walks the connection tracking table, and which addresses it has yet to look for.  Must not know:
who held an address.

A walk costs 11 ms of a processor whatever it looks for, so the releases of a while share one.  Who takes an address
over has to wait for the end of its walk, but does not wait for its beginning.
"""

import logging
from _thread import start_new_thread
from collections.abc import Iterable
from threading import Condition

from overlayd.errors import MechanismError
from overlayd.linux import conntrack
from overlayd.linux.threads import REMEDY
from overlayd.model.connections import Rules
from overlayd.model.objects import Address

log = logging.getLogger(__name__)

# Our own constant: seconds between two walks, so that a node where containers come and go spends 2 % of a processor on
# them.  Addresses are reused last, so hardly anybody takes one over within it.
PAUSE = 0.5


class Forgetter:
    """Forgets connections in a thread of its own.  Any thread may call."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._waiting: set[Address] = set()
        self._walking: set[Address] = set()
        self._rules: Rules | None = None  # what breaks them is sought
        self._urgent = False
        self._at_work = False

    def forget(self, addresses: Iterable[Address]) -> None:
        """Forget the connections of these addresses soon."""
        with self._changed:
            self._waiting.update(addresses)
            if self._waiting:
                self._start()

    def forget_what_breaks(self, rules: Rules) -> None:
        """Forget the connections that break these rules, at once: they are those of now."""
        with self._changed:
            self._rules = rules
            self._start()
            self._hurry()

    def wait_for(self, address: Address) -> None:
        """Return once nothing is left of an earlier holder of the address."""
        with self._changed:
            if address in self._waiting:
                self._hurry()
            idle = address in self._waiting and self._take_up()
        if idle:
            self._walk()
        with self._changed:
            self._changed.wait_for(lambda: address not in self._waiting and address not in self._walking)

    def close(self) -> None:
        """Wait until everything is forgotten."""
        with self._changed:
            self._hurry()
            idle = bool(self._waiting or self._rules is not None) and self._take_up()
        if idle:
            self._walk()
        with self._changed:
            self._changed.wait_for(lambda: not self._at_work)

    def _start(self) -> None:
        if self._take_up():
            try:
                start_new_thread(self._walk, ())  # `Thread.start` waits until it runs, and we are on the event loop
            except RuntimeError:  # then who has to wait for it does it
                self._at_work = False
                log.warning("connections of addresses that were given back are forgotten later: no thread: %s", REMEDY)

    def _take_up(self) -> bool:
        """Whether nobody walks; then the caller does from now on."""
        idle = not self._at_work
        self._at_work = True
        return idle

    def _hurry(self) -> None:
        self._urgent = True
        self._changed.notify_all()

    def _walk(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._urgent, PAUSE)
                self._urgent = False
                self._walking, self._waiting = self._waiting, set()
                rules, self._rules = self._rules, None
            try:
                conntrack.forget(self._walking)
                if rules is not None and (broken := conntrack.forget_what_breaks(rules)):
                    log.warning("%d connections that began while our rules were away break them, and are cut", broken)
            except MechanismError as error:
                log.error("%s", error)
            except Exception:
                log.exception("forgetting connections failed")  # who waits for an address must not wait forever
            with self._changed:
                self._walking = set()
                done = not self._waiting and self._rules is None
                if done:
                    self._at_work = False
                self._changed.notify_all()
            if done:
                return
