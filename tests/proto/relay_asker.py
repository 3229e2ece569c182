"""A client of the relay, who asks for anything."""

from ipaddress import ip_address
from typing import Any

from turn_network import CLIENT, CREDENTIAL, PEER, PEER_ADDRESS, server

from overlayd.proto import stun
from overlayd.proto.relay import RelayServer, ToPeer
from overlayd.proto.stun import Attribute, Kind, Message

UDP: tuple[Attribute[Any], Any] = (stun.REQUESTED_TRANSPORT, 17)
TO_PEER: tuple[Attribute[Any], Any] = (stun.XOR_PEER_ADDRESS, PEER)
CHANNEL: tuple[Attribute[Any], Any] = (stun.CHANNEL_NUMBER, 0x4000)


class Asker:
    """One client of a relay.  credential, username: what it claims."""

    def __init__(
        self,
        relay: RelayServer,
        client: tuple[str, int] = CLIENT,
        *,
        username: str = "node-1",
        credential: str = CREDENTIAL,
        now: float = 0.0,
    ) -> None:
        self.relay, self.client, self.username, self.now = relay, client, username, now
        self.key = stun.long_term_key(username, "overlayd", credential)
        self.nonce = b""
        self.ids = 0

    def message(self, method: int, *fields: tuple[Attribute[Any], Any], bare: bool = False) -> Message:
        self.ids += 1
        message = Message(method, Kind.REQUEST, self.ids.to_bytes(12))
        for attribute, value in fields:
            message = message.add(attribute, value)
        if not bare:
            message = message.add(stun.USERNAME, self.username).add(stun.REALM, "overlayd")
            message = message.add(stun.NONCE, self.nonce)
        return message

    def give(self, datagram: bytes) -> Message | None:
        answer = self.relay.client_datagram(self.client, datagram, self.now)
        assert not isinstance(answer, ToPeer)
        return stun.decode(answer) if answer is not None else None

    def challenge(self) -> Message:
        answer = self.give(stun.encode(self.message(stun.ALLOCATE, UDP, bare=True)))
        assert answer is not None
        self.nonce = answer.get(stun.NONCE) or b""
        return answer

    def ask(self, method: int, *fields: tuple[Attribute[Any], Any], sha256: bool = False) -> Message:
        """The answer to a request with credentials, checked for its integrity."""
        if not self.nonce:
            self.challenge()
        request = self.message(method, *fields)
        answer = self.relay.client_datagram(self.client, stun.encode(request, key=self.key, sha256=sha256), self.now)
        assert isinstance(answer, bytes)
        decoded = stun.decode(answer)
        assert (decoded.method, decoded.transaction_id) == (method, request.transaction_id)
        failure = decoded.get(stun.ERROR_CODE)
        if failure is None or failure.code not in (400, 401, 438):
            assert stun.is_authentic(answer, self.key)
            assert (decoded.get(stun.MESSAGE_INTEGRITY_SHA256) is not None) is sha256
        return decoded

    def refused(self, method: int, *fields: tuple[Attribute[Any], Any]) -> int:
        """The code that a request is refused with; 0 when it is not."""
        answer = self.ask(method, *fields)
        failure = answer.get(stun.ERROR_CODE)
        assert (failure is not None) is (answer.kind is Kind.ERROR)
        return failure.code if failure is not None else 0

    def allocate(self) -> int:
        """The relayed port."""
        answer = self.ask(stun.ALLOCATE, UDP)
        relayed = answer.get(stun.XOR_RELAYED_ADDRESS)
        assert relayed is not None
        assert relayed[0] == self.relay.external[relayed[0].version]
        assert answer.get(stun.XOR_MAPPED_ADDRESS) == (ip_address(self.client[0]), self.client[1])
        assert answer.get(stun.LIFETIME) == 600
        return relayed[1]

    def data(self, datagram: bytes) -> ToPeer | None:
        answer = self.relay.client_datagram(self.client, datagram, self.now)
        assert answer is None or isinstance(answer, ToPeer)
        return answer

    def heard(self, peer: tuple[str, int] = PEER_ADDRESS) -> bytes | None:
        """What this client gets of a datagram of the peer."""
        return self.relay.peer_datagram(self.relay.sessions[self.client], peer, b"data", self.now)


def allocated(**changes: Any) -> Asker:
    asker = Asker(server(**changes))
    asker.allocate()
    return asker
