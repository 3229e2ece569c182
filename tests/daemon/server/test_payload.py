"""What the fields of an envelope mean for a request and its answer."""

import time

import msgspec
import pytest

from overlayd import wire
from overlayd.daemon.server.payload import answer_payload, read_payload
from overlayd.proto import envelope
from overlayd.proto.envelope import ENCODING_NONE, KIND_REQUEST, MAX_BODY, Frame

ASKED = Frame(version=1, protocol=0xF0DE, payload=b'{"op":"status"}', request_id=7)


def read(**fields: object) -> wire.Request | wire.Err | None:
    return read_payload(msgspec.structs.replace(ASKED, **fields))


def answered(frame: Frame, response: wire.Response | bytes) -> tuple[Frame, dict[str, object]]:
    message = envelope.decode_body(answer_payload(frame, response)[5:])
    return message, msgspec.json.decode(message.payload)


def test_a_request_is_what_the_payload_says() -> None:
    assert read() == wire.GetStatus()


@pytest.mark.parametrize("kind", [kind for kind in range(6) if kind != KIND_REQUEST])
def test_other_kinds_get_no_answer(kind: int) -> None:
    assert read(kind=kind, payload=b"not json") is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoding": ENCODING_NONE + 1}, "payload_encoding"),
        ({"payload": b"not json"}, ""),
        ({"payload": b'{"op":"no such op"}'}, "no such op"),
        ({"payload": b'{"op":"allocate_ip"}'}, "service"),
    ],
)
def test_what_cannot_be_a_request_is_refused_by_its_id(fields: dict[str, object], message: str) -> None:
    refusal = read(**fields)
    assert isinstance(refusal, wire.Err)
    assert message in refusal.message


def test_a_deadline_that_is_over_is_told_and_one_to_come_does_not_matter() -> None:
    now = int(time.time() * 1000)
    assert isinstance(read(deadline_unix_ms=now - 1), wire.Err)
    assert read(deadline_unix_ms=now + 60_000) == wire.GetStatus()


def test_an_answer_goes_to_the_request_with_its_trace_or_says_that_it_is_too_large() -> None:
    traced = msgspec.structs.replace(ASKED, traceparent="00-1-2-01")
    frame, response = answered(traced, wire.Ok())
    assert (frame.request_id, frame.traceparent, response) == (7, "00-1-2-01", {"result": "ok"})
    assert answered(traced, b'{"result":"ok"}')[1] == {"result": "ok"}
    frame, response = answered(msgspec.structs.replace(ASKED, traceparent="x" * 60_000), bytes(MAX_BODY))
    assert (frame.request_id, response["result"]) == (7, "err")
    assert "too large" in str(response["message"])
