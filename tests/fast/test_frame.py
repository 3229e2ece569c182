import asyncio
import ctypes
import gc
import itertools
import json
import socket

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from no_memory import no_memory
from oracles_frame import split

from overlayd._fast.frame import MAX_BODY, FrameTooLarge, Inbox, frame
from overlayd.errors import ProtocolError


def envelope(body: bytes) -> bytes:
    return b"\x01" + len(body).to_bytes(4, "little") + body


def write(inbox: Inbox, data: bytes) -> None:
    """Bring data in the way a BufferedProtocol does, in as many reads as the windows need."""
    while data:
        window = inbox.get_buffer(-1)
        assert len(window) > 0
        n = min(len(window), len(data))
        window[:n] = data[:n]
        inbox.received(n)
        data = data[n:]


def drain(inbox: Inbox, limit: int = 1_000_000) -> list[tuple[str, memoryview]]:
    """Everything whole that the inbox holds; envelopes are cut by hand from peek, as the endpoint does."""
    found: list[tuple[str, memoryview]] = []
    while True:
        bodies = inbox.take(limit)
        found += [("json", body) for body in bodies]
        if inbox.foreign:
            held = inbox.peek()
            size = 5 + int.from_bytes(held[1:5], "little")
            if size > len(held):
                return found
            found.append(("envelope", held[:size]))
            inbox.consume(size)
        elif not bodies:
            return found


def as_bytes(messages: list[tuple[str, memoryview]]) -> list[tuple[str, bytes]]:
    return [(kind, bytes(view)) for kind, view in messages]


json_text = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=300), lambda inner: st.lists(inner, max_size=4)
).map(lambda value: json.dumps(value).encode())
one_byte_low = st.integers(0, 3).map(lambda n: b'"' + b"x" * (n * 256 + 257 - 2) + b'"')  # length & 0xFF == 1
messages = st.one_of(json_text.map(frame), one_byte_low.map(frame), st.binary(max_size=300).map(envelope))
cuts = st.lists(st.integers(1, 700), min_size=1, max_size=30)


def pieces(stream: bytes, sizes: list[int]) -> list[bytes]:
    """The stream cut into pieces of these sizes, over and over."""
    found: list[bytes] = []
    at = 0
    for size in itertools.cycle(sizes):
        if at >= len(stream):
            return found
        found.append(stream[at : at + size])
        at += size
    raise AssertionError("unreachable")


def test_every_split_of_a_short_stream_gives_the_same_messages() -> None:
    stream = frame(b"1") + envelope(b"ab") + frame(b"{}")
    want = split(stream).messages
    for mask in range(1 << (len(stream) - 1)):
        bounds = [0, *(i + 1 for i in range(len(stream) - 1) if mask >> i & 1), len(stream)]
        inbox, got = Inbox(8), []
        for a, b in itertools.pairwise(bounds):
            inbox.feed(stream[a:b])
            got += drain(inbox)
        assert as_bytes(got) == want
        assert not inbox.partial


@given(
    stream=st.lists(messages, max_size=12).map(b"".join),
    tail=messages,
    keep=st.integers(0, 400),
    sizes=cuts,
    limit=st.integers(1, 4),
    initial=st.integers(8, 600),
    hold=st.booleans(),
    feed=st.booleans(),
)
def test_any_split_agrees_with_the_oracle(
    *, stream: bytes, tail: bytes, keep: int, sizes: list[int], limit: int, initial: int, hold: bool, feed: bool
) -> None:
    stream += tail[:keep]
    want = split(stream)
    inbox = Inbox(initial)
    got: list[tuple[str, bytes]] = []
    held: list[tuple[str, memoryview]] = []
    for piece in pieces(stream, sizes):
        if feed:
            inbox.feed(piece)
        else:
            write(inbox, piece)
        found = drain(inbox, limit)
        got += as_bytes(found)
        if hold:
            held += found
    assert got == want.messages
    assert inbox.buffered == len(want.tail)
    assert bytes(inbox.peek()) == want.tail
    assert inbox.partial == bool(want.tail)
    if hold:
        assert as_bytes(held) == want.messages


@given(st.binary(max_size=60), cuts)
def test_arbitrary_bytes_agree_with_the_oracle(stream: bytes, sizes: list[int]) -> None:
    want = split(stream)
    inbox, got, too_large = Inbox(8), [], None
    for piece in pieces(stream, sizes):
        inbox.feed(piece)
        try:
            got += drain(inbox)
        except FrameTooLarge as error:
            too_large = error.length
    assert too_large == want.too_large
    if too_large is None:
        assert as_bytes(got) == want.messages


@given(st.lists(messages, max_size=6), st.integers(0, 30))
def test_partial_looks_past_whole_messages_that_nobody_took(whole: list[bytes], extra: int) -> None:
    tail = frame(b'"' + b"x" * 40 + b'"')[:extra]
    inbox = Inbox(64)
    inbox.feed(b"".join(whole) + tail)
    assert inbox.partial == bool(tail)


def test_the_detector_knows_nothing_before_five_bytes() -> None:
    inbox = Inbox()
    for byte in b"\x01\x00\x00\x00":
        inbox.feed(bytes([byte]))
        assert not inbox.foreign
        assert inbox.take(1) == []
        assert inbox.partial
    inbox.feed(b"7")
    assert [bytes(body) for body in inbox.take(1)] == [b"7"]


@pytest.mark.parametrize("length", [0x00000000, 0x00800001, 0x00FFFFFF, 0x01000000])
def test_an_envelope_is_not_judged_by_the_json_limit(length: int) -> None:
    inbox = Inbox()
    inbox.feed(b"\x01" + length.to_bytes(4, "little"))
    assert inbox.foreign
    assert inbox.take(10) == []
    assert inbox.partial == (length > 0)


@given(st.lists(st.binary(min_size=2, max_size=40)), st.integers(1, 100), st.integers(1, 8))
def test_take_ends_with_the_body_that_makes_enough_bytes(bodies: list[bytes], enough: int, limit: int) -> None:
    inbox = Inbox()
    inbox.feed(b"".join(frame(body) for body in bodies))
    left = [bytes(body) for body in bodies]
    while left:
        taken = [bytes(body) for body in inbox.take(limit, enough)]
        assert taken == left[: len(taken)]
        assert len(taken) == limit or len(taken) == len(left) or sum(len(body) + 4 for body in taken) >= enough
        assert sum(len(body) + 4 for body in taken[:-1]) < enough
        del left[: len(taken)]


def test_take_stops_at_an_envelope_and_goes_on_after_it() -> None:
    inbox = Inbox()
    inbox.feed(frame(b"1") + envelope(b"") + frame(b"2"))
    assert not inbox.foreign
    assert [bytes(body) for body in inbox.take(10)] == [b"1"]
    assert inbox.foreign
    inbox.consume(5)
    assert [bytes(body) for body in inbox.take(10)] == [b"2"]


def test_a_frame_that_is_too_large_is_refused_by_its_header_after_those_before_it() -> None:
    inbox = Inbox()
    inbox.feed(frame(b"1") + frame(b"2") + (MAX_BODY + 2).to_bytes(4, "little"))
    assert [bytes(body) for body in inbox.take(10)] == [b"1", b"2"]
    for _ in range(2):
        with pytest.raises(FrameTooLarge) as caught:
            inbox.take(10)
        assert caught.value.length == MAX_BODY + 2
    assert isinstance(caught.value, ProtocolError)
    assert inbox.capacity == 16384


def test_the_largest_body_passes_both_ways() -> None:
    body = b" " * MAX_BODY
    inbox = Inbox()
    inbox.feed(frame(body))
    (got,) = inbox.take(1)
    assert got == body
    with pytest.raises(FrameTooLarge):
        frame(body + b" ")
    inbox.feed((MAX_BODY + 1).to_bytes(4, "little") + b" ")
    with pytest.raises(FrameTooLarge):
        inbox.take(1)


@given(st.binary(max_size=70_000))
def test_a_frame_is_its_length_and_its_body(body: bytes) -> None:
    assert frame(body) == len(body).to_bytes(4, "little") + body


def test_only_bytes_can_be_framed() -> None:
    for body in (None, "text", bytearray(b"1")):
        with pytest.raises(TypeError):
            frame(body)  # type: ignore[arg-type]


def test_memory_follows_what_has_come_and_not_what_was_advertised() -> None:
    inbox = Inbox(1024)
    inbox.feed(MAX_BODY.to_bytes(4, "little"))
    assert inbox.capacity == 1024
    sent = 0
    while sent < 200_000:
        inbox.feed(b" " * 777)
        sent += 777
        assert inbox.capacity <= max(1024, 2 * inbox.buffered)


def test_a_block_never_grows_far_beyond_the_unfinished_message() -> None:
    inbox = Inbox(1024)
    whole = frame(b" " * 40_000)
    for start in range(0, len(whole) - 1, 500):
        inbox.feed(whole[start : min(start + 500, len(whole) - 1)])
    assert inbox.capacity <= len(whole) + 1024


def test_what_has_come_is_kept_when_there_is_no_memory_for_more() -> None:
    inbox, body = Inbox(), b"x" * 200_000
    data = frame(body)
    inbox.feed(data[:60_000])
    with no_memory(), pytest.raises(MemoryError):
        while inbox.buffered < len(data):
            inbox.feed(data[inbox.buffered : inbox.buffered + 400])
    assert 60_000 <= inbox.buffered < len(data)
    inbox.feed(data[inbox.buffered :])
    assert as_bytes(drain(inbox)) == [("json", body)]


def test_a_drained_inbox_shrinks_back() -> None:
    inbox = Inbox(1024)
    inbox.feed(frame(b" " * 100_000))
    assert inbox.capacity > 100_000
    (body,) = inbox.take(1)
    assert inbox.capacity == 1024
    assert body == b" " * 100_000
    inbox.feed(envelope(b" " * 100_000))
    inbox.consume(inbox.buffered)
    assert inbox.capacity == 1024


def address(window: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(window))


def test_one_block_is_reused_when_views_are_dropped_and_left_alone_when_not() -> None:
    inbox = Inbox(256)
    first = address(inbox.get_buffer(-1))
    for _ in range(100):
        write(inbox, frame(b'"' + b"x" * 98 + b'"'))
        assert len(inbox.take(10)) == 1
        gc.collect(0)
    assert address(inbox.get_buffer(-1)) == first

    write(inbox, frame(b'"' + b"y" * 98 + b'"'))
    (kept,) = inbox.take(10)
    for _ in range(100):
        write(inbox, frame(b'"' + b"z" * 98 + b'"'))
        inbox.take(10)
    assert kept == b'"' + b"y" * 98 + b'"'


def test_views_are_plain_read_only_bytes_and_outlive_the_inbox() -> None:
    inbox = Inbox()
    inbox.feed(frame(b'{"a":1}') * 2)
    first, second = inbox.take(2)
    del inbox
    assert first.readonly
    assert (first.format, first.itemsize, first.shape, first.contiguous) == ("B", 1, (7,), True)
    assert bytes(first) == bytes(second) == b'{"a":1}'
    with pytest.raises(TypeError):
        second[0] = 0
    with pytest.raises(BufferError):
        memoryview(second.obj)


def test_limits_are_kept() -> None:
    inbox = Inbox()
    inbox.feed(frame(b"1") * 5)
    assert [len(inbox.take(n)) for n in (0, 2, 2, 2, 2)] == [0, 2, 2, 1, 0]


def test_counts_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="initial"):
        Inbox(7)
    inbox = Inbox(64)
    with pytest.raises(ValueError, match="received"):
        inbox.received(1)
    inbox.get_buffer(-1)
    for n in (-1, 65):
        with pytest.raises(ValueError, match="received"):
            inbox.received(n)
    inbox.received(64)
    for n in (-1, 65):
        with pytest.raises(ValueError, match="consume"):
            inbox.consume(n)
    with pytest.raises(TypeError):
        inbox.feed("text")  # type: ignore[arg-type]


class Receiver(asyncio.BufferedProtocol):
    """Takes everything at once and copies it, as the daemon decodes at once."""

    def __init__(self, closed: asyncio.Future[None]) -> None:
        self.inbox = Inbox(512)
        self.bodies: list[bytes] = []
        self.closed = closed

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.inbox.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        self.inbox.received(nbytes)
        self.bodies += [bytes(body) for body in self.inbox.take(1000)]

    def eof_received(self) -> None:
        self.closed.set_result(None)


@pytest.mark.parametrize("new_event_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_it_serves_a_buffered_protocol(new_event_loop) -> None:  # type: ignore[no-untyped-def]
    bodies = [json.dumps("x" * (n * n)).encode() for n in range(150)]

    async def run() -> Receiver:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        closed: asyncio.Future[None] = loop.create_future()
        _, receiver = await loop.create_unix_connection(lambda: Receiver(closed), sock=ours)
        _, writer = await asyncio.open_unix_connection(sock=theirs)
        writer.write(b"".join(frame(body) for body in bodies))
        writer.close()
        await closed
        return receiver

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        receiver = runner.run(run())
    assert receiver.bodies == bodies
    assert not receiver.inbox.partial
    assert receiver.inbox.capacity == 512
