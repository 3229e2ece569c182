"""The client of a TURN server (RFC 8656), and the numbers that both sides of TURN share.

Owns: one allocation on one server, from the first request to the release: credentials, refreshing, permissions,
channels, what came through.  Must not know: sockets, clocks (`now`: seconds of any steady clock), randomness (`new_id`
gives the 12 bytes of a transaction id), how messages are told apart in a stream (`turn_stream`), who is asked again
after a failure (the owner makes a new client).

The driver passes what came from the server to `datagram_received`, one message at a time, sends what
`datagrams_to_send` gives after each call and at `next_timeout`, and takes `events`.
"""

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, NamedTuple

from overlayd.errors import ProtocolError
from overlayd.proto import stun
from overlayd.proto.stun import Attribute, Failure, Kind, Message
from overlayd.proto.stun_client import TIMED_OUT, Transaction
from overlayd.proto.wireguard import Address, Endpoint

# Protocol constants (RFC 8656 7.2, 9, 12, 18).
DEFAULT_LIFETIME = 600  # seconds of an allocation
PERMISSION_LIFETIME = 300
CHANNEL_LIFETIME = 600
CHANNELS = range(0x4000, 0x5000)
OLD_CHANNELS = range(0x4000, 0x8000)  # RFC 5766 11, whose clients are still about
UDP = 17  # REQUESTED-TRANSPORT
IPV4_FAMILY, IPV6_FAMILY = 1, 2  # REQUESTED-ADDRESS-FAMILY

# Our own constants, seconds.
REFRESH_BEFORE = 60  # that an allocation ends: a request may take 39.5 s to fail
PEER_INTERVAL = 240  # between two ChannelBinds or CreatePermissions of a peer, for the same reason
KEEPALIVE = 20  # with nothing sent; NATs forget a mapping after 30 s and more
PATIENCE = 10  # for the answer to an Allocate: who asks several servers, again and again, need not wait for each
PROBE_PATIENCE = 5  # for the answer to a Refresh that asks whether the allocation is still there
RETRY_AFTER = 60  # RFC 8656 7.4: at least a minute for what may pass
WAITING = 8  # datagrams held for a peer until the server lets them through: a handshake and a little more
CHALLENGES = 3  # of one request: a nonce may be stale twice, not forever

TRY_ALTERNATE = 300  # RFC 8489 section 10

# What an Allocate can be refused for, in words that help an operator; those that may pass are asked again.
_ADVICE = {
    TRY_ALTERNATE: "the server sends us to another one that we cannot ask",
    401: "the server does not accept the username or the credential",
    403: "the server does not allow us an allocation",
    437: "the server has an allocation for our address and port that we cannot release",
    438: "the server calls every nonce stale",
    440: "the server does not relay for this address family",
    441: "the server has an allocation for our address and port under another username",
    442: "the server does not relay UDP",
    486: "the server's quota for this username is used up",
    508: "the server has no capacity left",
}
_MAY_PASS = {0, 437, 438, 486, 500, 508}

# What some servers say to who asks for both IP versions, though they should give the one that they have.
_BOTH = (stun.ADDITIONAL_ADDRESS_FAMILY, IPV6_FAMILY)
_NOT_BOTH = {400, 420, 440}


class Allocated(NamedTuple):
    """We can be reached at `relayed`, and at `also` if both were asked for; the server sees us as `mapped`."""

    relayed: Endpoint
    mapped: Endpoint
    also: Endpoint | None = None


class Received(NamedTuple):
    """A datagram that `peer` sent to our relayed address."""

    peer: Endpoint
    data: bytes


class Refused(NamedTuple):
    """The server does not relay between us and `peer`, which is forgotten; `send` asks again."""

    peer: Endpoint
    failure: Failure


class Failed(NamedTuple):
    """There is no allocation, and the client is over.  retry_after: seconds; None when only a change of the
    configuration helps.  instead: another server that is to be asked (RFC 8489 section 10).
    """

    failure: Failure
    retry_after: float | None
    instead: Endpoint | None = None


class Expired(NamedTuple):
    """The allocation that there was is gone, and with it our relayed address.  A new client may get another at once."""

    failure: Failure


Event = Allocated | Received | Refused | Failed | Expired
_Fields = tuple[tuple[Attribute[Any], Any], ...]
_Done = Callable[[Message | Failure, float], None]


@dataclass(slots=True)
class _Request:
    """One on its way.  key: what signed it, None for the first.  unproven: an error that nobody vouched for."""

    method: int
    fields: _Fields
    done: _Done
    transaction: Transaction
    key: bytes | None
    challenges: int
    patience: float
    unproven: Failure | None = None


@dataclass(slots=True)
class _Peer:
    """used: whether we have sent it anything.  channel: its number, None when there is none to be had.  bound: whether
    the server knows the channel.  renew_at: when channel and permission are asked for again, seconds.
    """

    used: bool = False
    channel: int | None = None
    bound: bool = False
    permitted: bool = False
    renew_at: float = 0.0
    waiting: list[bytes] = field(default_factory=list)


class TurnClient:
    """family: 4 or 6, of the relayed address.  both: let it be IPv4, and another one of IPv6 if the server gives it, or
    that alone.  stream: the messages go through a TCP or TLS connection, which loses
    none.
    """

    def __init__(
        self,
        username: str,
        credential: str,
        new_id: Callable[[], bytes],
        now: float,
        *,
        family: int = 4,
        both: bool = False,
        stream: bool = False,
    ) -> None:
        self.relayed: Endpoint | None = None
        self._username, self._credential, self._new_id = username, credential, new_id
        self._stream = stream
        self._realm, self._nonce = "", b""
        self._key: bytes | None = None
        self._over = False
        self._instead: Endpoint | None = None  # the server that this one names
        self._released_earlier = False
        self._refresh_due = 0.0
        self._probing = False
        self._outbox: list[bytes] = []
        self._events: list[Event] = []
        self._requests: dict[bytes, _Request] = {}
        self._peers: dict[Endpoint, _Peer] = {}
        self._numbers: dict[Endpoint, int] = {}  # never given to another peer: it would take 15 min (RFC 8656 12)
        self._by_number: dict[int, Endpoint] = {}
        self._timers: list[tuple[float, int, Callable[[float], None]]] = []
        self._timer_ids = count()
        self._last_sent = now
        self._allocation: _Fields = ((stun.REQUESTED_TRANSPORT, UDP),)
        if both:
            self._allocation += (_BOTH,)
        elif family == 6:
            self._allocation += ((stun.REQUESTED_ADDRESS_FAMILY, IPV6_FAMILY),)
        self._allocate(now)

    # --- the driver's interface ---------------------------------------------------------------------------------------

    def next_timeout(self) -> float | None:
        """When to call `datagrams_to_send` at the latest; None when there is nothing to wait for."""
        return self._timers[0][0] if self._timers else None

    def datagrams_to_send(self, now: float) -> list[bytes]:
        """What is to be sent to the server now, in order."""
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2](now)
        datagrams, self._outbox = self._outbox, []
        if datagrams:
            self._last_sent = now
        return datagrams

    def events(self) -> list[Event]:
        """What has happened since the last call, in order."""
        events, self._events = self._events, []
        return events

    def datagram_received(self, datagram: bytes, now: float) -> None:
        """A datagram from the server's address.  What is malformed, forged or late changes nothing."""
        if datagram and datagram[0] >> 4 == 4:
            self._channel_data(datagram)
            return
        try:
            message = stun.decode(datagram)
        except ProtocolError:
            return  # anybody can send one under the server's address: it must not end anything
        if message.kind is Kind.INDICATION:
            self._data_indication(message)
        elif message.kind is not Kind.REQUEST:
            self._answer(datagram, message, now)

    def send(self, peer: Endpoint, data: bytes, now: float) -> None:
        """Relay `data` (at most 65,507 bytes, as UDP) to `peer`.  The first datagrams wait until the server has a
        permission for it, a few of them; before `Allocated` and after the end nothing is sent.
        """
        if self.relayed is None:
            return
        known = self._peers.get(peer)
        if known is None:
            known = self._peers[peer] = _Peer()
        if not known.used:
            known.used, known.channel, known.renew_at = True, self._number(peer), now
            self._renew(peer, known, now)
        if known.bound or known.permitted:
            self._outbox.append(self._relayed_datagram(peer, known, data))
        elif len(known.waiting) < WAITING:
            known.waiting.append(data)

    def permit(self, peer: Endpoint, now: float) -> None:
        """Let `peer` reach us, for as long as it is not forgotten."""
        if self.relayed is not None and peer not in self._peers:
            self._peers[peer] = _Peer()
            self._renew(peer, self._peers[peer], now)

    def forget(self, peer: Endpoint) -> None:
        """Renew nothing for `peer` any more; the server lets its permission end within 5 minutes."""
        self._peers.pop(peer, None)

    def probe(self, now: float) -> None:
        """Find out whether the server still knows the allocation, by refreshing it; `Expired` if it does not say so
        within 5 seconds.
        """
        if self.relayed is not None and not self._probing:
            self._probing = True
            self._request(stun.REFRESH, (), self._refreshed, now, patience=PROBE_PATIENCE)

    def release(self, now: float) -> None:
        """Give the allocation back; the client is over once the server has answered, or does not."""
        if self._over:
            return
        authenticated = self._key is not None
        self._end()
        if authenticated:
            self._request(stun.REFRESH, ((stun.LIFETIME, 0),), lambda answer, now: self._end(), now)

    # --- requests -----------------------------------------------------------------------------------------------------

    def _request(
        self,
        method: int,
        fields: _Fields,
        done: _Done,
        now: float,
        *,
        challenges: int = 0,
        patience: float = math.inf,
    ) -> None:
        message = Message(method, Kind.REQUEST, self._new_id())
        for attribute, value in fields:
            message = message.add(attribute, value)
        if self._key is not None:
            message = message.add(stun.USERNAME, self._username)
            message = message.add(stun.REALM, self._realm).add(stun.NONCE, self._nonce)
        encoded = stun.encode(message, key=self._key)
        transaction = Transaction(message.transaction_id, encoded, now, patience, stream=self._stream)
        request = _Request(method, fields, done, transaction, self._key, challenges, patience)
        self._requests[message.transaction_id] = request
        self._drive(request, now)

    def _drive(self, request: _Request, now: float) -> None:
        """Send a request if it is due, or give it up."""
        transaction = request.transaction
        if self._requests.get(transaction.transaction_id) is not request:
            return
        if transaction.timed_out(now):
            del self._requests[transaction.transaction_id]
            request.done(request.unproven or TIMED_OUT, now)
            return
        self._outbox += transaction.datagrams_to_send(now)
        self._at(transaction.next_timeout(), partial(self._drive, request))

    def _answer(self, datagram: bytes, message: Message, now: float) -> None:
        request = self._requests.get(message.transaction_id)
        if request is None or request.method != message.method:
            return
        failure = None
        if message.kind is Kind.ERROR:
            failure = message.get(stun.ERROR_CODE) or Failure(0, "an error without an ERROR-CODE")
            if failure.code in (401, 438):  # the server may have no key to vouch with (RFC 8489 9.2.4)
                del self._requests[message.transaction_id]
                self._challenged(request, message, failure, now)
                return
        if request.key is not None and not stun.is_authentic(datagram, request.key):
            request.unproven = failure  # it must not end the request, but is the best reason if nothing else comes
            return
        if failure is not None and failure.code == TRY_ALTERNATE:
            self._instead = message.get(stun.ALTERNATE_SERVER)
        if failure is None and (unknown := message.unknown()):
            failure = Failure(0, f"an answer with attributes that we do not know: {', '.join(map(hex, unknown))}")
        del self._requests[message.transaction_id]
        request.done(failure or message, now)

    def _challenged(self, request: _Request, message: Message, failure: Failure, now: float) -> None:
        """Ask again with the credentials, which another realm makes others, or with the new nonce (RFC 8489 9.2.5)."""
        realm, nonce = message.get(stun.REALM), message.get(stun.NONCE)
        known_realm = realm in (None, self._realm) and request.key == self._key
        wrong_credentials = failure.code == 401 and request.key is not None and known_realm
        if nonce is None or (realm is None and self._key is None):
            failure = Failure(0, f"{failure}, without a realm or a nonce")
        elif not wrong_credentials and request.challenges < CHALLENGES:
            self._nonce = nonce
            if realm is not None:
                self._realm = realm
                self._key = stun.long_term_key(self._username, realm, self._credential)
            self._request(
                request.method,
                request.fields,
                request.done,
                now,
                challenges=request.challenges + 1,
                patience=request.patience,
            )
            return
        request.done(failure, now)

    def _at(self, when: float, action: Callable[[float], None]) -> None:
        heapq.heappush(self._timers, (when, next(self._timer_ids), action))

    # --- the allocation -----------------------------------------------------------------------------------------------

    def _allocate(self, now: float) -> None:
        self._request(stun.ALLOCATE, self._allocation, self._allocated, now, patience=PATIENCE)

    def _allocated(self, answer: Message | Failure, now: float) -> None:
        if isinstance(answer, Message):
            mapped = answer.get(stun.XOR_MAPPED_ADDRESS)
            given = {at[0].version: at for at in answer.all(stun.XOR_RELAYED_ADDRESS)}
            if not given or mapped is None:
                answer = Failure(0, "an allocation without its addresses")
            else:
                first, *others = (given[version] for version in sorted(given))
                self.relayed = first
                self._events.append(Allocated(first, mapped, others[0] if others else None))
                self._refresh_later(answer, now)
                self._at(now + KEEPALIVE, self._keep_mapping)
                return
        if answer.code == 437 and not self._released_earlier:
            # A former process of ours on the same port died without releasing it.
            self._released_earlier = True
            self._request(stun.REFRESH, ((stun.LIFETIME, 0),), lambda answer, now: self._allocate(now), now)
            return
        if answer.code in _NOT_BOTH and _BOTH in self._allocation:
            self._allocation = self._allocation[:1]
            self._allocate(now)
            return
        advice = _ADVICE.get(answer.code)
        self._end(
            Failed(
                Failure(answer.code, f"{answer.reason}: {advice}" if advice else answer.reason),
                RETRY_AFTER if answer.code in _MAY_PASS else None,
                self._instead,
            )
        )

    def _refresh_later(self, answer: Message, now: float) -> None:
        lifetime = answer.get(stun.LIFETIME) or DEFAULT_LIFETIME
        self._refresh_due = now + max(lifetime - REFRESH_BEFORE, lifetime / 2)
        self._at(self._refresh_due, self._refresh)

    def _refresh(self, now: float) -> None:
        if now < self._refresh_due:
            return  # it was refreshed meanwhile
        self._request(stun.REFRESH, (), self._refreshed, now)

    def _refreshed(self, answer: Message | Failure, now: float) -> None:
        self._probing = False
        if isinstance(answer, Failure):
            self._end(Expired(answer))
        else:
            self._refresh_later(answer, now)

    def _keep_mapping(self, now: float) -> None:
        """Keep the mapping of the NAT before us, so that what peers send finds its way in."""
        if now >= self._last_sent + KEEPALIVE:
            self._outbox.append(stun.encode(Message(stun.BINDING, Kind.INDICATION, self._new_id())))
            self._last_sent = now
        self._at(self._last_sent + KEEPALIVE, self._keep_mapping)

    def _end(self, event: Event | None = None) -> None:
        """Forget everything; `event` says why."""
        self._over, self.relayed = True, None
        self._requests.clear()
        self._timers.clear()
        self._peers.clear()
        self._outbox.clear()
        if event is not None:
            self._events.append(event)

    # --- peers --------------------------------------------------------------------------------------------------------

    def _number(self, peer: Endpoint) -> int | None:
        """The number of the channel to `peer`, new or as it was when the peer was forgotten."""
        number = self._numbers.get(peer)
        if number is None and len(self._numbers) < len(CHANNELS):
            number = self._numbers[peer] = CHANNELS[len(self._numbers)]
            self._by_number[number] = peer
        return number

    def _renew(self, peer: Endpoint, known: _Peer, now: float) -> None:
        """Ask for the channel, which brings a permission with it (RFC 8656 12), or for a permission alone."""
        if self._peers.get(peer) is not known or now < known.renew_at:
            return
        asked: _Fields = ((stun.XOR_PEER_ADDRESS, peer),)
        if known.channel is None:
            self._request(stun.CREATE_PERMISSION, asked, partial(self._renewed, peer, known), now)
        else:
            asked = ((stun.CHANNEL_NUMBER, known.channel), *asked)
            self._request(stun.CHANNEL_BIND, asked, partial(self._bound, peer, known), now)

    def _bound(self, peer: Endpoint, known: _Peer, answer: Message | Failure, now: float) -> None:
        known.bound = isinstance(answer, Message)
        if known.bound:
            self._renewed(peer, known, answer, now)
        else:
            known.channel = None  # it goes without, if it goes at all
            self._renew(peer, known, now)

    def _renewed(self, peer: Endpoint, known: _Peer, answer: Message | Failure, now: float) -> None:
        if self._peers.get(peer) is not known:
            return
        if isinstance(answer, Failure):
            del self._peers[peer]
            self._events.append(Refused(peer, answer))
            return
        known.permitted = True
        known.renew_at = now + PEER_INTERVAL
        self._at(known.renew_at, partial(self._renew, peer, known))
        self._outbox += [self._relayed_datagram(peer, known, data) for data in known.waiting]
        known.waiting.clear()

    # --- data ---------------------------------------------------------------------------------------------------------

    def _relayed_datagram(self, peer: Endpoint, known: _Peer, data: bytes) -> bytes:
        if known.bound and known.channel is not None:
            padding = bytes(-len(data) % 4) if self._stream else b""  # RFC 8656, section 12.5
            return b"%b%b%b%b" % (known.channel.to_bytes(2), len(data).to_bytes(2), data, padding)
        message = Message(stun.SEND, Kind.INDICATION, self._new_id())
        return stun.encode(message.add(stun.XOR_PEER_ADDRESS, peer).add(stun.DATA, data), fingerprint=False)

    def _channel_data(self, datagram: bytes) -> None:
        peer = self._by_number.get(int.from_bytes(datagram[:2]))
        end = 4 + int.from_bytes(datagram[2:4])
        if peer is not None and peer in self._peers and 4 <= len(datagram) >= end:
            self._events.append(Received(peer, datagram[4:end]))

    def _data_indication(self, message: Message) -> None:
        peer, data = message.get(stun.XOR_PEER_ADDRESS), message.get(stun.DATA)
        if message.method != stun.DATA_METHOD or peer is None or data is None or message.unknown():
            return
        if self._is_permitted(peer[0]):
            self._events.append(Received(peer, data))

    def _is_permitted(self, address: Address) -> bool:
        """Whether we asked for a permission, which is for an address and all its ports (RFC 8656 11.4)."""
        return any(peer[0] == address for peer in self._peers)
