"""A TURN client, a relay and peers in memory, on a network whose clock and faults the test decides."""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import count
from typing import Any

from overlayd.proto.relay import RelayServer, SocketAddress, ToPeer
from overlayd.proto.relay_peers import RelayPeers
from overlayd.proto.turn import Event, TurnClient
from overlayd.proto.wireguard import Endpoint

CREDENTIAL = "correct horse"
EXTERNAL = ip_address("203.0.113.1")
CLIENT = ("198.51.100.7", 40000)
PEER: Endpoint = (ip_address("192.0.2.9"), 51820)
PEER_ADDRESS = ("192.0.2.9", 51820)


def ids(start: int = 1) -> Callable[[], bytes]:
    """Transaction ids that nobody has to guess."""
    numbers = count(start)
    return lambda: next(numbers).to_bytes(12)


class PortsInMemory:
    """Relayed ports that are only numbers.  free: how many are left."""

    def __init__(self, free: int = 1 << 16) -> None:
        self.free = free
        self.open: set[int] = set()
        self._numbers = count(49152)

    def take(self, client: SocketAddress, version: int, even: bool) -> int | None:
        if len(self.open) >= self.free:
            return None
        number = next(number for number in self._numbers if not (even and number % 2))
        self.open.add(number)
        return number

    def give_back(self, number: int) -> None:
        self.open.remove(number)


def server(ports: PortsInMemory | None = None, **changes: Any) -> RelayServer:
    ports = ports or PortsInMemory()
    settings: dict[str, Any] = {
        "credential": CREDENTIAL,
        "external": [EXTERNAL],
        "max_sessions": 100,
        "nonce_key": bytes(32),
        "new_id": ids(),
        "refusal": RelayPeers(refused=()).refusal,
        "open_port": ports.take,
        "close_port": ports.give_back,
        **changes,
    }
    return RelayServer(**settings)


@dataclass(order=True)
class _Delivery:
    when: float
    number: int
    deliver: Callable[[float], None] = field(compare=False)


class Network:
    """One client and one relay.  loss, duplicates: the probability of each for every datagram.  delay: the longest, in
    seconds, each datagram having its own, so that they overtake each other.
    """

    def __init__(self, seed: int = 0, *, loss: float = 0, duplicates: float = 0, delay: float = 0.0) -> None:
        self.now = 0.0
        self.relay = server()
        self.client = TurnClient("node-1", CREDENTIAL, ids(), self.now)
        self.events: list[Event] = []
        self.at_peer: list[tuple[int, SocketAddress, bytes]] = []
        self._chance = random.Random(seed)
        self._loss, self._duplicates, self._delay = loss, duplicates, delay
        self._queue: list[_Delivery] = []
        self._order = count()
        self._next_sweep = 1.0

    @property
    def port(self) -> int:
        """The relayed port of the only session."""
        [port] = self.relay.by_port
        return port

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while True:
            self._client_sends()
            times = [self._next_sweep, end]
            if self._queue:
                times.append(self._queue[0].when)
            if (timeout := self.client.next_timeout()) is not None:
                times.append(timeout)
            self.now = max(self.now, min(times))
            if self.now >= end:
                return
            if self.now >= self._next_sweep:
                self._next_sweep += 1.0
                self.relay.expire(self.now)
            while self._queue and self._queue[0].when <= self.now:
                heapq.heappop(self._queue).deliver(self.now)

    def peer_sends(self, data: bytes, peer: SocketAddress = PEER_ADDRESS, port: int | None = None) -> None:
        """A datagram to the relayed port, without faults on its way there."""
        session = self.relay.by_port.get(self.port if port is None else port)
        if session is not None:
            datagram = self.relay.peer_datagram(session, peer, data, self.now)
            if datagram is not None:
                self._transport(datagram, self._at_client)

    def _client_sends(self) -> None:
        for datagram in self.client.datagrams_to_send(self.now):
            self._transport(datagram, self._at_relay)
        self.events += self.client.events()

    def _at_relay(self, datagram: bytes, now: float) -> None:
        answer = self.relay.client_datagram(CLIENT, datagram, now)
        if isinstance(answer, ToPeer):
            self.at_peer.append((answer.port, answer.peer, bytes(answer.data)))
        elif answer is not None:
            self._transport(answer, self._at_client)

    def _at_client(self, datagram: bytes, now: float) -> None:
        self.client.datagram_received(datagram, now)
        self._client_sends()

    def _transport(self, datagram: bytes, deliver: Callable[[bytes, float], None]) -> None:
        copies = 1 + (self._chance.random() < self._duplicates)
        for _ in range(copies):
            if self._chance.random() >= self._loss:
                when = self.now + self._chance.random() * self._delay
                action = lambda now: deliver(datagram, now)  # noqa: E731
                heapq.heappush(self._queue, _Delivery(when, next(self._order), action))
