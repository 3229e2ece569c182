"""The messages of a TURN stream, however the network cuts it, and a client that is at the end of one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_turn import PEER, Played

from overlayd.errors import ProtocolError
from overlayd.proto import stun
from overlayd.proto.stun import Failure, Kind, Message
from overlayd.proto.turn import PATIENCE, RETRY_AFTER, Expired, Failed, Received
from overlayd.proto.turn_stream import Unframer, may_be_dropped

ids = st.binary(min_size=12, max_size=12)
of_stun = st.builds(
    lambda method, kind, id, data: stun.encode(Message(method, kind, id).add(stun.DATA, data)),
    st.sampled_from([stun.BINDING, stun.ALLOCATE, stun.SEND, stun.DATA_METHOD]),
    st.sampled_from(Kind),
    ids,
    st.binary(max_size=100),
)


def channel_data(number: int, data: bytes) -> bytes:
    return number.to_bytes(2) + len(data).to_bytes(2) + data + bytes(-len(data) % 4)


of_channels = st.builds(channel_data, st.integers(0x4000, 0x7FFF), st.binary(max_size=100))
messages = st.lists(st.one_of(of_stun, of_channels), max_size=20)


@given(messages, st.data())
def test_each_message_comes_out_once_and_whole(sent: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(sent)
    unframer, came = Unframer(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        came += unframer.feed(stream[:size])
        stream = stream[size:]
    assert came == sent


@given(messages, st.binary(min_size=8, max_size=200))
def test_what_is_no_message_ends_it_after_those_before(sent: list[bytes], garbage: bytes) -> None:
    garbage = bytes([garbage[0] | 0x80]) + garbage[1:]  # neither STUN nor a channel
    came = []
    with pytest.raises(ProtocolError, match="no message of TURN"):
        for message in Unframer().feed(b"".join(sent) + garbage):
            came.append(message)
    assert came == sent


@pytest.mark.parametrize("head", [
    b"\x15\x03\x01\x00\x02\x02\x46\x00",  # TLS
    b"220 smtp",
    b"\x01\x01\x00\x04\x00\x00\x00\x00",  # no magic cookie
    b"\x01\x01\x00\x03\x21\x12\xa4\x42",  # a length that is no multiple of 4
])  # fmt: skip
def test_other_protocols_are_known_by_their_first_bytes(head: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(Unframer().feed(head))


@given(messages)
def test_the_longest_message_is_all_that_waits(sent: list[bytes]) -> None:
    unframer = Unframer()
    longest = channel_data(0x4000, bytes(65535))
    assert list(unframer.feed(b"".join(sent) + longest[:-1])) == sent
    assert list(unframer.feed(longest[-1:])) == [longest]


def test_only_requests_have_to_arrive() -> None:
    id = bytes(12)
    assert not may_be_dropped(stun.encode(Message(stun.ALLOCATE, Kind.REQUEST, id)))
    assert not may_be_dropped(stun.encode(Message(stun.CHANNEL_BIND, Kind.REQUEST, id)))
    assert may_be_dropped(stun.encode(Message(stun.SEND, Kind.INDICATION, id)))
    assert may_be_dropped(channel_data(0x4000, b"data"))


def test_a_connection_takes_a_request_once() -> None:
    played = Played(stream=True)
    played.asked()
    assert played.silence() == [Failed(Failure(0, "no answer"), RETRY_AFTER)]
    assert played.now == PATIENCE
    played = Played(stream=True)
    played.allocate()
    renewal = played.next_request()
    asked_at, again = played.now, 0
    while not (events := played.client.events()):
        timeout = played.client.next_timeout()
        assert timeout is not None
        played.now = max(played.now, timeout)
        sent = map(stun.decode, played.client.datagrams_to_send(played.now))
        again += sum(message.kind is Kind.REQUEST for message in sent)
    assert renewal.method == stun.REFRESH and again == 0
    assert events == [Expired(Failure(0, "no answer"))] and played.now == asked_at + 39.5


def test_data_of_a_channel_is_padded_in_a_connection() -> None:
    played = Played(stream=True)
    played.allocate()
    played.client.send(PEER, b"first", 0.0)
    played.answer(played.asked())
    assert played.client.datagrams_to_send(0.0) == [b"\x40\x00\x00\x05first\0\0\0"]
    played.client.send(PEER, b"four", 0.0)
    assert played.client.datagrams_to_send(0.0) == [b"\x40\x00\x00\x04four"]
    played.client.datagram_received(b"\x40\x00\x00\x05answer\0\0", 0.0)
    assert played.client.events() == [Received(PEER, b"answe")]
