import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd._fast.exchange import Exchange
from overlayd._fast.frame import MAX_BODY, FrameTooLarge, Inbox, frame

LARGE = 300


class Ask(msgspec.Struct, tag_field="op", tag="ask"):
    size: int = 0


class Do(msgspec.Struct, tag_field="op", tag="do"):
    pass


class Fail(msgspec.Struct, tag_field="op", tag="fail"):
    pass


class Request(msgspec.Struct):
    id: int
    request: Ask | Do | Fail


def answer(request: Ask) -> bytes:
    return b'"' + b"x" * request.size + b'"'


def fail(request: Fail) -> bytes:
    raise ValueError("as handlers do")


def exchange(stream: bytes, answers: dict[type, object] | None = None) -> Exchange:
    inbox = Inbox(64)
    inbox.feed(stream)
    decode = msgspec.json.Decoder(Request).decode
    return Exchange(inbox, decode, {Ask: answer, Fail: fail} if answers is None else answers, LARGE)  # type: ignore[dict-item]


def asked(id: int, op: str, size: int = 0, padding: int = 0) -> bytes:
    body = json.dumps({"id": id, "request": {"op": op, "size": size}}).encode()
    return frame(body + b" " * padding)


def answered(id: int, size: int) -> bytes:
    return frame(b'{"frame":"response","id":%d,"response":%s}' % (id, answer(Ask(size))))


ids = st.integers(0, 2**64 - 1)
asks = st.tuples(ids, st.just("ask"), st.integers(0, 9000) | st.integers(4080, 4110), st.just(0))
others = st.tuples(
    ids | st.just(2**64), st.sampled_from(["do", "fail", "unknown", "ask"]), st.just(0), st.integers(0, 400)
)


@given(
    messages=st.lists(asks | others, max_size=30),
    most=st.integers(1, 20),
    enough=st.integers(1, 40_000),
    at_once=st.booleans(),
)
def test_every_request_is_answered_or_handed_out_in_order(
    messages: list[tuple[int, str, int, int]], most: int, enough: int, at_once: bool
) -> None:
    one = exchange(b"".join(asked(*message) for message in messages))
    sent, at = b"", 0
    while True:
        sent = b"".join(one.advance(most, enough, at_once))
        if not one.taken:
            break
        assert one.taken <= most
        taken = messages[at : at + one.taken]
        at += one.taken
        if one.left is not None:
            id, op, size, padding = taken.pop()
            body = asked(id, op, size, padding)[4:]
            assert one.size == len(body)
            if len(body) >= LARGE or op == "unknown" or id >= 2**64:
                assert bytes(one.left) == body
            else:
                assert one.left.id == id
                assert type(one.left.request) is {"do": Do, "fail": Fail, "ask": Ask}[op]
                assert op != "ask" or not at_once
        assert not taken or at_once
        assert sent == b"".join(answered(id, size) for id, _, size, _ in taken)
    assert at == len(messages)


def test_a_frame_that_is_too_large_is_met_after_those_before_it() -> None:
    one = exchange(asked(7, "ask") + (MAX_BODY + 2).to_bytes(4, "little"))
    assert b"".join(one.advance(9, 9999)) == answered(7, 0)
    with pytest.raises(FrameTooLarge):
        one.advance(9, 9999)


def test_what_is_no_answer_of_ours_is_handed_out() -> None:
    for strange in (lambda _: "text", lambda _: None, lambda _: b"x" * MAX_BODY):
        one = exchange(asked(7, "ask"), {Ask: strange})
        assert one.advance(9, 9999) == []
        assert one.left.id == 7


def test_a_long_answer_is_not_copied() -> None:
    long = b'"' + b"x" * 100_000 + b'"'
    one = exchange(asked(7, "ask") * 2, {Ask: lambda _: long})
    assert sum(piece is long for piece in one.advance(9, 10**6)) == 2


def test_answers_that_are_short_are_gathered_and_what_does_not_fit_is_another_piece() -> None:
    pieces = exchange(b"".join(asked(number, "ask", 3000) for number in range(12))).advance(20, 1 << 20)
    assert b"".join(pieces) == b"".join(answered(number, 3000) for number in range(12))
    assert len(pieces) == 3


def test_what_the_answering_raises_is_left_to_whoever_is_handed_the_request() -> None:
    one = exchange(asked(1, "ask") + asked(2, "fail") + asked(3, "ask"))
    assert b"".join(one.advance(20, 1 << 20)) == answered(1, 0)
    assert (one.taken, one.left) == (2, Request(2, Fail()))
    assert b"".join(one.advance(20, 1 << 20)) == answered(3, 0)
    assert one.left is None
