"""This node's address on a TURN server, and the way of relayed peers' datagrams through it.

Owns: the socket to the server, which server it is, and who may reach us.  Must not know: the dialogue with the server
(`proto.turn`), where WireGuard finds a relayed peer (`loopback`), or when a peer is relayed (`traversal`).
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

from overlayd import wire
from overlayd.daemon.nat.loopback import AT_ONCE, DATAGRAM, Loopback, enlarge_buffers
from overlayd.daemon.nat.reflexive import resolve
from overlayd.daemon.peers.lookup import Lookups
from overlayd.model.candidates import Endpoint
from overlayd.model.layout import endpoint_text
from overlayd.proto.stun import TRANSACTION_ID_SIZE, is_stun
from overlayd.proto.turn import Allocated, Event, Expired, Failed, Received, Refused, TurnClient

log = logging.getLogger(__name__)

# Our own constant: seconds before servers are asked again of which none gives an allocation, whatever the reason:
# somebody may have repaired it.
PAUSE = 60.0

# What a server that was restarted answers to a permission for an allocation that it does not know: as RFC 8656,
# section 5, has it, and as coturn does.
_GONE = (437, 400)


class Allocation:
    """An allocation on the first of the servers that gives one.  relayed: where we are reached through it, None while
    there is none.  settled: set once it is known whether there is one.  failure: why there is none, in words, once
    that is known.  loopback: where WireGuard meets it.

    wg_port: WireGuard's.  heard: called with STUN that came through the relay, and its sender.
    """

    def __init__(
        self,
        servers: Sequence[wire.TurnServer],
        lookups: Lookups,
        wg_port: int,
        heard: Callable[[bytes, Endpoint], None],
    ) -> None:
        self.relayed: Endpoint | None = None
        self.settled = asyncio.Event()
        self.failure = ""
        self.loopback = Loopback(wg_port, self.send)
        self._servers = servers
        self._lookups = lookups
        self._heard = heard
        self._client: TurnClient | None = None
        self._server: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due: float | None = None
        self._since = 0.0  # when the allocation was made, in the loop's time
        self._over: asyncio.Future[Failed | Expired] | None = None
        self._permitted: dict[bytes, frozenset[Endpoint]] = {}
        if not servers:
            self.settled.set()

    async def watch(self) -> None:
        """Keep an allocation, for ever."""
        while True:
            pauses = [await self._use(server) for server in self._servers]
            self.settled.set()
            await asyncio.sleep(min(pauses))

    def close(self) -> None:
        """Give everything back."""
        self._disconnect()
        self.loopback.close()

    def permit(self, peer: bytes, endpoints: Collection[Endpoint]) -> None:
        """Let a peer (its public key) reach us from these addresses, through this and later allocations, and no longer
        from others.
        """
        before = self._permitted.pop(peer, frozenset())
        if endpoints:
            self._permitted[peer] = frozenset(endpoint for endpoint in endpoints if endpoint[0].version == 4)
        if self._client is not None:
            now = asyncio.get_running_loop().time()
            for endpoint in self._permitted.get(peer, frozenset()) - before:
                self._client.permit(endpoint, now)
            for endpoint in before - self._all_permitted():
                self._client.forget(endpoint)
            self._flush()

    def send(self, datagram: bytes, to: Endpoint) -> None:
        """Send a datagram through the relay."""
        if self._client is not None:
            self._client.send(to, datagram, asyncio.get_running_loop().time())
            self._flush()

    def _all_permitted(self) -> frozenset[Endpoint]:
        return frozenset[Endpoint]().union(*self._permitted.values())

    async def _use(self, server: wire.TurnServer) -> float:
        """Have an allocation on a server for as long as it lasts.  Returns after how many seconds to ask again."""
        try:
            found = await resolve(self._lookups, server.addr)
            self._connect(found[0])
        except (OSError, ValueError) as error:
            self._complain(f"TURN server {server.addr}: {error or 'no answer'}")
            return PAUSE
        try:
            while True:
                over = await self._hold(server)
                if isinstance(over, Failed):
                    self._complain(f"TURN server {server.addr}: {over.failure}")
                    return over.retry_after or PAUSE
                log.warning("TURN server %s has ended the allocation: %s", server.addr, over.failure)
        finally:
            self._disconnect()

    def _complain(self, failure: str) -> None:
        log.log(
            logging.DEBUG if failure == self.failure else logging.WARNING, "no relay, asked again later: %s", failure
        )
        self.failure = failure

    def _connect(self, server: Endpoint) -> None:
        family = socket.AF_INET if server[0].version == 4 else socket.AF_INET6
        self._server = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            enlarge_buffers(self._server)
            self._server.connect((str(server[0]), server[1]))
        except OSError:
            self._server.close()
            self._server = None
            raise
        asyncio.get_running_loop().add_reader(self._server, self._read, self._server)

    def _disconnect(self) -> None:
        loop = asyncio.get_running_loop()
        if self._client is not None:
            self._client.release(loop.time())
            self._flush()
        if self._timer is not None:
            self._timer.cancel()
        if self._server is not None:
            loop.remove_reader(self._server)
            self._server.close()
        self._client = self._server = self._timer = self._due = self.relayed = None

    async def _hold(self, server: wire.TurnServer) -> Failed | Expired:
        """Have one allocation, to its end."""
        loop = asyncio.get_running_loop()
        self._over = loop.create_future()
        self._client = TurnClient(
            server.username, server.credential, lambda: os.urandom(TRANSACTION_ID_SIZE), loop.time()
        )
        self._flush()
        return await self._over

    def _read(self, server: socket.socket) -> None:
        now = asyncio.get_running_loop().time()
        for _ in range(AT_ONCE):
            try:
                datagram = server.recv(DATAGRAM)
            except BlockingIOError:
                break
            except OSError:  # nobody listens there: the client finds out by itself
                continue
            if self._client is not None:
                self._client.datagram_received(datagram, now)
        self._flush()

    def _flush(self) -> None:
        """Heed what happened, send what is to be sent, and set the timer anew."""
        client, server = self._client, self._server
        if client is None or server is None:
            return
        loop = asyncio.get_running_loop()
        while True:
            datagrams, events = client.datagrams_to_send(loop.time()), client.events()
            if not datagrams and not events:
                break
            for datagram in datagrams:
                with suppress(OSError):  # a full buffer or no route: as lost on the way
                    server.send(datagram)
            for event in events:
                self._apply(client, event)
        due = client.next_timeout()
        if due != self._due:  # it stays the same while data passes
            self._due = due
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_at(due, self._wake) if due is not None else None

    def _wake(self) -> None:
        self._due = None
        self._flush()

    def _apply(self, client: TurnClient, event: Event) -> None:
        now = asyncio.get_running_loop().time()
        match event:
            case Received(peer, data) if is_stun(data):
                self._heard(data, peer)
            case Received(peer, data):
                self.loopback.deliver(data, peer)
            case Allocated(relayed):
                self.relayed, self.failure, self._since = relayed, "", now
                self.settled.set()
                log.info("reached through a relay at %s", endpoint_text(relayed))
                for endpoint in self._all_permitted():
                    client.permit(endpoint, now)
            case Refused(_, failure) if failure.code in _GONE and now > self._since + PAUSE:
                self._end(Expired(failure))
            case Refused(peer, failure):
                log.debug("the TURN server does not relay to %s: %s", endpoint_text(peer), failure)
            case Failed() | Expired():
                self._end(event)

    def _end(self, event: Failed | Expired) -> None:
        self.relayed = None
        if self._over is not None and not self._over.done():
            self._over.set_result(event)
