"""One socket to one TURN server, and the allocation that is had through it.

Owns: the socket, the timer, and how long the allocation lasts.  Must not know: the dialogue with the server
(`proto.turn`), which servers there are (`allocation`), or what the datagrams mean.
"""

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import suppress

from overlayd import wire
from overlayd.daemon.nat.loopback import AT_ONCE, DATAGRAM, enlarge_buffers
from overlayd.model.candidates import Endpoint
from overlayd.proto.stun import TRANSACTION_ID_SIZE
from overlayd.proto.turn import Allocated, Expired, Failed, Received, Refused, TurnClient

# Our own constants, seconds.
SETTLED = 60.0  # how old an allocation is before the server's words on a permission count as words on the allocation
SILENCE = 5.0  # while something is sent: then the server is asked whether it still knows us

# What a server that was restarted answers to a permission for an allocation that it does not know: as RFC 8656,
# section 5, has it, and as coturn does.
_GONE = (437, 400)


class TurnConnection:
    """relayed: where we are reached through it, None before and after.  first: done when the server has given an
    allocation or a reason for none.  over: done when there is none any more.

    server: where it is.  login: what it is asked with.  family: 4 or 6, of the relayed address.  received: called with
    what peers sent.  refused: called with each peer to whom it does not relay.  OSError: there is no way to the server.
    """

    def __init__(
        self,
        server: Endpoint,
        login: wire.TurnServer,
        family: int,
        received: Callable[[bytes, Endpoint], None],
        refused: Callable[[Refused], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self.name = login.addr
        self.relayed: Endpoint | None = None
        self.first: asyncio.Future[Allocated | Failed | Expired] = loop.create_future()
        self.over: asyncio.Future[Failed | Expired] = loop.create_future()
        self._received, self._refused = received, refused
        self._timer: asyncio.TimerHandle | None = None
        self._due: float | None = None
        self._since = self._heard = self._asked = loop.time()
        self._closed = False
        self._socket = _connected(server)
        self._client = TurnClient(
            login.username, login.credential, lambda: os.urandom(TRANSACTION_ID_SIZE), loop.time(), family=family
        )
        loop.add_reader(self._socket, self._read)
        self._flush()

    def close(self) -> None:
        """Give the allocation back.  Idempotent."""
        if self._closed:
            return
        self._client.release(asyncio.get_running_loop().time())
        self._flush()
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        self.relayed = None

    def permit(self, peer: Endpoint) -> None:
        """Let a peer reach us."""
        self._client.permit(peer, asyncio.get_running_loop().time())
        self._flush()

    def forget(self, peer: Endpoint) -> None:
        """Let a peer reach us no longer."""
        self._client.forget(peer)

    def send(self, datagram: bytes, to: Endpoint) -> None:
        """Send a datagram to a peer."""
        now = asyncio.get_running_loop().time()
        self._client.send(to, datagram, now)
        if now > self._heard + SILENCE:
            self._probe(now)
        self._flush()

    def doubt(self) -> None:
        """Find out whether the allocation is still there: a server that was restarted has forgotten it."""
        self._probe(asyncio.get_running_loop().time())
        self._flush()

    def _probe(self, now: float) -> None:
        if now > self._asked + SILENCE:
            self._asked = now
            self._client.probe(now)

    def _read(self) -> None:
        now = asyncio.get_running_loop().time()
        for _ in range(AT_ONCE):
            try:
                datagram = self._socket.recv(DATAGRAM)
            except BlockingIOError:
                break
            except OSError:  # nobody listens there now: perhaps for good
                self._probe(now)
                continue
            self._heard = now
            self._client.datagram_received(datagram, now)
        self._flush()

    def _flush(self) -> None:
        """Heed what happened, send what is to be sent, and set the timer anew."""
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        while True:
            datagrams, events = self._client.datagrams_to_send(loop.time()), self._client.events()
            if not datagrams and not events:
                break
            for datagram in datagrams:
                with suppress(OSError):  # a full buffer or no route: as lost on the way
                    self._socket.send(datagram)
            for event in events:
                match event:
                    case Received(peer, data):
                        self._received(data, peer)
                    case Allocated(relayed):
                        self.relayed, self._since = relayed, loop.time()
                        if not self.first.done():
                            self.first.set_result(event)
                    case Refused(_, failure) if failure.code in _GONE and loop.time() > self._since + SETTLED:
                        self._end(Expired(failure))
                    case Refused():
                        self._refused(event)
                    case Failed() | Expired():
                        self._end(event)
        due = self._client.next_timeout()
        if due != self._due:  # it stays the same while data passes
            self._due = due
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_at(due, self._wake) if due is not None else None

    def _wake(self) -> None:
        self._due = None
        self._flush()

    def _end(self, event: Failed | Expired) -> None:
        self.relayed = None
        for future in (self.first, self.over):
            if not future.done():
                future.set_result(event)


def _connected(server: Endpoint) -> socket.socket:
    family = socket.AF_INET if server[0].version == 4 else socket.AF_INET6
    made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        enlarge_buffers(made)
        made.connect((str(server[0]), server[1]))
    except OSError:
        made.close()
        raise
    return made
