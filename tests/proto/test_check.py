"""Connectivity checks: who can make one, and that nobody else's passes for one."""

from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from overlayd import keys
from overlayd.proto import check, stun
from overlayd.proto.stun import BINDING, Kind, Message

ALPHA, BETA, EVE = (keys.generate() for _ in range(3))
ID = b"0123456789ab"
SENDER = (ip_address("192.0.2.1"), 51820)


def between(one: bytes, other: bytes) -> check.Credentials:
    """What the node with private key `one` has for checks with the other."""
    return check.credentials(keys.shared(one, keys.public(other)), keys.public(one), keys.public(other))


def test_both_sides_have_the_same_key_and_each_its_names() -> None:
    here, there = between(ALPHA, BETA), between(BETA, ALPHA)
    assert (here.key, here.ours, here.theirs) == (there.key, there.theirs, there.ours)
    assert len({*here.ours, *here.theirs}) == 4
    assert between(ALPHA, EVE).key != here.key


def test_a_check_and_its_answer_are_read_and_known_as_the_peers() -> None:
    here, there = between(ALPHA, BETA), between(BETA, ALPHA)
    for relayed in (False, True):
        asked = check.request(ID, here, relayed=relayed)
        message = check.read(asked)
        assert message is not None and message.kind is Kind.REQUEST
        assert message.get(stun.USERNAME) == there.ours[relayed]
        assert check.is_of(asked, there) and not check.is_of(asked, between(EVE, ALPHA))
    answered = check.answer(ID, SENDER, there)
    message = check.read(answered)
    assert message is not None and (message.kind, message.transaction_id) == (Kind.SUCCESS, ID)
    assert message.get(stun.XOR_MAPPED_ADDRESS) == SENDER
    assert check.is_of(answered, here)


def test_what_is_no_check_is_none() -> None:
    here = between(ALPHA, BETA)
    assert check.read(b"") is None
    assert check.read(stun.encode(Message(stun.ALLOCATE, Kind.REQUEST, ID), key=here.key)) is None
    assert check.read(stun.encode(Message(BINDING, Kind.INDICATION, ID), key=here.key)) is None
    assert check.read(stun.encode(Message(BINDING, Kind.REQUEST, ID, ((0x0024, bytes(4)),)), key=here.key)) is None
    bare = stun.encode(Message(BINDING, Kind.REQUEST, ID).add(stun.USERNAME, here.theirs.direct))
    assert check.read(bare) is not None and not check.is_of(bare, here)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_check_with_any_bit_turned_is_none(place, mask) -> None:
    here = between(ALPHA, BETA)
    datagram = bytearray(check.request(ID, here, relayed=False))
    protected = len(datagram) - 8  # what follows is the fingerprint, which protects nothing
    datagram[place % protected] ^= mask
    assert check.read(bytes(datagram)) is None or not check.is_of(bytes(datagram), here)
