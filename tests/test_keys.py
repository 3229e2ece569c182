"""Curve25519 keys: the RFC's example, a ladder in Python as oracle, and what is no key."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_keys import BASE, x25519

from overlayd import keys

# RFC 7748, section 6.1.
ALICE = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
ALICE_PUBLIC = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
BOB = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
BOB_PUBLIC = bytes.fromhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
COMMON = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")

chances = st.binary(min_size=keys.KEY_SIZE, max_size=keys.KEY_SIZE)


def test_the_example_of_the_rfc() -> None:
    assert (keys.public(ALICE), keys.public(BOB)) == (ALICE_PUBLIC, BOB_PUBLIC)
    assert keys.shared(ALICE, BOB_PUBLIC) == keys.shared(BOB, ALICE_PUBLIC) == COMMON


@settings(max_examples=25)
@given(chances, chances)
def test_both_computations_are_the_ladders(one: bytes, other: bytes) -> None:
    assert keys.public(one) == x25519(one, BASE)
    assert keys.shared(one, keys.public(other)) == x25519(one, x25519(other, BASE))


@given(chances)
def test_a_key_has_one_text(key: bytes) -> None:
    assert keys.parse(keys.text(key)) == key
    assert len(keys.text(key)) == 44


def test_a_fresh_key_is_clamped_and_no_other() -> None:
    made = {keys.generate() for _ in range(64)}
    assert len(made) == 64
    assert all(key[0] & 7 == 0 and key[31] & 0b1100_0000 == 0b0100_0000 and len(key) == 32 for key in made)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is 0 bytes, a key is 32"),
        ("not base64!", "is not base64"),
        ("AAAA", "is 3 bytes, a key is 32"),
        (keys.text(bytes(33)), "is 33 bytes, a key is 32"),
        (keys.text(bytes(32))[:-1], "is not base64"),
        (keys.text(bytes(32)) + "\n", "is not base64"),
        ("ä" * 44, "is not base64"),
    ],
)
def test_what_is_no_key_says_why(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        keys.parse(text)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_key_of_another_size_reaches_no_c_library(size: int) -> None:
    wrong = bytes(size)
    for compute in (
        lambda: keys.public(wrong),
        lambda: keys.shared(wrong, BOB_PUBLIC),
        lambda: keys.shared(ALICE, wrong),
    ):
        with pytest.raises(ValueError, match="32"):
            compute()


@pytest.mark.parametrize("point", [0, 1, 2**255 - 20, 2**255 - 19, 2**255 - 18])
def test_a_point_of_low_order_is_nobodys_key(point: int) -> None:
    with pytest.raises(ValueError, match="low order"):
        keys.shared(ALICE, point.to_bytes(32, "little"))


def test_what_is_called_nobodys_is_what_nothing_is_computed_with() -> None:
    assert len(keys._LOW_ORDER) == 14
    for key in keys._LOW_ORDER:
        assert keys.is_nobodys(key)
        with pytest.raises(ValueError, match="low order"):
            keys.shared(ALICE, key)
    assert not keys.is_nobodys(ALICE_PUBLIC) and not keys.is_nobodys(bytes([9, *bytes(31)]))
