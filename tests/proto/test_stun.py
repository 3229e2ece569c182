"""STUN messages: the published vectors, round trips, and what must be refused."""

import hashlib
import hmac
import json
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from overlayd.errors import ProtocolError
from overlayd.proto import stun
from overlayd.proto.stun import Failure, Kind, Message

FILE = json.loads((Path(__file__).parents[1] / "vectors/stun.json").read_text())
VECTORS = {vector["id"]: bytes.fromhex(vector["hex"]) for vector in FILE["vectors"]}
PASSWORD = FILE["credentials"]["short term"]["password"]
LONG_TERM = FILE["credentials"]["long term"]
KEYS = {
    **dict.fromkeys(("request", "ipv4_response", "ipv6_response"), stun.short_term_key(PASSWORD)),
    "long_term_request": stun.long_term_key(**LONG_TERM),
    "sha256_request": stun.long_term_key(**LONG_TERM, sha256=True),
}
ID = bytes(range(12))

texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=40)
endpoints = st.tuples(st.ip_addresses(), st.integers(0, 0xFFFF))
values = st.one_of(
    st.tuples(st.sampled_from([stun.MAPPED_ADDRESS, stun.XOR_MAPPED_ADDRESS, stun.XOR_PEER_ADDRESS]), endpoints),
    st.tuples(st.sampled_from([stun.USERNAME, stun.REALM, stun.SOFTWARE]), texts),
    st.tuples(st.just(stun.ERROR_CODE), st.builds(Failure, st.integers(300, 699), texts)),
    st.tuples(st.sampled_from([stun.LIFETIME]), st.integers(0, 0xFFFFFFFF)),
    st.tuples(st.sampled_from([stun.CHANNEL_NUMBER]), st.integers(0, 0xFFFF)),
    st.tuples(st.sampled_from([stun.REQUESTED_TRANSPORT, stun.REQUESTED_ADDRESS_FAMILY]), st.integers(0, 0xFF)),
    st.tuples(st.sampled_from([stun.NONCE, stun.DATA]), st.binary(max_size=60)),
    st.tuples(st.just(stun.UNKNOWN_ATTRIBUTES), st.lists(st.integers(0, 0xFFFF)).map(tuple)),
)
transaction_ids = st.binary(min_size=12, max_size=12)
methods = st.integers(0, 0xFFF)


@st.composite
def messages(draw: st.DrawFn) -> Message:
    message = Message(draw(methods), draw(st.sampled_from(Kind)), draw(transaction_ids))
    for attribute, value in draw(st.lists(values, max_size=6)):
        message = message.add(attribute, value)
    return message


def raw(*attributes: tuple[int, bytes], type: int = 1) -> bytes:
    """A message of attributes that nobody checks."""
    return stun.encode(Message(type, Kind.REQUEST, ID, attributes), fingerprint=False)


# --- the published vectors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VECTORS)
def test_a_vector_is_read_and_its_integrity_is_right(name: str) -> None:
    message = stun.decode(VECTORS[name])
    assert message.method == stun.BINDING
    assert stun.is_authentic(VECTORS[name], KEYS[name])
    assert not stun.is_authentic(VECTORS[name], b"another key")


def test_an_attribute_is_shown_by_its_name() -> None:
    assert repr(stun.USERNAME) == "USERNAME"


def test_the_vectors_values() -> None:
    request = stun.decode(VECTORS["request"])
    assert request.kind is Kind.REQUEST
    assert request.transaction_id.hex() == "b7e7a701bc34d686fa87dfae"
    assert request.get(stun.SOFTWARE) == "STUN test client"
    assert request.get(stun.USERNAME) == "evtj:h6vY"
    assert dict(request.attributes)[0x0024] == bytes.fromhex("6e0001ff")
    assert request.unknown() == (0x0024,)  # PRIORITY of ICE, which we do not speak
    for name, address in (("ipv4_response", "192.0.2.1"), ("ipv6_response", "2001:db8:1234:5678:11:2233:4455:6677")):
        response = stun.decode(VECTORS[name])
        assert response.kind is Kind.SUCCESS
        assert response.get(stun.SOFTWARE) == "test vector"
        assert response.get(stun.XOR_MAPPED_ADDRESS) == (ip_address(address), 32853)
    long_term = stun.decode(VECTORS["long_term_request"])
    assert long_term.get(stun.USERNAME) == "マトリックス"
    assert long_term.get(stun.NONCE) == b"f//499k954d6OL34oL9FSTvy64sA"
    assert long_term.get(stun.REALM) == "example.org"
    assert stun.decode(VECTORS["sha256_request"]).get(stun.NONCE) == b"obMatJos2AAACf//499k954d6OL34oL9FSTvy64sA"


def test_a_vector_with_zero_padding_is_written_byte_for_byte() -> None:
    message = stun.decode(VECTORS["long_term_request"])
    bare = Message(message.method, message.kind, message.transaction_id, message.attributes[:-1])
    assert stun.encode(bare, key=KEYS["long_term_request"], fingerprint=False) == VECTORS["long_term_request"]
    message = stun.decode(VECTORS["sha256_request"])
    bare = Message(message.method, message.kind, message.transaction_id, message.attributes[:-1])
    assert stun.encode(bare, key=KEYS["sha256_request"], sha256=True, fingerprint=False) == VECTORS["sha256_request"]


def test_passwords_are_opaque_strings() -> None:
    assert stun.short_term_key("a\u00a0b\u3000c") == b"a b c"
    assert stun.short_term_key("e\u0301") == "\u00e9".encode()
    assert stun.short_term_key("The\u00adM") == "The\u00adM".encode(), "nothing is left out"
    assert stun.long_term_key("user", "realm", "pass").hex() == "8493fbc53ba582fb4c044c456bdc40eb"  # RFC 8489 9.2.2
    assert stun.long_term_key("user", "realm", "pass", sha256=True) == hashlib.sha256(b"user:realm:pass").digest()


# --- round trips --------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(messages(), st.none() | st.binary(max_size=80), st.booleans(), st.booleans())
def test_round_trips(message: Message, key: bytes | None, sha256: bool, fingerprint: bool) -> None:
    datagram = stun.encode(message, key=key, sha256=sha256, fingerprint=fingerprint)
    assert stun.is_stun(datagram)
    decoded = stun.decode(datagram)
    assert decoded.attributes[: len(message.attributes)] == message.attributes
    assert (decoded.method, decoded.kind, decoded.transaction_id) == (
        message.method,
        message.kind,
        message.transaction_id,
    )
    assert len(decoded.attributes) == len(message.attributes) + (key is not None) + fingerprint
    assert stun.is_authentic(datagram, key or b"") is (key is not None)
    assert stun.is_authentic(datagram, (key or b"") + b"!") is False


@settings(deadline=None)
@given(transaction_ids, values)
def test_a_value_comes_back_as_it_was(transaction_id: bytes, value: tuple[stun.Attribute[object], object]) -> None:
    attribute, content = value
    message = Message(stun.ALLOCATE, Kind.SUCCESS, transaction_id).add(attribute, content)
    assert stun.decode(stun.encode(message)).get(attribute) == content


def test_the_first_of_several_counts_and_a_missing_one_is_none() -> None:
    message = Message(1, Kind.REQUEST, ID).add(stun.SOFTWARE, "first").add(stun.SOFTWARE, "second")
    assert message.get(stun.SOFTWARE) == "first"
    assert list(message.all(stun.SOFTWARE)) == ["first", "second"]
    assert message.get(stun.REALM) is None


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VECTORS)
def test_every_truncation_is_refused(name: str) -> None:
    datagram = VECTORS[name]
    for length in range(len(datagram)):
        with pytest.raises(ProtocolError):
            stun.decode(datagram[:length])
        if length >= 20 and length % 4 == 0:  # with the length made right, what is cut is an attribute, or integrity
            shorter = datagram[:2] + (length - 20).to_bytes(2) + datagram[4:length]
            try:
                stun.decode(shorter)
            except ProtocolError:
                continue
            assert not stun.is_authentic(shorter, KEYS[name]) or datagram[length : length + 2] == b"\x80\x28"


@pytest.mark.parametrize("name", VECTORS)
def test_every_bit_flip_is_refused_or_not_authentic(name: str) -> None:
    datagram = VECTORS[name]
    fingerprint = datagram[-8:-6] == b"\x80\x28"
    for bit in range(len(datagram) * 8):
        damaged = bytearray(datagram)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            stun.decode(bytes(damaged))
        except ProtocolError:
            continue
        # Only a FINGERPRINT that is no longer one lets the rest stand, for it is not protected itself.
        unprotected = fingerprint and len(datagram) - 8 <= bit // 8 < len(datagram) - 6
        assert unprotected or not stun.is_authentic(bytes(damaged), KEYS[name])


@pytest.mark.parametrize(("datagram", "says"), [
    (b"", "not a STUN"),
    (VECTORS["request"][:4] + b"\x21\x12\xa4\x43" + VECTORS["request"][8:], "not a STUN"),
    (b"\x40" + VECTORS["request"][1:], "not a STUN"),
    (VECTORS["request"] + bytes(4), "not a STUN"),
    (b"\x00\x01\x00\x02\x21\x12\xa4\x42" + ID + bytes(2), "multiple of 4"),
    (b"\x00\x01\x00\x04\x21\x12\xa4\x42" + ID + b"\x80\x22\x00\x01", "past the end"),
    (raw((0x0001, b"\0\1\0\1\1\2\3")), "MAPPED-ADDRESS is no address"),
    (raw((0x0001, b"\0\3\0\1\1\2\3\4")), "MAPPED-ADDRESS is no address"),
    (raw((0x0020, b"\0\2\0\1\1\2\3\4")), "XOR-MAPPED-ADDRESS is no address"),
    (raw((0x0020, b"")), "XOR-MAPPED-ADDRESS is no address"),
    (raw((0x0006, b"a" * 509)), "USERNAME of 509"),
    (raw((0x0006, b"\xff")), "USERNAME is not UTF-8"),
    (raw((0x0014, b"a" * 764)), "REALM of 764"),
    (raw((0x0015, b"a" * 764)), "NONCE of 764"),
    (raw((0x0008, bytes(19))), "MESSAGE-INTEGRITY of 19"),
    (raw((0x001C, bytes(12))), "MESSAGE-INTEGRITY-SHA256 of 12"),
    (raw((0x001C, bytes(18))), "MESSAGE-INTEGRITY-SHA256 of 18"),
    (raw((0x001C, bytes(36))), "MESSAGE-INTEGRITY-SHA256 of 36"),
    (raw((0x0009, b"\0\0\4")), "ERROR-CODE"),
    (raw((0x0009, b"\0\0\2\0")), "ERROR-CODE"),
    (raw((0x0009, b"\0\0\7\0")), "ERROR-CODE"),
    (raw((0x0009, b"\0\0\4\x64")), "ERROR-CODE"),
    (raw((0x0009, b"\0\0\4\1\xff")), "ERROR-CODE is not UTF-8"),
    (raw((0x000A, b"\0")), "UNKNOWN-ATTRIBUTES of 1"),
    (raw((0x000C, b"\0\0")), "CHANNEL-NUMBER of 2"),
    (raw((0x000D, b"\0\0\0\0\0")), "LIFETIME of 5"),
    (raw((0x8028, bytes(4)), (0x8022, b"")), "not the last"),
    (raw((0x8028, bytes(4))), "FINGERPRINT is wrong"),
    (raw((0x8028, bytes(8))), "not the last"),
])  # fmt: skip
def test_a_malformed_message_is_refused(datagram: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        stun.decode(datagram)


@settings(deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=40))
@example(b"", b"\0" * 4)
def test_an_untrusted_datagram_raises_nothing_else(noise: bytes, tail: bytes) -> None:
    body = noise + bytes(-len(noise) % 4)
    for datagram in (
        noise,
        VECTORS["request"] + tail,
        b"\0\1" + len(body).to_bytes(2) + b"\x21\x12\xa4\x42" + ID + body,
    ):
        try:
            message = stun.decode(datagram)
        except ProtocolError:
            continue
        for attribute in (stun.USERNAME, stun.XOR_MAPPED_ADDRESS, stun.ERROR_CODE, stun.UNKNOWN_ATTRIBUTES):
            message.get(attribute)
        stun.is_authentic(datagram, b"key")


def test_what_cannot_be_written_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="method 4096"):
        stun.encode(Message(0x1000, Kind.REQUEST, ID))
    with pytest.raises(ValueError, match="11 bytes"):
        stun.encode(Message(1, Kind.REQUEST, ID[:-1]))


# --- integrity ----------------------------------------------------------------------------------------------------


def forged(key: bytes, *after: tuple[int, bytes]) -> bytes:
    """An authentic message with attributes behind its integrity, as someone on the path could add them."""
    datagram = stun.encode(Message(1, Kind.SUCCESS, ID).add(stun.SOFTWARE, "a"), key=key, fingerprint=False)
    tail = raw(*after)[20:]
    return datagram[:2] + (len(datagram) + len(tail) - 20).to_bytes(2) + datagram[4:] + tail


def test_what_follows_integrity_is_left_out() -> None:
    address = stun.XOR_MAPPED_ADDRESS.write((IPv4Address("203.0.113.9"), 9), ID)
    datagram = forged(b"key", (stun.XOR_MAPPED_ADDRESS.type, address), (0x0008, bytes(20)))
    assert stun.is_authentic(datagram, b"key"), "the length that integrity covers ends with it"
    message = stun.decode(datagram)
    assert message.get(stun.XOR_MAPPED_ADDRESS) is None
    assert [type for type, _ in message.attributes] == [stun.SOFTWARE.type, stun.MESSAGE_INTEGRITY.type]


def test_a_second_integrity_must_be_right_as_well() -> None:
    datagram = forged(b"key", (stun.MESSAGE_INTEGRITY_SHA256.type, bytes(32)))
    assert stun.decode(datagram).get(stun.MESSAGE_INTEGRITY_SHA256) == bytes(32)
    assert not stun.is_authentic(datagram, b"key")


@pytest.mark.parametrize("size", [16, 20, 24, 28, 32])
def test_a_truncated_sha256_counts(size: int) -> None:
    message = Message(1, Kind.REQUEST, ID).add(stun.SOFTWARE, "overlayd")
    # The length is part of what is protected, so the truncated one is computed for itself.
    head = stun.encode(message, fingerprint=False)
    head = head[:2] + (len(head) + 4 + size - 20).to_bytes(2) + head[4:]
    mac = hmac.digest(b"key", head, "sha256")[:size]
    datagram = head + stun.MESSAGE_INTEGRITY_SHA256.type.to_bytes(2) + size.to_bytes(2) + mac
    assert stun.is_authentic(datagram, b"key")
    assert not stun.is_authentic(datagram[:-1] + bytes((datagram[-1] ^ 1,)), b"key")


# --- telling datagrams apart ----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 4), st.binary(min_size=28, max_size=200))
@example(1, stun.MAGIC_COOKIE.to_bytes(4) + bytes(140))
@example(4, stun.MAGIC_COOKIE.to_bytes(4) + bytes(24))
def test_a_message_of_wireguard_is_never_stun(type: int, rest: bytes) -> None:
    assert not stun.is_stun(bytes((type, 0, 0, 0)) + rest)
    assert not stun.is_stun(bytes((type, 0, 0, 0)) + stun.MAGIC_COOKIE.to_bytes(4) + rest)


@settings(deadline=None)
@given(messages())
def test_a_message_is_stun_in_any_buffer(message: Message) -> None:
    datagram = stun.encode(message)
    assert stun.is_stun(datagram)
    assert stun.is_stun(memoryview(datagram))
    assert not stun.is_stun(datagram + b"\0")


def test_addresses_of_both_families_are_masked_as_the_rfc_says() -> None:
    assert stun.XOR_MAPPED_ADDRESS.write((IPv4Address(0), 0), ID).hex() == "000121122112a442"
    assert stun.XOR_MAPPED_ADDRESS.write((IPv6Address(0), 0), ID).hex() == "000221122112a442" + ID.hex()
    assert stun.MAPPED_ADDRESS.write((IPv4Address("10.0.0.1"), 80), ID).hex() == "000100500a000001"
