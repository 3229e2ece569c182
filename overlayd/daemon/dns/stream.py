"""The TCP side of the name server.

Owns: its connections, their turns, and what all may hold together.  Must not know: which sockets listen
(`daemon.dns.nameserver`), what is in a message (`_fast.nametable`, `_fast.dnscache`), or who else is asked
(`daemon.dns.forwarder`).

RFC 7766: a client may send many queries before it reads, and is answered in the order in which answers are there.
"""

import asyncio
import logging
import time
from collections import deque
from ipaddress import ip_address
from typing import cast

from overlayd._fast.dnscache import Cache
from overlayd._fast.nametable import NameTable
from overlayd.daemon.dns.forwarder import Forwarder, Origin
from overlayd.model.objects import Network
from overlayd.model.shares import Shares
from overlayd.proto import dns

log = logging.getLogger(__name__)

# Our own constants.
CONNECTIONS = 128
IDLE = 10.0  # seconds without a query or an answer; RFC 7766 section 6.2.3 wants a few
IN_FLIGHT = 64  # queries of a connection that wait for an upstream; it is not read meanwhile
TURN = 16  # queries of a connection before it is the next one's turn
SLICE = 0.001  # seconds of serving, then the loop looks at its other sockets
_LONGEST = 2 + dns.MAX_MESSAGE  # bytes of a message with its length


class Streams:
    """All connections.  admitted: the network whose hosts may connect, None for nobody."""

    def __init__(self, table: NameTable, cache: Cache, forwarder: Forwarder) -> None:
        self.table = table
        self.cache = cache
        self.forwarder = forwarder
        self.admitted: Network | None = None
        self.connections: set[Stream] = set()
        self._shares: Shares[Stream] = Shares(CONNECTIONS)
        self._queue: deque[Stream] = deque()
        self._scheduled = False
        self._sweeping: asyncio.TimerHandle | None = None

    def connect(self) -> "Stream":
        """The protocol of a new connection (asyncio's factory)."""
        return Stream(self)

    def admits(self, connection: "Stream") -> bool:
        """Take a new connection, or not.  When there are too many, one gives way, by `model.shares`."""
        source = ip_address(connection.client.partition("%")[0])
        if self.admitted is None or source not in self.admitted:
            return False
        connection.source = source.packed
        self.connections.add(connection)
        displaced = self._shares.add(connection, connection.address, connection.client)
        if displaced is not None:
            log.debug("DNS: too many connections; one of %s is closed", displaced.client)
            displaced.transport.abort()
        if self._sweeping is None:
            self._sweep()
        return True

    def lost(self, connection: "Stream") -> None:
        """Forget a connection, whether it was taken or not."""
        self.connections.discard(connection)
        self._shares.remove(connection)

    def touch(self, connection: "Stream") -> None:
        """It has asked, or was answered: others give way before it does."""
        connection.active = time.monotonic()
        self._shares.touch(connection)

    def queue(self, connection: "Stream") -> None:
        """Give the connection a turn, once."""
        if not connection.queued:
            connection.queued = True
            self._queue.append(connection)
            self._serve_soon()

    def close(self, address: str | None = None) -> None:
        """Close the connections to one of our addresses, or all."""
        for connection in list(self.connections):
            if address in (None, connection.address):
                connection.transport.abort()
        if address is None and self._sweeping is not None:
            self._sweeping.cancel()

    def _serve(self) -> None:
        end = time.monotonic() + SLICE
        self._scheduled = False
        while self._queue and time.monotonic() < end:
            connection = self._queue.popleft()
            connection.queued = False
            connection.serve()
        if self._queue:
            self._serve_soon()

    def _serve_soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._serve)

    def _sweep(self) -> None:
        """Close the idle ones, once a second while there are any connections."""
        oldest = time.monotonic() - IDLE
        for connection in list(self.connections):
            if connection.active < oldest:
                connection.transport.abort()
        self._sweeping = asyncio.get_running_loop().call_later(1.0, self._sweep) if self.connections else None


class Stream(asyncio.Protocol):
    """One connection.  client, address: the other end, and ours; source: the former, packed.  active: when it last
    asked or was answered.
    """

    def __init__(self, streams: Streams) -> None:
        self.queued = False
        self.active = time.monotonic()
        self.client = self.address = ""
        self.source = b""
        self.transport: asyncio.Transport
        self._streams = streams
        self._received = bytearray()
        self._in_flight = 0
        self._unread = False  # the client does not read its answers
        self._ended = False  # it will ask no more

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        peer, own = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        self.client, self.address = (peer[0], own[0]) if peer and own else ("", "")
        if not self.client or not self._streams.admits(self):
            self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._received.clear()
        self._streams.lost(self)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if len(self._received) > _LONGEST:
            self.transport.pause_reading()
        self._streams.queue(self)

    def eof_received(self) -> bool:
        self._ended = True
        self._streams.queue(self)
        return True  # what was asked is still answered

    def pause_writing(self) -> None:
        self._unread = True

    def resume_writing(self) -> None:
        self._unread = False
        self._streams.queue(self)

    def serve(self) -> None:
        """Answer some of what was asked, and see to the rest later."""
        if self.transport.is_closing():
            return
        for _ in range(TURN):
            if self._unread or self._in_flight >= IN_FLIGHT:
                return
            size = int.from_bytes(self._received[:2], "big")
            if len(self._received) < 2 + max(size, 1):
                break
            message = bytes(self._received[2 : 2 + size])
            del self._received[: 2 + size]
            self._answer(message)
        else:
            self._streams.queue(self)
            return
        if self._ended and not self._in_flight:
            self.transport.close()
        elif not self._ended:
            self.transport.resume_reading()

    def _answer(self, message: bytes) -> None:
        streams = self._streams
        streams.touch(self)
        response = streams.table.respond(message, True, self.source)
        if response is None:
            streams.forwarder.follow_servers()
            response = streams.cache.respond(message, True, self.source, self.active)
            if streams.cache.refresh:
                streams.forwarder.refresh(message)
        if response is None:
            self._in_flight += 1
            streams.forwarder.forward(message, self.address, self.source, self._forwarded, stream=True)
        elif response:
            self.transport.write(dns.frame(response))

    def _forwarded(self, response: bytes, origin: Origin) -> None:
        self._in_flight -= 1
        if not self.transport.is_closing():
            self._streams.touch(self)
            if response:
                self.transport.write(dns.frame(response))
            self._streams.queue(self)
