"""A STUN client against a clock that is an argument: when it sends, when it gives up, and what it believes."""

from ipaddress import IPv4Address

import pytest

from overlayd.proto import stun
from overlayd.proto.stun import BINDING, Failure, Kind, Message
from overlayd.proto.stun_client import TIMED_OUT, Binding, Transaction

ID = bytes(range(12))
MAPPED = (IPv4Address("198.51.100.7"), 4711)


def answer(kind: Kind = Kind.SUCCESS, transaction_id: bytes = ID, method: int = BINDING) -> Message:
    return Message(method, kind, transaction_id)


def asked(now: float = 0.0) -> Binding:
    binding = Binding(ID, now)
    [datagram] = binding.datagrams_to_send(now)
    request = stun.decode(datagram)
    assert (request.method, request.kind, request.transaction_id) == (BINDING, Kind.REQUEST, ID)
    return binding


def test_the_timetable_of_the_rfc() -> None:
    binding = Binding(ID, 100.0)
    sent = []
    while (due := binding.next_timeout()) is not None:
        assert binding.datagrams_to_send(due - 0.001) == []
        sent += [due - 100.0] * len(binding.datagrams_to_send(due))
    assert sent == [0.0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5]
    assert due is None
    assert binding.outcome == TIMED_OUT


def test_the_last_answer_that_counts_comes_before_39_5_seconds() -> None:
    transaction = Transaction(ID, b"request", 0.0)
    while transaction.datagrams_to_send(transaction.next_timeout()):
        pass
    assert transaction.next_timeout() == 39.5
    assert not transaction.timed_out(39.499)
    assert transaction.timed_out(39.5)


def test_what_a_stream_carries_is_sent_once_and_waited_for_as_long() -> None:
    transaction = Transaction(ID, b"request", 0.0, stream=True)
    assert transaction.datagrams_to_send(0.0) == [b"request"]
    assert transaction.next_timeout() == 39.5
    assert transaction.datagrams_to_send(39.499) == [] and not transaction.timed_out(39.499)
    assert transaction.timed_out(39.5)


def test_a_client_that_slept_does_not_send_what_it_missed() -> None:
    transaction = Transaction(ID, b"request", 0.0)
    assert transaction.datagrams_to_send(30.0) == [b"request"]
    assert transaction.datagrams_to_send(30.0) == []
    assert transaction.next_timeout() == 30.5


def test_the_mapped_address_ends_it() -> None:
    binding = asked()
    assert binding.datagram_received(stun.encode(answer().add(stun.XOR_MAPPED_ADDRESS, MAPPED)))
    assert binding.outcome == MAPPED
    assert binding.next_timeout() is None
    assert binding.datagrams_to_send(1000.0) == []


def test_an_old_servers_address_counts_too() -> None:
    binding = asked()
    assert binding.datagram_received(stun.encode(answer().add(stun.MAPPED_ADDRESS, MAPPED), fingerprint=False))
    assert binding.outcome == MAPPED


def test_a_second_answer_changes_nothing() -> None:
    binding = asked()
    assert binding.datagram_received(stun.encode(answer().add(stun.XOR_MAPPED_ADDRESS, MAPPED)))
    other = answer().add(stun.XOR_MAPPED_ADDRESS, (IPv4Address("203.0.113.1"), 1))
    assert not binding.datagram_received(stun.encode(other))
    assert binding.outcome == MAPPED


@pytest.mark.parametrize("datagram", [
    b"",
    b"\x01\0\0\0" + bytes(28),
    stun.encode(answer(transaction_id=bytes(12)).add(stun.XOR_MAPPED_ADDRESS, MAPPED)),
    stun.encode(answer(Kind.REQUEST)),
    stun.encode(answer(Kind.INDICATION)),
    stun.encode(answer(method=stun.ALLOCATE).add(stun.XOR_MAPPED_ADDRESS, MAPPED)),
    stun.encode(answer().add(stun.XOR_MAPPED_ADDRESS, MAPPED))[:-1],
])  # fmt: skip
def test_what_is_no_answer_is_waited_past(datagram: bytes) -> None:
    binding = asked()
    assert not binding.datagram_received(datagram)
    assert binding.outcome is None
    assert binding.datagram_received(stun.encode(answer().add(stun.XOR_MAPPED_ADDRESS, MAPPED)))


@pytest.mark.parametrize(("reply", "outcome"), [
    (answer(Kind.ERROR).add(stun.ERROR_CODE, Failure(500, "no")), Failure(500, "no")),
    (answer(Kind.ERROR), Failure(0, "an error without an ERROR-CODE")),
    (answer(), Failure(0, "an answer without an address")),
    # 300 Try Alternate, with an ALTERNATE-SERVER: said, not followed
    (
        Message(BINDING, Kind.ERROR, ID, ((0x8023, stun.MAPPED_ADDRESS.write(MAPPED, ID)),)).add(
            stun.ERROR_CODE, Failure(300, "Try Alternate")
        ),
        Failure(300, "Try Alternate"),
    ),
    (
        Message(BINDING, Kind.SUCCESS, ID, ((0x0077, b""),)).add(stun.XOR_MAPPED_ADDRESS, MAPPED),
        Failure(0, "an answer with attributes that we do not know: 0x77"),
    ),
])  # fmt: skip
def test_an_answer_that_helps_nobody_is_a_failure(reply: Message, outcome: Failure) -> None:
    binding = asked()
    assert binding.datagram_received(stun.encode(reply))
    assert binding.outcome == outcome
