"""STUN on WireGuard's port, while somebody needs it.

Owns: the raw sockets, open as long as they are used, and who hears what arrives.  Must not know: what is said.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from overlayd.daemon.listeners import Listeners
from overlayd.errors import MechanismError
from overlayd.linux.shared_port import SharedPort
from overlayd.model.candidates import Endpoint

log = logging.getLogger(__name__)

_AT_ONCE = 64  # our own constant: datagrams read before other work gets its turn


class StunPort:
    """port: UDP.  versions: the IP versions that can be used; none without CAP_NET_RAW."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listeners = Listeners[Callable[[bytes, Endpoint], None]]()
        self._users = 0
        self._sockets: dict[int, SharedPort] = {}

    @property
    def versions(self) -> set[int]:
        return set(self._sockets)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside, the port sends and hears."""
        if not self._users:
            self._open()
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._close()

    def subscribe(self, listener: Callable[[bytes, Endpoint], None]) -> AbstractContextManager[None]:
        """Give a listener each datagram that is heard, and its sender, until the block ends."""
        return self._listeners.with_another(listener)

    def send(self, datagram: bytes, to: Endpoint) -> None:
        """Send a datagram.  Where there is no way, there is none: who sends hears no answer."""
        shared = self._sockets.get(to[0].version)
        if shared is not None:
            try:
                shared.send(datagram, to)
            except MechanismError as error:
                log.debug("%s", error)

    def _open(self) -> None:
        for version in (4, 6):
            try:
                shared = self._sockets[version] = SharedPort(version, self._port)
            except MechanismError as error:
                log.debug("%s", error)
            else:
                asyncio.get_running_loop().add_reader(shared.socket, self._read, shared)

    def _close(self) -> None:
        for shared in self._sockets.values():
            asyncio.get_running_loop().remove_reader(shared.socket)
            shared.close()
        self._sockets.clear()

    def _read(self, shared: SharedPort) -> None:
        for _ in range(_AT_ONCE):
            received = shared.receive()
            if received is None:
                return
            for listener in list(self._listeners):
                listener(*received)
