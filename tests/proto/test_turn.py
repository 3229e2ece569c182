"""A TURN client against a server that the test plays: credentials, refusals, timetables and forgeries."""

from ipaddress import ip_address
from typing import Any

import pytest
from turn_network import ids

from overlayd.proto import stun
from overlayd.proto.stun import Attribute, Failure, Kind, Message
from overlayd.proto.turn import (
    CHANNELS,
    KEEPALIVE,
    PATIENCE,
    PEER_INTERVAL,
    RETRY_AFTER,
    WAITING,
    Allocated,
    Event,
    Expired,
    Failed,
    Received,
    Refused,
    TurnClient,
)
from overlayd.proto.wireguard import Endpoint

RELAYED: Endpoint = (ip_address("203.0.113.1"), 50000)
MAPPED: Endpoint = (ip_address("198.51.100.7"), 40000)
PEER: Endpoint = (ip_address("192.0.2.9"), 51820)
Field = tuple[Attribute[Any], Any]
KEY = stun.long_term_key("node-1", "example.org", "secret")


class Played:
    """A client, and the server's half of the conversation in the hands of the test."""

    def __init__(self, now: float = 0.0, family: int = 4, *, both: bool = False, stream: bool = False) -> None:
        self.now = now
        self.client = TurnClient("node-1", "secret", ids(), now, family=family, both=both, stream=stream)

    def asked(self) -> Message:
        """The only request that the client sends now, checked for its credentials."""
        [datagram] = self.client.datagrams_to_send(self.now)
        message = stun.decode(datagram)
        assert message.kind is Kind.REQUEST
        if message.get(stun.MESSAGE_INTEGRITY) is not None:
            assert stun.is_authentic(datagram, KEY)
            assert message.get(stun.USERNAME) == "node-1"
            assert message.get(stun.REALM) == "example.org"
        return message

    def answer(self, request: Message, *fields: Field, kind: Kind = Kind.SUCCESS, key: bytes | None = KEY) -> None:
        message = Message(request.method, kind, request.transaction_id)
        for attribute, value in fields:
            message = message.add(attribute, value)
        self.client.datagram_received(stun.encode(message, key=key), self.now)

    def refuse(self, request: Message, code: int, *fields: Field, key: bytes | None = KEY) -> None:
        self.answer(request, (stun.ERROR_CODE, Failure(code, "Reason")), *fields, kind=Kind.ERROR, key=key)

    def challenge(self, request: Message, code: int = 401, nonce: bytes = b"nonce") -> Message:
        """Ask for credentials; the request that follows."""
        self.refuse(request, code, (stun.REALM, "example.org"), (stun.NONCE, nonce), key=None)
        again = self.asked()
        assert again.transaction_id != request.transaction_id
        assert again.get(stun.NONCE) == nonce
        return again

    def allocate(self, lifetime: int = 600) -> None:
        request = self.challenge(self.asked())
        assert request.method == stun.ALLOCATE
        assert request.get(stun.REQUESTED_TRANSPORT) == 17
        self.answer(
            request,
            (stun.XOR_RELAYED_ADDRESS, RELAYED),
            (stun.XOR_MAPPED_ADDRESS, MAPPED),
            (stun.LIFETIME, lifetime),
        )
        assert self.client.events() == [Allocated(RELAYED, MAPPED)]
        assert self.client.relayed == RELAYED

    def next_request(self) -> Message:
        """Time passes until the client asks for something; keepalives do not count."""
        while True:
            timeout = self.client.next_timeout()
            assert timeout is not None
            self.now = max(self.now, timeout)
            for datagram in self.client.datagrams_to_send(self.now):
                message = stun.decode(datagram)
                if message.kind is Kind.REQUEST:
                    return message

    def silence(self) -> list[Event]:
        """Time passes without an answer until something happens."""
        while not (events := self.client.events()):
            timeout = self.client.next_timeout()
            assert timeout is not None
            self.now = max(self.now, timeout)
            self.client.datagrams_to_send(self.now)
        return events


def allocated(lifetime: int = 600) -> Played:
    played = Played()
    played.allocate(lifetime)
    return played


def bound() -> Played:
    played = allocated()
    played.client.send(PEER, b"first", 0.0)
    played.answer(played.asked())
    assert played.client.datagrams_to_send(0.0) == [b"\x40\x00\x00\x05first"]
    return played


# --- the allocation -------------------------------------------------------------------------------------------------


def test_the_first_request_has_no_credentials_and_the_second_has() -> None:
    played = Played()
    first = played.asked()
    assert first.get(stun.USERNAME) is None
    assert first.get(stun.REQUESTED_ADDRESS_FAMILY) is None
    assert played.challenge(first).get(stun.USERNAME) == "node-1"


def test_an_ipv6_allocation_is_asked_for_by_name() -> None:
    assert Played(family=6).asked().get(stun.REQUESTED_ADDRESS_FAMILY) == 2


@pytest.mark.parametrize(("code", "says", "retry"), [
    (300, "that we cannot ask", None),
    (400, "Reason", None),
    (403, "does not allow us an allocation", None),
    (420, "Reason", None),
    (440, "address family", None),
    (441, "another username", None),
    (442, "does not relay UDP", None),
    (486, "quota", RETRY_AFTER),
    (500, "Reason", RETRY_AFTER),
    (508, "no capacity", RETRY_AFTER),
])  # fmt: skip
def test_what_a_refusal_means(code: int, says: str, retry: float | None) -> None:
    played = Played()
    played.refuse(played.challenge(played.asked()), code)
    [failed] = played.client.events()
    assert isinstance(failed, Failed)
    assert failed.failure.code == code
    assert says in str(failed)
    assert failed.retry_after == retry
    assert played.client.next_timeout() is None


@pytest.mark.parametrize("challenged", [False, True])
def test_another_server_is_named_by_one_that_may(challenged: bool) -> None:
    """Before there are credentials by anybody, as of every answer then, and later by who has signed it."""
    other = (ip_address("192.0.2.77"), 3479)
    played = Played()
    request = played.challenge(played.asked()) if challenged else played.asked()
    if challenged:
        played.refuse(request, 300, (stun.ALTERNATE_SERVER, PEER), key=None)
        assert played.client.events() == []
    played.refuse(request, 300, (stun.ALTERNATE_SERVER, other), key=KEY if challenged else None)
    [failed] = played.client.events()
    assert isinstance(failed, Failed)
    assert failed.instead == other


@pytest.mark.parametrize("code", [400, 420, 440])
def test_of_a_server_that_refuses_both_ip_versions_ipv4_is_asked_for(code: int) -> None:
    played = Played(both=True)
    request = played.challenge(played.asked())
    assert request.get(stun.ADDITIONAL_ADDRESS_FAMILY) == 2
    played.refuse(request, code)
    request = played.asked()
    assert request.method == stun.ALLOCATE and request.get(stun.ADDITIONAL_ADDRESS_FAMILY) is None
    played.refuse(request, code)
    assert [type(event) for event in played.client.events()] == [Failed]


def test_wrong_credentials_are_final() -> None:
    played = Played()
    played.refuse(played.challenge(played.asked()), 401, (stun.REALM, "example.org"), (stun.NONCE, b"other"), key=None)
    [failed] = played.client.events()
    assert failed == Failed(Failure(401, "Reason: the server does not accept the username or the credential"), None)


def test_a_challenge_that_cannot_be_met_is_an_end() -> None:
    played = Played()
    played.refuse(played.asked(), 401, key=None)
    assert played.client.events() == [Failed(Failure(0, "401 Reason, without a realm or a nonce"), RETRY_AFTER)]


def test_stale_nonces_are_replaced_but_not_for_ever() -> None:
    played = Played()
    request = played.challenge(played.asked())
    request = played.challenge(request, 438, b"second")
    request = played.challenge(request, 438, b"third")
    played.refuse(request, 438, (stun.REALM, "example.org"), (stun.NONCE, b"fourth"), key=None)
    [failed] = played.client.events()
    assert isinstance(failed, Failed)
    assert "every nonce stale" in failed.failure.reason
    assert failed.retry_after == RETRY_AFTER


def test_a_server_that_does_not_answer_may_do_so_later() -> None:
    played = Played()
    assert played.silence() == [Failed(Failure(0, "no answer"), RETRY_AFTER)]
    assert played.now == PATIENCE


def test_an_allocation_of_a_former_process_is_released_once() -> None:
    played = Played()
    played.refuse(played.challenge(played.asked()), 437)
    release = played.asked()
    assert (release.method, release.get(stun.LIFETIME)) == (stun.REFRESH, 0)
    played.answer(release)
    again = played.asked()
    assert again.method == stun.ALLOCATE
    played.refuse(again, 437)
    [failed] = played.client.events()
    assert isinstance(failed, Failed)
    assert (failed.failure.code, failed.retry_after) == (437, RETRY_AFTER)


@pytest.mark.parametrize("missing", [stun.XOR_RELAYED_ADDRESS, stun.XOR_MAPPED_ADDRESS])
def test_an_allocation_without_its_addresses_is_none(missing: Attribute[Endpoint]) -> None:
    played = Played()
    request = played.challenge(played.asked())
    fields = [(stun.XOR_RELAYED_ADDRESS, RELAYED), (stun.XOR_MAPPED_ADDRESS, MAPPED)]
    played.answer(request, *[field for field in fields if field[0] is not missing])
    assert played.client.events() == [Failed(Failure(0, "an allocation without its addresses"), RETRY_AFTER)]


@pytest.mark.parametrize(("lifetime", "refreshed_after"), [(600, 540), (3600, 3540), (60, 30), (100, 50)])
def test_it_is_refreshed_before_it_ends(lifetime: int, refreshed_after: float) -> None:
    played = allocated(lifetime)
    for _ in range(3):
        start = played.now
        request = played.next_request()
        assert request.method == stun.REFRESH
        assert played.now - start == refreshed_after
        played.answer(request, (stun.LIFETIME, lifetime))
    assert played.client.relayed == RELAYED


def test_a_refresh_meets_a_stale_nonce() -> None:
    played = allocated()
    request = played.challenge(played.next_request(), 438, b"second")
    assert request.method == stun.REFRESH
    played.answer(request, (stun.LIFETIME, 600))
    assert played.next_request().get(stun.NONCE) == b"second"


def test_a_server_may_change_its_realm() -> None:
    played = allocated()
    request = played.next_request()
    played.refuse(request, 438, (stun.REALM, "example.com"), (stun.NONCE, b"second"), key=None)
    [datagram] = played.client.datagrams_to_send(played.now)
    assert stun.decode(datagram).get(stun.REALM) == "example.com"
    assert stun.is_authentic(datagram, stun.long_term_key("node-1", "example.com", "secret"))


def test_a_credential_that_is_of_another_realm_by_now_is_tried_there_once() -> None:
    played = allocated()
    changed = (stun.REALM, "example.com"), (stun.NONCE, b"second")
    played.refuse(played.next_request(), 401, *changed, key=None)
    [datagram] = played.client.datagrams_to_send(played.now)
    key = stun.long_term_key("node-1", "example.com", "secret")
    assert stun.is_authentic(datagram, key)
    played.refuse(stun.decode(datagram), 401, *changed, key=None)
    assert [type(event) for event in played.client.events()] == [Expired]


@pytest.mark.parametrize("code", [437, 441, 500])
def test_a_refused_refresh_is_the_end(code: int) -> None:
    played = allocated()
    played.refuse(played.next_request(), code)
    assert played.client.events() == [Expired(Failure(code, "Reason"))]
    assert played.client.relayed is None
    assert played.client.next_timeout() is None


def test_a_probe_that_is_answered_puts_the_refresh_off_and_one_that_is_not_is_the_end() -> None:
    played = allocated()
    played.now = 500
    played.client.probe(played.now)
    played.client.probe(played.now)  # one is under way
    (request,) = (it for it in map(stun.decode, played.client.datagrams_to_send(500)) if it.kind is Kind.REQUEST)
    assert request.method == stun.REFRESH
    played.answer(request, (stun.LIFETIME, 600))
    played.now = 540  # when it would have been due
    assert all(stun.decode(each).kind is not Kind.REQUEST for each in played.client.datagrams_to_send(played.now))
    assert played.next_request().method == stun.REFRESH and played.now == 500 + 540
    played = allocated()
    played.client.probe(played.now)
    assert [type(event) for event in played.silence()] == [Expired]
    assert played.now <= 5
    played.client.probe(played.now)
    assert played.client.datagrams_to_send(played.now) == []


def test_an_unanswered_refresh_is_the_end_before_the_lifetime_is() -> None:
    played = allocated()
    assert played.silence() == [Expired(Failure(0, "no answer"))]
    assert played.now == 540 + 39.5


def test_the_mapping_before_us_is_kept() -> None:
    played = allocated()
    played.now = KEEPALIVE
    [datagram] = played.client.datagrams_to_send(played.now)
    assert stun.decode(datagram).kind is Kind.INDICATION
    assert stun.decode(datagram).method == stun.BINDING
    played.client.send(PEER, b"traffic keeps it too", 30.0)
    assert len(played.client.datagrams_to_send(30.0)) == 1
    retransmissions = [when for when in range(31, 50) if played.client.datagrams_to_send(float(when))]
    assert stun.decode(datagram).kind is Kind.INDICATION
    assert retransmissions == [31, 32, 34, 38, 46], "of the ChannelBind, and no keepalive between them"


def test_release_asks_again_until_it_is_answered() -> None:
    played = allocated()
    played.client.release(0.0)
    request = played.asked()
    assert (request.method, request.get(stun.LIFETIME)) == (stun.REFRESH, 0)
    assert played.next_request() == request
    played.answer(played.challenge(request, 438, b"second"), (stun.LIFETIME, 0))
    assert played.client.next_timeout() is None
    assert played.client.events() == []


def test_release_before_there_were_credentials_asks_nothing() -> None:
    played = Played()
    played.client.release(0.0)
    assert played.client.datagrams_to_send(0.0) == []
    assert played.client.next_timeout() is None


# --- forgeries ------------------------------------------------------------------------------------------------------


def test_a_forged_answer_does_not_end_the_request() -> None:
    played = Played()
    request = played.challenge(played.asked())
    fields = ((stun.XOR_RELAYED_ADDRESS, RELAYED), (stun.XOR_MAPPED_ADDRESS, MAPPED), (stun.LIFETIME, 600))
    played.answer(request, *fields, key=None)
    played.answer(request, *fields, key=b"guessed")
    played.refuse(request, 403, key=None)
    assert played.client.events() == []
    assert played.client.relayed is None
    played.answer(request, *fields)
    assert played.client.events() == [Allocated(RELAYED, MAPPED)]


def test_an_error_that_nobody_vouched_for_is_at_least_named() -> None:
    played = Played()
    played.refuse(played.challenge(played.asked()), 400, key=None)
    assert played.silence() == [Failed(Failure(400, "Reason"), None)]
    assert played.now == PATIENCE


def test_an_answer_with_unknown_attributes_is_a_failure() -> None:
    played = Played()
    request = played.challenge(played.asked())
    message = Message(request.method, Kind.SUCCESS, request.transaction_id, ((0x0077, b""),))
    played.client.datagram_received(stun.encode(message, key=KEY), 0.0)
    [failed] = played.client.events()
    assert "0x77" in str(failed)


@pytest.mark.parametrize(
    "datagram", [b"", b"\x40", b"\x40\x00\x00", b"\x40\x00\x00\x05four", b"\x40\x01\x00\x00", b"?"]
)
def test_datagrams_that_are_nothing_change_nothing(datagram: bytes) -> None:
    played = bound()
    timeout = played.client.next_timeout()
    played.client.datagram_received(datagram, 0.0)
    assert played.client.events() == []
    assert played.client.datagrams_to_send(0.0) == []
    assert played.client.next_timeout() == timeout


def test_data_of_a_peer_that_we_did_not_ask_for_is_dropped() -> None:
    played = allocated()
    indication = Message(stun.DATA_METHOD, Kind.INDICATION, bytes(12)).add(stun.DATA, b"data")
    with_peer = indication.add(stun.XOR_PEER_ADDRESS, PEER)
    played.client.datagram_received(stun.encode(with_peer), 0.0)
    assert played.client.events() == []
    played.client.permit(PEER, 0.0)
    played.client.datagram_received(stun.encode(indication), 0.0)
    assert played.client.events() == []
    played.client.datagram_received(stun.encode(with_peer), 0.0)
    assert played.client.events() == [Received(PEER, b"data")]


# --- peers ----------------------------------------------------------------------------------------------------------


def test_padding_behind_channel_data_is_not_data() -> None:
    played = bound()
    played.client.datagram_received(b"\x40\x00\x00\x05hello\0\0\0", 0.0)
    assert played.client.events() == [Received(PEER, b"hello")]


def test_a_peer_is_renewed_in_time() -> None:
    played = bound()
    for _ in range(2):
        start = played.now
        request = played.next_request()
        assert request.method == stun.CHANNEL_BIND, "which renews the permission too"
        assert played.now - start == PEER_INTERVAL < 300
        assert request.get(stun.CHANNEL_NUMBER) == 0x4000
        assert request.get(stun.XOR_PEER_ADDRESS) == PEER
        played.answer(request)


def test_without_a_channel_it_goes_by_indications() -> None:
    played = allocated()
    played.client.send(PEER, b"data", 0.0)
    played.refuse(played.asked(), 508)
    permission = played.asked()
    assert permission.method == stun.CREATE_PERMISSION
    played.answer(permission)
    [datagram] = played.client.datagrams_to_send(0.0)
    message = stun.decode(datagram)
    assert (message.method, message.kind) == (stun.SEND, Kind.INDICATION)
    assert (message.get(stun.XOR_PEER_ADDRESS), message.get(stun.DATA)) == (PEER, b"data")
    assert played.next_request().method == stun.CREATE_PERMISSION


def test_a_peer_that_the_server_refuses_is_named() -> None:
    played = allocated()
    played.client.send(PEER, b"data", 0.0)
    played.refuse(played.asked(), 403)
    played.refuse(played.asked(), 403)
    assert played.client.events() == [Refused(PEER, Failure(403, "Reason"))]
    played.client.send(PEER, b"data", 0.0)
    assert played.asked().method == stun.CHANNEL_BIND, "it is asked anew"


def test_a_peer_that_is_forgotten_before_the_server_refuses_it_is_nobody() -> None:
    played = allocated()
    played.client.permit(PEER, 0.0)
    request = played.asked()
    played.client.forget(PEER)
    played.refuse(request, 403)
    assert played.client.events() == []
    assert played.client.datagrams_to_send(0.0) == []


def test_only_a_few_datagrams_wait_for_a_permission() -> None:
    played = allocated()
    for number in range(100):
        played.client.send(PEER, bytes((number,)), 0.0)
    played.answer(played.asked())
    assert played.client.datagrams_to_send(0.0) == [b"\x40\x00\x00\x01%c" % number for number in range(WAITING)]


def test_channels_run_out_and_are_not_given_twice() -> None:
    played = allocated()
    for number in range(len(CHANNELS) + 1):
        peer = (ip_address(0xC0000200 + number), 1)
        played.client.send(peer, b"", 0.0)
        request = played.asked()
        assert request.get(stun.CHANNEL_NUMBER) == (CHANNELS[number] if number < len(CHANNELS) else None)
        played.answer(request)
        played.client.datagrams_to_send(0.0)
        played.client.forget(peer)


def test_nothing_is_sent_before_there_is_an_allocation() -> None:
    played = Played()
    played.client.send(PEER, b"data", 0.0)
    played.client.permit(PEER, 0.0)
    assert played.asked().method == stun.ALLOCATE


def test_a_peer_that_was_permitted_and_then_used_is_renewed_once_an_interval() -> None:
    played = allocated()
    played.client.permit(PEER, 0.0)
    played.answer(played.asked())
    played.now = 5.0
    played.client.send(PEER, b"data", 5.0)
    bind, _ = map(stun.decode, played.client.datagrams_to_send(5.0))
    played.answer(bind)
    asked = []
    while played.now < 500:
        request = played.next_request()
        asked.append((played.now, request.method))
        played.answer(request)
    assert asked == [(245, stun.CHANNEL_BIND), (485, stun.CHANNEL_BIND), (540, stun.REFRESH)]
