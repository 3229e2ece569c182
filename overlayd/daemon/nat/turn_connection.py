"""The allocation that is had through one transport to one TURN server.

Owns: the timer, and how long the allocation lasts.  Must not know: the dialogue with the server (`proto.turn`), how it
travels (`turn_transport`), which servers there are (`allocation`), or what the datagrams mean.
"""

import asyncio
import os
from collections.abc import Callable, Sequence

from overlayd import wire
from overlayd.daemon.nat.turn_transport import Transport
from overlayd.model.candidates import Endpoint
from overlayd.proto.stun import TRANSACTION_ID_SIZE, Failure
from overlayd.proto.turn import Allocated, Expired, Failed, Received, Refused, TurnClient

# Our own constants, seconds.
SETTLED = 60.0  # how old an allocation is before the server's words on a permission count as words on the allocation
SILENCE = 5.0  # while something is sent: then the server is asked whether it still knows us

# What a server that was restarted answers to a permission for an allocation that it does not know: as RFC 8656,
# section 5, has it, and as coturn does.
_GONE = (437, 400)
UNAUTHENTICATED = 401


class TurnConnection:
    """relayed: where we are reached through it, by IP version, empty before and after.  first: done when the server has
    given an allocation or a reason for none.  over: done when there is none any more.

    transport: to the server, closed with this.  login: what it is asked with.  family: 4 or 6, of the relayed address;
    with that of 4 one of 6 is asked for as well.
    received: called with what peers sent.  refused: called with each peer to whom it does not relay.
    """

    def __init__(
        self,
        transport: Transport,
        login: wire.TurnServer,
        family: int,
        received: Callable[[bytes, Endpoint], None],
        refused: Callable[[Refused], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self.name = login.addr
        self.relayed: dict[int, Endpoint] = {}
        self.first: asyncio.Future[Allocated | Failed | Expired] = loop.create_future()
        self.over: asyncio.Future[Failed | Expired] = loop.create_future()
        self._received, self._refused = received, refused
        self._timer: asyncio.TimerHandle | None = None
        self._due: float | None = None
        self._since = self._heard = self._asked = loop.time()
        self._closed = False
        self._transport = transport
        self._client = TurnClient(
            login.username,
            login.credential,
            lambda: os.urandom(TRANSACTION_ID_SIZE),
            loop.time(),
            family=family,
            both=family == 4,
            stream=transport.stream,
        )
        transport.start(self._hear, self._lose)
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
        self._transport.close()
        self.relayed = {}

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

    def _hear(self, messages: Sequence[bytes]) -> None:
        now = asyncio.get_running_loop().time()
        if messages:
            self._heard = now
        for message in messages:
            self._client.datagram_received(message, now)
        self._flush()

    def _lose(self, reason: str) -> None:
        """The server is not there: for good, or where nothing is kept open perhaps only now."""
        if self._transport.stream:
            self._end(Expired(Failure(0, reason)) if self.first.done() else Failed(Failure(0, reason), None))
        else:
            self._probe(asyncio.get_running_loop().time())

    def _flush(self) -> None:
        """Handle what happened, send what is to be sent, and set the timer."""
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        while True:
            datagrams, events = self._client.datagrams_to_send(loop.time()), self._client.events()
            if not datagrams and not events:
                break
            for datagram in datagrams:
                self._transport.send(datagram)
            for event in events:
                match event:
                    case Received(peer, data):
                        self._received(data, peer)
                    case Allocated(relayed, _, also):
                        self.relayed = {each[0].version: each for each in (relayed, also) if each is not None}
                        self._since = loop.time()
                        if not self.first.done():
                            self.first.set_result(event)
                    case Refused(_, failure) if failure.code in _GONE and loop.time() > self._since + SETTLED:
                        self._end(Expired(failure))
                    case Refused(_, failure):
                        if failure.code == UNAUTHENTICATED:  # then it knows us no longer at all
                            self._probe(loop.time())
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
        self.relayed = {}
        for future in (self.first, self.over):
            if not future.done():
                future.set_result(event)
