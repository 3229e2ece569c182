"""The sockets from which upstream servers are asked by datagrams.

Owns: them, and how long each is used.  Must not know: what is asked, when (`daemon.dns.exchange`), how answers are told
from forgeries (`linux.asking`).

RFC 5452 section 9.2: who forges an answer has to guess port and id.  A server is asked from one of SOCKETS ports, by
chance, each of which the kernel chose by chance, and which are in use for a short time only: what can be learnt of one
is soon worthless, and the next question is not sent from it.
"""

import asyncio
import os
import select
import socket
import time
from collections.abc import Callable, Collection
from typing import Protocol

from overlayd._fast.dnsforward import Query
from overlayd.daemon.dns.upstreams import Upstream
from overlayd.linux.asking import Asking, random16

# Our own constants.
SOCKETS = 8  # of a server, a power of two
LIFETIME = 2.0  # seconds for which a socket is used
QUERIES = 256  # for which it is used
SLICE = 0.0005  # seconds of taking answers, then the loop looks at its other work


class Asker(Protocol):
    """For whom a query is sent."""

    def receive(self, response: bytes) -> None:
        """A datagram has come that answers the query, though what it says may be broken."""

    def unreachable(self, error: OSError) -> None:
        """The server, or its host, or a router on the way has said that nobody takes datagrams there."""


class Port:
    """One of the sockets."""

    def __init__(self, server: Upstream, now: float) -> None:
        family = socket.AF_INET6 if ":" in server.address else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self.socket.connect(tuple(server))  # hereafter the kernel drops what others send
        except OSError:
            self.socket.close()
            raise
        self.descriptor = self.socket.fileno()
        self.server = server
        self.asking: Asking[Asker] = Asking(self.descriptor)
        self.until = now + LIFETIME
        self.left = QUERIES
        self.retired = False  # it sends no more, and is closed when nobody waits for an answer


class UpstreamSockets:
    """All of them, behind one descriptor of the event loop.  late: hears of servers that answer when nobody waits any
    more.
    """

    def __init__(self, late: Callable[[Upstream], None]) -> None:
        self._late = late
        self._ports: dict[Upstream, list[Port | None]] = {}
        self._open: dict[int, Port] = {}  # by descriptor, those that are retired as well
        self._ready = select.epoll()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._ready.fileno(), self._readable)

    def ask(self, server: Upstream, query: Query, asker: Asker, *, edns: bool) -> tuple[Port, int]:
        """Send a query; returns what `forget` takes.  OSError when it cannot be sent."""
        port = self._choose(server)
        try:
            id = port.asking.ask(query, asker, edns=edns)
        except OSError:
            self._retire(server, port)
            raise
        port.left -= 1
        return port, id

    def forget(self, port: Port, id: int) -> None:
        """The answer is there, or no longer wanted."""
        port.asking.forget(id)
        if port.retired:
            self._close_if_unused(port)

    def keep(self, servers: Collection[Upstream]) -> None:
        """Only these servers are asked from now on."""
        for server in [server for server in self._ports if server not in servers]:
            for port in self._ports[server]:
                if port is not None:
                    self._retire(server, port)
            del self._ports[server]

    def close(self) -> None:
        """Close all."""
        self._loop.remove_reader(self._ready.fileno())
        for port in self._open.values():
            port.socket.close()
        self._ready.close()

    def _choose(self, server: Upstream) -> Port:
        ports = self._ports.setdefault(server, [None] * SOCKETS)
        chosen = random16() % SOCKETS
        port = ports[chosen]
        now = time.monotonic()
        if port is not None and (now >= port.until or not port.left):
            self._retire(server, port)
            port = None
        if port is None:
            port = ports[chosen] = Port(server, now)
            self._open[port.descriptor] = port
            self._ready.register(port.descriptor, select.EPOLLIN)
        return port

    def _retire(self, server: Upstream, port: Port) -> None:
        ports = self._ports.get(server, [])
        if port in ports:
            ports[ports.index(port)] = None
        port.retired = True
        self._close_if_unused(port)

    def _close_if_unused(self, port: Port) -> None:
        if not len(port.asking) and self._open.pop(port.descriptor, None) is port:
            self._ready.unregister(port.descriptor)
            port.socket.close()

    def _readable(self) -> None:
        end = time.monotonic() + SLICE
        for descriptor, _ in self._ready.poll(0, SOCKETS):
            port = self._open.get(descriptor)
            if port is None:
                continue  # closed by what came of the one before
            answers, late, failure = port.asking.receive()
            if late:
                self._late(port.server)
            for asker, response in answers:
                asker.receive(response)
            if failure:
                error = OSError(failure, os.strerror(failure))  # its subclass for that number
                port.left = 0
                for asker in port.asking.owners():
                    asker.unreachable(error)
            if time.monotonic() > end:
                break
