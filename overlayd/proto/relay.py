"""A TURN server over UDP (RFC 8656), without its sockets: the relay that a node offers to others.

Owns: who may relay; sessions, permissions, channels and when they end.  Must not know: to whom is relayed
(`relay_peers`), sockets (`daemon.nat.relay` opens and closes the relayed ports and moves the bytes), clocks (`now`:
seconds of any steady clock), randomness (an argument).

Nobody relays without the credential, which is shared by the nodes of a cluster; a username is whatever a node calls
itself.  What was asked once costs nothing later: ChannelData is relayed by two look-ups and no parsing.
"""

import hmac
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import NamedTuple

from overlayd.errors import ProtocolError
from overlayd.proto import stun
from overlayd.proto.stun import Failure, Kind, Message
from overlayd.proto.turn import (
    CHANNEL_LIFETIME,
    DEFAULT_LIFETIME,
    IPV4_FAMILY,
    IPV6_FAMILY,
    OLD_CHANNELS,
    PERMISSION_LIFETIME,
    UDP,
)
from overlayd.proto.wireguard import Address, Endpoint

REALM = "overlayd"

# Our own constants.
LONGEST_LIFETIME = 3600  # seconds that a session may ask for at once (RFC 8656 7.2 recommends it)
FAMILIES = {4: IPV4_FAMILY, 6: IPV6_FAMILY}  # by IP version
NONCE_LIFETIME = 600  # seconds: how long a recorded request can be played back
MOST_PERMISSIONS = 1024  # of a session, and as many channels: what a client can make us remember

SocketAddress = tuple[str, int]
"""An address as sockets give and take it, and a port: numeric, canonical, without a scope."""


class ToPeer(NamedTuple):
    """What is to leave from the relayed port `port` to `peer`, of the same IP version."""

    port: int
    peer: SocketAddress
    data: bytes


@dataclass(slots=True)
class Channel:
    """head: the number as it is on the wire.  port: the relayed one.  until: seconds."""

    head: bytes
    peer: SocketAddress
    port: int
    until: float


@dataclass(slots=True)
class Session:
    """An allocation: what `client` gets at the relayed ports, of which there is one for each IP version that it has.

    transaction_id: of the request that made it.  until: when it ends, seconds.  permissions: by the peer's address,
    until when.  channels, by_peer: the same channels, by their heads and by their peers.
    """

    client: SocketAddress
    username: str
    ports: dict[int, int]
    transaction_id: bytes
    until: float
    permissions: dict[str, float] = field(default_factory=dict)
    channels: dict[bytes, Channel] = field(default_factory=dict)
    by_peer: dict[SocketAddress, Channel] = field(default_factory=dict)


class _Refusal(Exception):
    """Why a request is answered with an error."""

    def __init__(self, code: int, reason: str, unknown: tuple[int, ...] = ()) -> None:
        super().__init__(reason)
        self.failure = Failure(code, reason)
        self.unknown = unknown


class RelayServer:
    """credential: the shared secret, not empty.  external: the addresses that relayed ports are reached at, one of each
    IP version that is relayed; a client may have a port of both (RFC 8656 7.2).
    nonce_key: 32 random bytes.  new_id: gives 12 random bytes.  refusal: says why nothing is relayed to an address,
    empty when it is (`RelayPeers`).
    open_port: opens a relayed port of an IP version for a client, an even one if it says so, and gives its number,
    which no other one of either version has; None when there is none to be had.  close_port closes it.

    forged: requests by somebody who does not know the credential, counted.
    """

    def __init__(
        self,
        credential: str,
        external: Iterable[Address],
        max_sessions: int,
        *,
        nonce_key: bytes,
        new_id: Callable[[], bytes],
        refusal: Callable[[Address], str],
        open_port: Callable[[SocketAddress, int, bool], int | None],
        close_port: Callable[[int], None],
    ) -> None:
        if not credential:
            raise ValueError("a relay without a credential would relay for anybody")
        self.sessions: dict[SocketAddress, Session] = {}
        self.by_port: dict[int, Session] = {}
        self.forged = 0
        self.external: dict[int, Address] = {address.version: address for address in external}
        self._credential, self._max_sessions = credential, max_sessions
        self._nonce_key, self._new_id = nonce_key, new_id
        self._refusal, self._open_port, self._close_port = refusal, open_port, close_port
        self._handlers = {
            stun.BINDING: self._binding,
            stun.ALLOCATE: self._allocate,
            stun.REFRESH: self._refresh,
            stun.CREATE_PERMISSION: self._create_permission,
            stun.CHANNEL_BIND: self._channel_bind,
        }

    # --- data ---------------------------------------------------------------------------------------------------------

    def client_datagram(self, client: SocketAddress, datagram: bytes, now: float) -> ToPeer | bytes | None:
        """What to do with a datagram that came to the listening port: relay something, answer, or nothing."""
        session = self.sessions.get(client)
        if session is not None and (channel := session.channels.get(datagram[:2])) is not None:
            end = 4 + int.from_bytes(datagram[2:4])
            if end > len(datagram) or now >= channel.until:
                return None
            return ToPeer(channel.port, channel.peer, datagram[4:end])  # a copy costs less than a memoryview
        try:
            message = stun.decode(datagram)
        except ProtocolError:
            return None  # anything can come to an open port
        if message.kind is Kind.REQUEST and message.method in self._handlers:
            return self._answer(client, datagram, message, now)
        if message.kind is Kind.INDICATION and message.method == stun.SEND:
            return self._send(client, message, now)
        return None

    def peer_datagram(self, session: Session, peer: SocketAddress, data: bytes, now: float) -> bytes | None:
        """What the session's client gets of a datagram that came to its relayed port; None without a permission."""
        if now >= session.permissions.get(peer[0], 0.0):
            return None
        channel = session.by_peer.get(peer)
        if channel is not None and now < channel.until:
            return b"%b%b%b" % (channel.head, len(data).to_bytes(2), data)
        message = Message(stun.DATA_METHOD, Kind.INDICATION, self._new_id())
        message = message.add(stun.XOR_PEER_ADDRESS, (ip_address(peer[0]), peer[1])).add(stun.DATA, data)
        return stun.encode(message, fingerprint=False)

    def _send(self, client: SocketAddress, message: Message, now: float) -> ToPeer | None:
        """A Send indication (RFC 8656 11.2), which nobody vouches for: what it may do, a permission says."""
        session = self.sessions.get(client)
        peer, data = message.get(stun.XOR_PEER_ADDRESS), message.get(stun.DATA)
        if session is None or peer is None or data is None or message.unknown():
            return None
        port = session.ports.get(peer[0].version)
        address = _socket_address(peer)
        if port is None or now >= session.permissions.get(address[0], 0.0) or not self._is_deliverable(peer):
            return None
        return ToPeer(port, address, data)

    # --- sessions -----------------------------------------------------------------------------------------------------

    def next_timeout(self) -> float | None:
        """When a session ends next, if nobody refreshes it."""
        return min((session.until for session in self.sessions.values()), default=None)

    def expire(self, now: float) -> None:
        """End the sessions whose time is over."""
        for session in [session for session in self.sessions.values() if now >= session.until]:
            self._end(session)

    def close(self) -> None:
        """End every session."""
        for session in list(self.sessions.values()):
            self._end(session)

    def _end(self, session: Session) -> None:
        del self.sessions[session.client]
        for version in list(session.ports):
            self._close(session, version)

    def _close(self, session: Session, version: int) -> None:
        """Take a session's relayed port of an IP version back, which may be somebody else's soon, even another
        program's.
        """
        port = session.ports.pop(version)
        del self.by_port[port]
        gone = (str(self.external[version]), port)
        for other in self.sessions.values():
            if (channel := other.by_peer.pop(gone, None)) is not None:
                del other.channels[channel.head]
        for channel in [channel for channel in session.channels.values() if channel.port == port]:
            del session.channels[channel.head], session.by_peer[channel.peer]
        self._close_port(port)

    def has_client_at(self, address: Address) -> bool:
        """Whether somebody relays from an address."""
        text = str(address)
        return any(client[0] == text for client in self.sessions)

    # --- requests -----------------------------------------------------------------------------------------------------

    def _answer(self, client: SocketAddress, datagram: bytes, request: Message, now: float) -> bytes:
        key = None
        response = Message(request.method, Kind.SUCCESS, request.transaction_id)
        try:
            if request.method != stun.BINDING:
                key = self._authenticate(client, datagram, request, now)
            if unknown := request.unknown():
                raise _Refusal(420, "Unknown Attribute", unknown)
            response = self._handlers[request.method](client, request, response, now)
        except _Refusal as refusal:
            response = Message(request.method, Kind.ERROR, request.transaction_id)
            response = response.add(stun.ERROR_CODE, refusal.failure)
            if refusal.failure.code in (401, 438):
                response = response.add(stun.REALM, REALM).add(stun.NONCE, self._nonce(client, int(now)))
            if refusal.unknown:
                response = response.add(stun.UNKNOWN_ATTRIBUTES, refusal.unknown)
        return stun.encode(response, key=key, sha256=request.get(stun.MESSAGE_INTEGRITY) is None)

    def _authenticate(self, client: SocketAddress, datagram: bytes, request: Message, now: float) -> bytes:
        """The key of an authentic request (RFC 8489 9.2.4)."""
        if request.get(stun.MESSAGE_INTEGRITY) is None and request.get(stun.MESSAGE_INTEGRITY_SHA256) is None:
            raise _Refusal(401, "Unauthorized")
        username, realm, nonce = request.get(stun.USERNAME), request.get(stun.REALM), request.get(stun.NONCE)
        if username is None or realm is None or nonce is None:
            raise _Refusal(400, "Bad Request: USERNAME, REALM and NONCE come with MESSAGE-INTEGRITY")
        if not self._is_fresh(nonce, client, now):
            raise _Refusal(438, "Stale Nonce")
        key = stun.long_term_key(username, REALM, self._credential)
        if realm != REALM or not stun.is_authentic(datagram, key):
            self.forged += 1
            raise _Refusal(401, "Unauthorized")
        return key

    def _nonce(self, client: SocketAddress, issued: int) -> bytes:
        """Proves when we gave it to whom, so that we need not remember it.  issued: seconds."""
        text = f"{issued:x}"
        mac = hmac.digest(self._nonce_key, f"{text} {client[0]} {client[1]}".encode(), "sha256")
        return f"{text}-{mac[:16].hex()}".encode()

    def _is_fresh(self, nonce: bytes, client: SocketAddress, now: float) -> bool:
        try:
            issued = int(nonce.partition(b"-")[0], 16)
        except ValueError:
            return False
        # Compared without arithmetic of floats: an `issued` of 700 digits would overflow them.
        return issued <= now < issued + NONCE_LIFETIME and hmac.compare_digest(nonce, self._nonce(client, issued))

    def _binding(self, client: SocketAddress, request: Message, response: Message, now: float) -> Message:
        return response.add(stun.XOR_MAPPED_ADDRESS, _endpoint(client))

    def _allocate(self, client: SocketAddress, request: Message, response: Message, now: float) -> Message:
        session = self._live(client, now)
        if session is None:
            session = self._new_session(client, request, now)
        elif session.transaction_id != request.transaction_id:  # else the first answer was lost
            raise _Refusal(437, "Allocation Mismatch: there is one for this address and port")
        for version, port in session.ports.items():
            response = response.add(stun.XOR_RELAYED_ADDRESS, (self.external[version], port))
        if request.get(stun.ADDITIONAL_ADDRESS_FAMILY) is not None:
            for version in FAMILIES.keys() - session.ports.keys():
                response = response.add(stun.ADDRESS_ERROR_CODE, (FAMILIES[version], self._missing(version)))
        response = response.add(stun.LIFETIME, round(session.until - now))
        return response.add(stun.XOR_MAPPED_ADDRESS, _endpoint(client))

    def _new_session(self, client: SocketAddress, request: Message, now: float) -> Session:
        transport = request.get(stun.REQUESTED_TRANSPORT)
        if transport is None:
            raise _Refusal(400, "Bad Request: REQUESTED-TRANSPORT is missing")
        if transport != UDP:
            raise _Refusal(442, "Unsupported Transport Protocol: UDP only")
        versions = self._wanted(request)
        if not versions & self.external.keys():
            raise _Refusal(440, f"Address Family not Supported: {self._versions()} only")
        if len(self.sessions) >= self._max_sessions:
            raise _Refusal(508, f"Insufficient Capacity: {self._max_sessions} sessions")
        pair = request.get(stun.EVEN_PORT)
        if pair:
            raise _Refusal(508, "Insufficient Capacity: ports are not reserved")
        ports = {
            version: self._open_port(client, version, pair is not None) for version in versions & self.external.keys()
        }
        opened = {version: port for version, port in sorted(ports.items()) if port is not None}
        if not opened:
            raise _Refusal(508, "Insufficient Capacity: no port is left")
        username = request.get(stun.USERNAME) or ""
        session = Session(client, username, opened, request.transaction_id, now + _lifetime(request))
        self.sessions[client] = session
        self.by_port.update(dict.fromkeys(opened.values(), session))
        return session

    def _wanted(self, request: Message) -> set[int]:
        """The IP versions of the addresses that a client asks for (RFC 8656 7.2)."""
        family, additional = request.get(stun.REQUESTED_ADDRESS_FAMILY), request.get(stun.ADDITIONAL_ADDRESS_FAMILY)
        pair = request.get(stun.EVEN_PORT)
        if additional is None:
            return {version for version, number in FAMILIES.items() if number == (family or IPV4_FAMILY)}
        if family is not None or additional != IPV6_FAMILY or pair:
            raise _Refusal(
                400, "Bad Request: ADDITIONAL-ADDRESS-FAMILY asks for IPv6 beside IPv4, and nothing else does"
            )
        return set(FAMILIES)

    def _missing(self, version: int) -> Failure:
        """Why a session has no address of an IP version that it was to have."""
        if version in self.external:
            return Failure(508, "Insufficient Capacity: no port is left")
        return Failure(440, f"Address Family not Supported: {self._versions()} only")

    def _versions(self) -> str:
        return " and ".join(f"IPv{version}" for version in sorted(self.external))

    def _refresh(self, client: SocketAddress, request: Message, response: Message, now: float) -> Message:
        session = self._session(client, request, now)
        family = request.get(stun.REQUESTED_ADDRESS_FAMILY)
        named = [version for version in session.ports if family in (None, FAMILIES[version])]
        if not named:
            raise _Refusal(443, "Peer Address Family Mismatch: there is no such address")
        if request.get(stun.LIFETIME) == 0:
            if len(named) == len(session.ports):
                self._end(session)
            else:
                self._close(session, *named)
            return response.add(stun.LIFETIME, 0)
        lifetime = _lifetime(request)
        session.until = now + lifetime
        return response.add(stun.LIFETIME, lifetime)

    def _create_permission(self, client: SocketAddress, request: Message, response: Message, now: float) -> Message:
        session = self._session(client, request, now)
        peers = list(request.all(stun.XOR_PEER_ADDRESS))
        if not peers:
            raise _Refusal(400, "Bad Request: XOR-PEER-ADDRESS is missing")
        for peer in peers:
            self._check(session, peer[0])
        self._permit(session, {str(peer[0]) for peer in peers}, now)
        return response

    def _channel_bind(self, client: SocketAddress, request: Message, response: Message, now: float) -> Message:
        session = self._session(client, request, now)
        number, peer = request.get(stun.CHANNEL_NUMBER), request.get(stun.XOR_PEER_ADDRESS)
        if number is None or number not in OLD_CHANNELS or peer is None:
            raise _Refusal(400, "Bad Request: it takes a CHANNEL-NUMBER from 0x4000 to 0x7FFF and XOR-PEER-ADDRESS")
        self._check(session, peer[0])
        if not self._is_deliverable(peer):
            raise _Refusal(403, "Forbidden: no relayed port")
        head, address = number.to_bytes(2), _socket_address(peer)
        for channel in (session.channels.get(head), session.by_peer.get(address)):
            if channel is None or (channel.head, channel.peer) == (head, address):
                continue
            if now < channel.until:
                raise _Refusal(400, "Bad Request: the channel or the peer is bound already")
            del session.channels[channel.head], session.by_peer[channel.peer]
        if head not in session.channels and len(session.channels) >= MOST_PERMISSIONS:
            raise _Refusal(508, f"Insufficient Capacity: {MOST_PERMISSIONS} channels")
        self._permit(session, {address[0]}, now)
        channel = Channel(head, address, session.ports[peer[0].version], now + CHANNEL_LIFETIME)
        session.channels[head] = session.by_peer[address] = channel
        return response

    # --- what a session may -------------------------------------------------------------------------------------------

    def _session(self, client: SocketAddress, request: Message, now: float) -> Session:
        session = self._live(client, now)
        if session is None:
            raise _Refusal(437, "Allocation Mismatch: there is none")
        if session.username != request.get(stun.USERNAME):
            raise _Refusal(441, "Wrong Credentials: the allocation is another username's")
        return session

    def _live(self, client: SocketAddress, now: float) -> Session | None:
        session = self.sessions.get(client)
        if session is None or now < session.until:
            return session
        self._end(session)
        return None

    def _permit(self, session: Session, addresses: set[str], now: float) -> None:
        permissions = session.permissions
        if len(permissions | dict.fromkeys(addresses, 0.0)) > MOST_PERMISSIONS:
            for address in [address for address, until in permissions.items() if now >= until]:
                del permissions[address]
            if len(permissions | dict.fromkeys(addresses, 0.0)) > MOST_PERMISSIONS:
                raise _Refusal(508, f"Insufficient Capacity: {MOST_PERMISSIONS} permissions")
        permissions.update(dict.fromkeys(addresses, now + PERMISSION_LIFETIME))

    def _check(self, session: Session, address: Address) -> None:
        """Raises what forbids to relay to an address.  Our own external ones are fine: a peer may relay here, too."""
        if address.version not in session.ports:
            raise _Refusal(443, "Peer Address Family Mismatch")
        if address == self.external[address.version]:
            return
        if refusal := self._refusal(address):
            raise _Refusal(403, f"Forbidden: {refusal}")

    def _is_deliverable(self, peer: Endpoint) -> bool:
        """Whether a peer is none of this host's programs: at our external addresses only relayed ports are peers."""
        address, port = peer
        if address != self.external.get(address.version):
            return port > 0
        session = self.by_port.get(port)
        return session is not None and session.ports.get(address.version) == port


def _lifetime(request: Message) -> int:
    """Seconds (RFC 8656 7.2)."""
    asked = request.get(stun.LIFETIME)
    return DEFAULT_LIFETIME if asked is None else min(max(asked, DEFAULT_LIFETIME), LONGEST_LIFETIME)


def _socket_address(endpoint: Endpoint) -> SocketAddress:
    return str(endpoint[0]), endpoint[1]


def _endpoint(address: SocketAddress) -> Endpoint:
    return ip_address(address[0]), address[1]
