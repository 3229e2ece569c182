"""STUN messages against aioice, an ICE implementation of its own: what we write it reads, and the other way round."""

import struct
from ipaddress import ip_address
from typing import Any

from aioice import stun as oracle
from hypothesis import given
from hypothesis import strategies as st

from overlayd.errors import ProtocolError
from overlayd.proto import stun
from overlayd.proto.stun import Attribute, Failure, Kind, Message

CLASSES = {
    Kind.REQUEST: oracle.Class.REQUEST,
    Kind.INDICATION: oracle.Class.INDICATION,
    Kind.SUCCESS: oracle.Class.RESPONSE,
    Kind.ERROR: oracle.Class.ERROR,
}
# By aioice's name: our attribute.  aioice keeps one value an attribute, and takes REQUESTED-TRANSPORT for a number of
# 32 bits, of which the first 8 are the protocol (RFC 8656, section 18.8).
ATTRIBUTES: dict[str, Attribute[Any]] = {
    "MAPPED-ADDRESS": stun.MAPPED_ADDRESS,
    "USERNAME": stun.USERNAME,
    "ERROR-CODE": stun.ERROR_CODE,
    "CHANNEL-NUMBER": stun.CHANNEL_NUMBER,
    "LIFETIME": stun.LIFETIME,
    "XOR-PEER-ADDRESS": stun.XOR_PEER_ADDRESS,
    "DATA": stun.DATA,
    "REALM": stun.REALM,
    "NONCE": stun.NONCE,
    "XOR-RELAYED-ADDRESS": stun.XOR_RELAYED_ADDRESS,
    "REQUESTED-TRANSPORT": stun.REQUESTED_TRANSPORT,
    "XOR-MAPPED-ADDRESS": stun.XOR_MAPPED_ADDRESS,
    "SOFTWARE": stun.SOFTWARE,
}

texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=40)
endpoints = st.tuples(st.ip_addresses(), st.integers(0, 0xFFFF))
VALUES: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(
        ("MAPPED-ADDRESS", "XOR-PEER-ADDRESS", "XOR-RELAYED-ADDRESS", "XOR-MAPPED-ADDRESS"),
        endpoints,
    ),
    **dict.fromkeys(("USERNAME", "REALM", "SOFTWARE"), texts),
    **dict.fromkeys(("DATA", "NONCE"), st.binary(max_size=60)),
    "ERROR-CODE": st.builds(Failure, st.integers(300, 699), texts),
    "CHANNEL-NUMBER": st.integers(0, 0xFFFF),
    "LIFETIME": st.integers(0, 0xFFFFFFFF),
    "REQUESTED-TRANSPORT": st.integers(0, 0xFF),
}
values = st.fixed_dictionaries({}, optional=VALUES)
ids = st.binary(min_size=12, max_size=12)
methods = st.sampled_from(list(oracle.Method))
keys = st.binary(min_size=1, max_size=40)


def theirs(name: str, value: Any) -> Any:
    """A value as aioice has it."""
    match name:
        case "REQUESTED-TRANSPORT":
            return value << 24
        case "ERROR-CODE":
            return tuple(value)
        case _ if isinstance(value, tuple):
            return (str(value[0]), value[1])
    return value


def ours(kind: Kind, method: int, id: bytes, values: dict[str, Any]) -> Message:
    message = Message(method, kind, id)
    for name, value in values.items():
        message = message.add(ATTRIBUTES[name], value)
    return message


@given(st.sampled_from(Kind), methods, ids, values, st.none() | keys)
def test_aioice_reads_what_we_write(kind, method, id, values, key) -> None:
    data = stun.encode(ours(kind, method, id, values), key=key)
    read = oracle.parse_message(data)
    assert key is None or read.check_message_integrity(key)
    assert (read.message_method, read.message_class, read.transaction_id) == (method, CLASSES[kind], id)
    shown = dict(read.attributes)
    assert "FINGERPRINT" in shown, "aioice has checked it"
    assert ("MESSAGE-INTEGRITY" in shown) == (key is not None)
    for name in ("FINGERPRINT", "MESSAGE-INTEGRITY"):
        shown.pop(name, None)
    assert shown == {name: theirs(name, value) for name, value in values.items()}


@given(st.sampled_from(Kind), methods, ids, values, st.none() | keys)
def test_we_read_what_aioice_writes(kind, method, id, values, key) -> None:
    message = oracle.Message(method, CLASSES[kind], id, {name: theirs(name, each) for name, each in values.items()})
    if key is None:
        message.add_fingerprint()
    else:
        message.add_message_integrity(key)
    data = bytes(message)
    read = stun.decode(data)
    assert (read.method, read.kind, read.transaction_id) == (method, kind, id)
    assert {name: read.get(attribute) for name, attribute in ATTRIBUTES.items() if name in values} == values
    if key is not None:
        assert stun.is_authentic(data, key)
        assert not stun.is_authentic(data, key + b"!")


@given(ids, endpoints, keys, st.data())
def test_we_take_no_damaged_message_that_aioice_refuses(id, endpoint, key, data) -> None:
    good = stun.encode(Message(stun.BINDING, Kind.SUCCESS, id).add(stun.XOR_MAPPED_ADDRESS, endpoint), key=key)
    bit = data.draw(st.integers(0, 8 * len(good) - 1))
    damaged = bytearray(good)
    damaged[bit // 8] ^= 1 << bit % 8
    assert not accepted_by_us(bytes(damaged), key) or accepted_by_aioice(bytes(damaged), key)


def accepted_by_us(datagram: bytes, key: bytes) -> bool:
    try:
        stun.decode(datagram)
    except ProtocolError:
        return False
    return stun.is_authentic(datagram, key)


def accepted_by_aioice(datagram: bytes, key: bytes) -> bool:
    try:
        return oracle.parse_message(datagram).check_message_integrity(key)
    except (ValueError, struct.error):  # it raises the latter for an attribute that is cut short
        return False


def test_the_published_address_is_the_same_for_both() -> None:
    endpoint = (ip_address("2001:db8:1234:5678:11:2233:4455:6677"), 32853)
    data = stun.encode(Message(stun.BINDING, Kind.SUCCESS, bytes(12)).add(stun.XOR_MAPPED_ADDRESS, endpoint))
    assert oracle.parse_message(data).attributes["XOR-MAPPED-ADDRESS"] == (str(endpoint[0]), endpoint[1])
