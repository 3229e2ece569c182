"""The relay's rules: who may, to whom, for how long, and what every malformed or forged request gets."""

from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from relay_asker import CHANNEL, TO_PEER, UDP, Asker, allocated
from turn_network import CLIENT, EXTERNAL, PEER, PEER_ADDRESS, PortsInMemory, server

from overlayd.errors import ProtocolError
from overlayd.proto import relay as relay_module
from overlayd.proto import stun
from overlayd.proto.relay import NONCE_LIFETIME, ToPeer
from overlayd.proto.stun import Attribute, Failure, Kind, Message

# --- credentials ----------------------------------------------------------------------------------------------------


def test_there_is_no_relay_without_a_credential() -> None:
    with pytest.raises(ValueError, match="anybody"):
        server(credential="")


def test_nobody_gets_anything_without_credentials() -> None:
    asker = Asker(server())
    for method in (stun.ALLOCATE, stun.REFRESH, stun.CREATE_PERMISSION, stun.CHANNEL_BIND):
        answer = asker.give(stun.encode(asker.message(method, UDP, TO_PEER, CHANNEL, bare=True)))
        assert answer is not None
        assert answer.get(stun.ERROR_CODE) == Failure(401, "Unauthorized")
        assert answer.get(stun.REALM) == "overlayd"
        assert answer.get(stun.NONCE)
    assert not asker.relay.sessions


@pytest.mark.parametrize("sha256", [False, True])
def test_either_integrity_will_do(sha256: bool) -> None:
    asker = Asker(server())
    assert asker.ask(stun.ALLOCATE, UDP, sha256=sha256).kind is Kind.SUCCESS


def test_a_wrong_credential_is_refused_and_counted() -> None:
    asker = Asker(server(), credential="wrong")
    assert asker.refused(stun.ALLOCATE, UDP) == 401
    assert asker.refused(stun.ALLOCATE, UDP) == 401
    assert asker.relay.forged == 2
    assert not asker.relay.sessions


@pytest.mark.parametrize("missing", [stun.USERNAME, stun.REALM, stun.NONCE])
def test_credentials_are_complete_or_bad(missing: Attribute[Any]) -> None:
    asker = Asker(server())
    asker.challenge()
    message = asker.message(stun.ALLOCATE, UDP)
    kept = tuple(field for field in message.attributes if field[0] != missing.type)
    cut = Message(message.method, message.kind, message.transaction_id, kept)
    answer = asker.give(stun.encode(cut, key=asker.key))
    assert answer is not None
    assert answer.get(stun.ERROR_CODE).code == 400  # type: ignore[union-attr]


def test_a_nonce_is_good_for_a_while_and_for_one_client() -> None:
    asker = Asker(server())
    asker.challenge()
    for now, refused in ((NONCE_LIFETIME - 1, False), (NONCE_LIFETIME, True)):
        asker.now = now
        assert asker.refused(stun.ALLOCATE, UDP) == (438 if refused else 0)
    thief = Asker(asker.relay, ("198.51.100.7", 40001))
    thief.nonce = asker.nonce
    assert thief.refused(stun.ALLOCATE, UDP) == 438
    assert asker.relay.forged == 0, "a stale nonce is no attack"


@pytest.mark.parametrize("nonce", [b"x", b"0", b"-1-00", b"0-" + b"0" * 32, b"\xff-\xff", b"f" * 700, b"0x0-1"])
def test_a_nonce_that_we_did_not_give_is_stale(nonce: bytes) -> None:
    asker = Asker(server())
    asker.nonce = nonce
    answer = asker.ask(stun.ALLOCATE, UDP)
    assert answer.get(stun.ERROR_CODE) == Failure(438, "Stale Nonce")
    asker.nonce = answer.get(stun.NONCE) or b""
    assert asker.refused(stun.ALLOCATE, UDP) == 0


def test_every_bit_of_a_request_counts() -> None:
    """No flip in an authentic request is obeyed: it is dropped, or answered with an error."""
    asker = Asker(server())
    asker.challenge()
    request = stun.encode(asker.message(stun.ALLOCATE, UDP), key=asker.key)
    for bit in range(len(request) * 8):
        damaged = bytearray(request)
        damaged[bit // 8] ^= 1 << bit % 8
        answer = asker.relay.client_datagram(CLIENT, bytes(damaged), 0.0)
        if answer is not None and bit // 8 < len(request) - 8:  # behind that only the fingerprint stands
            assert isinstance(answer, bytes)
            assert stun.decode(answer).kind is Kind.ERROR or stun.decode(answer).method == stun.BINDING
            assert not asker.relay.sessions
    for length in range(len(request)):
        assert asker.relay.client_datagram(CLIENT, request[:length], 0.0) is None


def test_another_username_cannot_touch_a_session() -> None:
    asker = allocated()
    other = Asker(asker.relay, username="node-2")
    for method, fields in (
        (stun.REFRESH, ((stun.LIFETIME, 0),)),
        (stun.CREATE_PERMISSION, (TO_PEER,)),
        (stun.CHANNEL_BIND, (TO_PEER, CHANNEL)),
    ):
        assert other.refused(method, *fields) == 441  # type: ignore[arg-type]
    assert other.refused(stun.ALLOCATE, UDP) == 437
    assert asker.relay.sessions


# --- sessions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fields", "code"), [
    ((), 400),
    (((stun.REQUESTED_TRANSPORT, 6),), 442),
    ((UDP, (stun.REQUESTED_ADDRESS_FAMILY, 2)), 440),
    ((UDP, (stun.REQUESTED_ADDRESS_FAMILY, 1)), 0),
])  # fmt: skip
def test_what_an_allocate_must_say(fields: tuple[tuple[Attribute[Any], Any], ...], code: int) -> None:
    assert Asker(server()).refused(stun.ALLOCATE, *fields) == code


def test_an_ipv6_relay_relays_ipv6() -> None:
    asker = Asker(server(external=[ip_address("2001:db8::1")]), ("2001:db8::7", 4))
    assert asker.refused(stun.ALLOCATE, UDP) == 440, "without a family it is IPv4 that is asked for"
    assert asker.refused(stun.ALLOCATE, UDP, (stun.REQUESTED_ADDRESS_FAMILY, 2)) == 0
    assert asker.refused(stun.CREATE_PERMISSION, TO_PEER) == 443
    assert asker.refused(stun.CREATE_PERMISSION, (stun.XOR_PEER_ADDRESS, (ip_address("2001:db8::9"), 1))) == 0


BOTH: tuple[Attribute[Any], Any] = (stun.ADDITIONAL_ADDRESS_FAMILY, 2)
EXTERNAL6 = ip_address("2001:db8::1")
PEER6 = (ip_address("2001:db8::9"), 51820)


def test_one_session_may_have_an_address_of_each_ip_version() -> None:
    ports = PortsInMemory()
    asker = Asker(server(external=[EXTERNAL6, EXTERNAL], open_port=ports.take, close_port=ports.give_back))
    four, six = asker.ask(stun.ALLOCATE, UDP, BOTH).all(stun.XOR_RELAYED_ADDRESS)
    assert (four[0], six[0]) == (EXTERNAL, EXTERNAL6) and ports.open == {four[1], six[1]}
    assert len(asker.relay.sessions) == 1
    assert asker.refused(stun.CREATE_PERMISSION, TO_PEER, (stun.XOR_PEER_ADDRESS, PEER6)) == 0
    for number, (own, peer) in enumerate(((four, PEER), (six, PEER6)), 0x4000):
        address = (str(peer[0]), peer[1])
        send = Message(stun.SEND, Kind.INDICATION, bytes(12)).add(stun.XOR_PEER_ADDRESS, peer).add(stun.DATA, b"out")
        assert asker.data(stun.encode(send)) == ToPeer(own[1], address, b"out")
        assert asker.refused(stun.CHANNEL_BIND, (stun.CHANNEL_NUMBER, number), (stun.XOR_PEER_ADDRESS, peer)) == 0
        assert asker.data(number.to_bytes(2) + b"\0\3out") == ToPeer(own[1], address, b"out")
        assert asker.heard(address) == number.to_bytes(2) + b"\0\4data"
    # One of them is given back, with its channels.
    refresh = (stun.REQUESTED_ADDRESS_FAMILY, 1)
    assert asker.ask(stun.REFRESH, refresh, (stun.LIFETIME, 0)).get(stun.LIFETIME) == 0
    assert ports.open == {six[1]} and set(asker.relay.by_port) == {six[1]}
    assert asker.data(b"\x40\x00\0\3out") is None and asker.data(b"\x40\x01\0\3out") is not None
    assert asker.refused(stun.CREATE_PERMISSION, TO_PEER) == 443 == asker.refused(stun.REFRESH, refresh)
    asker.ask(stun.REFRESH, (stun.LIFETIME, 0))
    assert not ports.open and not asker.relay.sessions and not asker.relay.by_port


@pytest.mark.parametrize(("external", "missing"), [(EXTERNAL, (2, 440)), (EXTERNAL6, (1, 440))])
def test_who_asks_for_both_is_told_which_there_is_not(external: Any, missing: tuple[int, int]) -> None:
    asker = Asker(server(external=[external]))
    answer = asker.ask(stun.ALLOCATE, UDP, BOTH)
    ((address, _),) = answer.all(stun.XOR_RELAYED_ADDRESS)
    ((family, failure),) = answer.all(stun.ADDRESS_ERROR_CODE)
    assert address == external and (family, failure.code) == missing


def test_the_last_port_is_given_alone_and_both_are_asked_for_in_one_way() -> None:
    ports = PortsInMemory(1)
    asker = Asker(server(external=[EXTERNAL, EXTERNAL6], open_port=ports.take, close_port=ports.give_back))
    for wrong in (
        (UDP, BOTH, (stun.REQUESTED_ADDRESS_FAMILY, 1)),
        (UDP, (stun.ADDITIONAL_ADDRESS_FAMILY, 1)),
        (UDP, BOTH, (stun.EVEN_PORT, 0x80)),
    ):
        assert asker.refused(stun.ALLOCATE, *wrong) == 400
    answer = asker.ask(stun.ALLOCATE, UDP, BOTH)
    ((family, failure),) = answer.all(stun.ADDRESS_ERROR_CODE)
    assert len(list(answer.all(stun.XOR_RELAYED_ADDRESS))) == 1 and failure.code == 508 and family in (1, 2)


def test_unknown_attributes_are_named() -> None:
    asker = Asker(server())
    asker.challenge()
    message = asker.message(stun.ALLOCATE, UDP)
    strange = ((0x0022, bytes(8)), (0x7777, b""), (0x8777, b""))  # RESERVATION-TOKEN, which we never give, is the first
    message = Message(message.method, message.kind, message.transaction_id, strange + message.attributes)
    answer = asker.give(stun.encode(message, key=asker.key))
    assert answer is not None
    assert answer.get(stun.ERROR_CODE) == Failure(420, "Unknown Attribute")
    assert answer.get(stun.UNKNOWN_ATTRIBUTES) == (0x0022, 0x7777)


def test_an_allocate_sent_again_gets_the_same_answer_and_another_one_none() -> None:
    asker = Asker(server())
    asker.challenge()
    request = stun.encode(asker.message(stun.ALLOCATE, UDP), key=asker.key)
    first, again = asker.give(request), asker.give(request)
    assert first == again
    assert len(asker.relay.sessions) == 1
    assert asker.refused(stun.ALLOCATE, UDP) == 437


def test_capacity_is_bounded() -> None:
    relay = server(max_sessions=2)
    for port in (1, 2):
        Asker(relay, (CLIENT[0], port)).allocate()
    third = Asker(relay, (CLIENT[0], 3))
    assert third.refused(stun.ALLOCATE, UDP) == 508
    relay.close()
    assert third.refused(stun.ALLOCATE, UDP) == 0


def test_no_port_no_session() -> None:
    ports = PortsInMemory(free=1)
    relay = server(open_port=ports.take, close_port=ports.give_back)
    Asker(relay, (CLIENT[0], 1)).allocate()
    assert Asker(relay, (CLIENT[0], 2)).refused(stun.ALLOCATE, UDP) == 508
    assert len(relay.sessions) == 1
    relay.close()
    assert not ports.open


def test_an_even_port_can_be_had_but_no_pair() -> None:
    relay = server()
    Asker(relay, (CLIENT[0], 1)).allocate()
    odd = Asker(relay, (CLIENT[0], 2))
    assert odd.refused(stun.ALLOCATE, UDP, (stun.EVEN_PORT, 0x80)) == 508
    assert odd.refused(stun.ALLOCATE, UDP, (stun.EVEN_PORT, 0)) == 0
    assert relay.sessions[odd.client].ports[4] % 2 == 0


@pytest.mark.parametrize(("asked", "given"), [(None, 600), (1, 600), (600, 600), (1800, 1800), (1 << 31, 3600)])
def test_lifetimes(asked: int | None, given: int) -> None:
    asker = allocated()
    fields = () if asked is None else ((stun.LIFETIME, asked),)
    assert asker.ask(stun.REFRESH, *fields).get(stun.LIFETIME) == given
    assert asker.relay.next_timeout() == given
    asker.relay.expire(given - 0.1)
    assert asker.relay.sessions
    asker.now = given - 0.1
    asker.nonce = b""
    assert asker.refused(stun.CREATE_PERMISSION, TO_PEER) == 0
    asker.now = given
    assert asker.refused(stun.CREATE_PERMISSION, TO_PEER) == 437, "even before anybody looked at the clock"
    assert asker.relay.next_timeout() is None


def test_a_lifetime_of_zero_ends_it() -> None:
    asker = allocated()
    assert asker.ask(stun.REFRESH, (stun.LIFETIME, 0)).get(stun.LIFETIME) == 0
    assert not asker.relay.sessions
    assert asker.refused(stun.REFRESH, (stun.LIFETIME, 0)) == 437


def test_nothing_without_a_session() -> None:
    asker = Asker(server())
    assert asker.refused(stun.REFRESH) == 437
    assert asker.refused(stun.CREATE_PERMISSION, TO_PEER) == 437
    assert asker.refused(stun.CHANNEL_BIND, TO_PEER, CHANNEL) == 437
    assert asker.data(b"\x40\x00\x00\x01!") is None


# --- to whom --------------------------------------------------------------------------------------------------------


def permission(asker: Asker, text: str, port: int = 5) -> tuple[int, int]:
    """The codes of a CreatePermission and of a ChannelBind for a peer."""
    peer = (stun.XOR_PEER_ADDRESS, (ip_address(text), port))
    return asker.refused(stun.CREATE_PERMISSION, peer), asker.refused(stun.CHANNEL_BIND, peer, CHANNEL)


@pytest.mark.parametrize(
    "text", ["127.0.0.1", "127.255.0.1", "0.0.0.0", "169.254.169.254", "224.0.0.1", "239.1.1.1", "255.255.255.255"]
)
def test_this_host_and_its_links_are_never_relayed_to(text: str) -> None:
    assert permission(allocated(), text) == (403, 403)


@pytest.mark.parametrize(
    "text",
    [
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "fe80::1",
        "ff02::1",
    ],
)
def test_nor_by_way_of_ipv6(text: str) -> None:
    asker = Asker(server(external=[ip_address("2001:db8::1")]))
    asker.ask(stun.ALLOCATE, UDP, (stun.REQUESTED_ADDRESS_FAMILY, 2))
    assert permission(asker, text) == (403, 403)


def test_at_our_own_address_only_relayed_ports_are_peers() -> None:
    asker = allocated(refusal=lambda address: "its own")
    other = Asker(asker.relay, (CLIENT[0], 2)).allocate()
    assert permission(asker, str(EXTERNAL), 22) == (0, 403)
    assert permission(asker, str(EXTERNAL), other) == (0, 0)
    for port, delivered in ((22, False), (other, True), (0, False)):
        send = Message(stun.SEND, Kind.INDICATION, bytes(12)).add(stun.XOR_PEER_ADDRESS, (EXTERNAL, port))
        assert (asker.data(stun.encode(send.add(stun.DATA, b"x"))) is not None) is delivered


def test_one_forbidden_peer_spoils_the_request() -> None:
    asker = allocated()
    loopback = (stun.XOR_PEER_ADDRESS, (ip_address("127.0.0.1"), 1))
    assert asker.refused(stun.CREATE_PERMISSION, TO_PEER, loopback) == 403
    assert asker.heard() is None
    assert asker.refused(stun.CREATE_PERMISSION, TO_PEER, (stun.XOR_PEER_ADDRESS, (ip_address("192.0.2.10"), 1))) == 0
    assert asker.heard(("192.0.2.10", 9))
    assert asker.heard()


def test_a_refusal_says_why() -> None:
    asker = allocated(refusal=lambda address: "because")
    answer = asker.ask(stun.CREATE_PERMISSION, TO_PEER)
    assert answer.get(stun.ERROR_CODE) == Failure(403, "Forbidden: because")


def test_who_relays_here_is_at_his_address() -> None:
    asker = allocated()
    assert asker.relay.has_client_at(ip_address(CLIENT[0]))
    assert not asker.relay.has_client_at(ip_address("203.0.113.99"))


# --- permissions and channels ---------------------------------------------------------------------------------------


def test_a_permission_is_for_an_address_and_five_minutes() -> None:
    asker = allocated()
    assert asker.heard() is None
    assert asker.refused(stun.CREATE_PERMISSION, TO_PEER) == 0
    asker.now = 299.9
    message = stun.decode(asker.heard((PEER_ADDRESS[0], 1234)) or b"")
    assert (message.method, message.kind) == (stun.DATA_METHOD, Kind.INDICATION)
    assert (message.get(stun.XOR_PEER_ADDRESS), message.get(stun.DATA)) == ((PEER[0], 1234), b"data")
    assert asker.heard(("192.0.2.10", 51820)) is None
    send = Message(stun.SEND, Kind.INDICATION, bytes(12)).add(stun.XOR_PEER_ADDRESS, PEER).add(stun.DATA, b"out")
    port = asker.relay.sessions[CLIENT].ports[4]
    assert asker.data(stun.encode(send)) == ToPeer(port, PEER_ADDRESS, b"out")
    asker.now = 300
    assert asker.heard() is None
    assert asker.data(stun.encode(send)) is None


def test_a_send_indication_that_lacks_something_is_dropped() -> None:
    asker = allocated()
    asker.ask(stun.CREATE_PERMISSION, TO_PEER)
    send = Message(stun.SEND, Kind.INDICATION, bytes(12))
    assert asker.data(stun.encode(send.add(stun.DATA, b"out"))) is None
    assert asker.data(stun.encode(send.add(stun.XOR_PEER_ADDRESS, PEER))) is None
    strange = Message(stun.SEND, Kind.INDICATION, bytes(12), ((0x001A, b""),))  # DONT-FRAGMENT
    assert asker.data(stun.encode(strange.add(stun.DATA, b"out").add(stun.XOR_PEER_ADDRESS, PEER))) is None


@pytest.mark.parametrize(("fields", "code"), [
    ((TO_PEER,), 400),
    ((CHANNEL,), 400),
    ((TO_PEER, (stun.CHANNEL_NUMBER, 0x3FFF)), 400),
    ((TO_PEER, (stun.CHANNEL_NUMBER, 0x8000)), 400),
    ((TO_PEER, (stun.CHANNEL_NUMBER, 0x7FFF)), 0),
    ((CHANNEL, (stun.XOR_PEER_ADDRESS, (PEER[0], 0))), 403),
])  # fmt: skip
def test_what_a_channel_bind_must_say(fields: tuple[tuple[Attribute[Any], Any], ...], code: int) -> None:
    assert allocated().refused(stun.CHANNEL_BIND, *fields) == code


def test_a_create_permission_must_name_somebody() -> None:
    assert allocated().refused(stun.CREATE_PERMISSION) == 400


def test_a_channel_has_one_peer_and_a_peer_one_channel_while_it_lasts() -> None:
    asker = allocated()
    asker.ask(stun.REFRESH, (stun.LIFETIME, 3600))
    other = (stun.XOR_PEER_ADDRESS, (PEER[0], 2))
    assert asker.refused(stun.CHANNEL_BIND, TO_PEER, CHANNEL) == 0
    assert asker.refused(stun.CHANNEL_BIND, other, CHANNEL) == 400
    assert asker.refused(stun.CHANNEL_BIND, TO_PEER, (stun.CHANNEL_NUMBER, 0x4001)) == 400
    asker.now = 500
    assert asker.refused(stun.CHANNEL_BIND, TO_PEER, CHANNEL) == 0, "again, and its time begins anew"
    asker.now, asker.nonce = 1099, b""
    assert asker.refused(stun.CHANNEL_BIND, other, CHANNEL) == 400
    asker.now = 1100
    assert asker.refused(stun.CHANNEL_BIND, other, CHANNEL) == 0
    assert asker.refused(stun.CHANNEL_BIND, TO_PEER, (stun.CHANNEL_NUMBER, 0x4001)) == 0
    session = asker.relay.sessions[CLIENT]
    assert {channel.peer for channel in session.channels.values()} == {PEER_ADDRESS, (PEER_ADDRESS[0], 2)}
    assert len(session.by_peer) == 2


def test_what_a_client_can_make_us_remember_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "MOST_PERMISSIONS", 3)
    asker = allocated()

    def peer(number: int) -> tuple[Attribute[Any], Any]:
        return stun.XOR_PEER_ADDRESS, (ip_address(f"192.0.2.{number}"), 1)

    for number in range(3):
        assert asker.refused(stun.CHANNEL_BIND, peer(number), (stun.CHANNEL_NUMBER, 0x4000 + number)) == 0
    assert asker.refused(stun.CHANNEL_BIND, peer(3), (stun.CHANNEL_NUMBER, 0x4003)) == 508
    assert asker.refused(stun.CREATE_PERMISSION, peer(3)) == 508
    assert asker.refused(stun.CREATE_PERMISSION, peer(2)) == 0
    asker.now = 300
    assert asker.refused(stun.CREATE_PERMISSION, peer(3), peer(4)) == 0, "those that have ended make room"
    assert asker.refused(stun.CREATE_PERMISSION, peer(5)) == 0 or len(asker.relay.sessions[CLIENT].permissions) == 3


@pytest.mark.parametrize(
    "datagram", [b"\x40", b"\x40\x00\x00", b"\x40\x00\x00\x05four", b"\x40\x01\x00\x00", b"\x7f\xff\x00\x00"]
)
def test_channel_data_that_is_none_is_dropped(datagram: bytes) -> None:
    asker = allocated()
    asker.ask(stun.CHANNEL_BIND, TO_PEER, CHANNEL)
    assert asker.data(datagram) is None


@settings(deadline=None)
@given(st.binary(max_size=100), st.binary(max_size=3))
def test_channel_data_is_carried_as_it_is(data: bytes, padding: bytes) -> None:
    asker = allocated()
    asker.ask(stun.CHANNEL_BIND, TO_PEER, CHANNEL)
    datagram = b"\x40\x00" + len(data).to_bytes(2) + data + padding
    relayed = asker.data(datagram)
    assert relayed is not None
    assert (relayed.peer, bytes(relayed.data)) == (PEER_ADDRESS, data)
    back = asker.relay.peer_datagram(asker.relay.sessions[CLIENT], PEER_ADDRESS, data, 0.0)
    assert back == b"\x40\x00" + len(data).to_bytes(2) + data


# --- the rest -------------------------------------------------------------------------------------------------------


def test_anybody_may_ask_where_they_are_seen_from() -> None:
    asker = Asker(server())
    answer = asker.give(stun.encode(asker.message(stun.BINDING, bare=True), fingerprint=False))
    assert answer is not None
    assert answer.get(stun.XOR_MAPPED_ADDRESS) == (ip_address(CLIENT[0]), CLIENT[1])
    assert len(stun.encode(answer)) <= 48, "nobody's amplifier"


@settings(deadline=None)
@given(st.binary(max_size=80), st.integers(0, 0xFFF), st.sampled_from(Kind))
def test_anything_else_gets_no_answer_and_does_no_harm(noise: bytes, method: int, kind: Kind) -> None:
    asker = allocated()
    asker.relay.client_datagram(CLIENT, noise, 0.0)
    message = Message(method, kind, bytes(12), ((0x8022, noise),))
    try:
        datagram = stun.encode(message)
        stun.decode(datagram)
    except ProtocolError:
        return
    answer = asker.relay.client_datagram(CLIENT, datagram, 0.0)
    known = method in (stun.BINDING, stun.ALLOCATE, stun.REFRESH, stun.CREATE_PERMISSION, stun.CHANNEL_BIND)
    assert (answer is not None) is (kind is Kind.REQUEST and known)
    assert len(asker.relay.sessions) == 1
