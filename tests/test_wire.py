"""The contract: golden frames, byte for byte and by meaning, and what hostile bytes get."""

import json
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from golden_meanings import EVENTS, PRIVATE, REQUESTS, RESPONSES
from golden_spellings import SPELLINGS

from overlayd import wire
from overlayd.errors import ProtocolError, RequestError

GOLDEN = Path(__file__).parent / "golden"


def load(kind: str) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in sorted((GOLDEN / kind).glob("*.json"))}


def compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def framed(value: object) -> bytes:
    body = compact(value)
    return len(body).to_bytes(4, "little") + body


def request_frame(request: object, id: int = 7) -> bytes:
    return compact({"frame": "request", "id": id, "request": request})


@pytest.mark.parametrize("kind, meanings", [("requests", REQUESTS), ("responses", RESPONSES), ("events", EVENTS)])
def test_every_message_has_a_golden_frame(kind: str, meanings: dict[str, Any]) -> None:
    assert load(kind).keys() == meanings.keys()
    union = {"requests": wire.Request, "responses": wire.Response, "events": wire.Event}[kind]
    seen = {type(meaning[1] if isinstance(meaning, tuple) else meaning) for meaning in meanings.values()}
    assert seen == set(get_args(union))


@pytest.mark.parametrize("name", REQUESTS)
def test_golden_request(name: str) -> None:
    frame, (id, request) = load("requests")[name], REQUESTS[name]
    assert wire.decode_request(compact(frame)) == (id, request)
    assert wire.decode_request(memoryview(compact(frame))) == (id, request)
    assert wire.decode_request_object(compact(frame["request"])) == request
    assert wire.encode_request(id, request) == framed(frame)


@pytest.mark.parametrize("name", RESPONSES)
def test_golden_response(name: str) -> None:
    frame, (id, response) = load("responses")[name], RESPONSES[name]
    assert wire.encode_response(id, response) == framed(frame)
    assert wire.encode_response_object(response) == compact(frame["response"])
    assert wire.encode_spliced(id, compact(frame["response"])) == framed(frame)
    assert wire.decode_server_frame(compact(frame)) == (id, response)


@pytest.mark.parametrize("name", EVENTS)
def test_golden_event(name: str) -> None:
    frame, event = load("events")[name], EVENTS[name]
    assert wire.encode_event(event) == framed(frame)
    assert wire.decode_server_frame(compact(frame)) == event
    assert wire.decode_server_frame(compact(dict(reversed(frame.items())))) == event


@pytest.mark.parametrize("name", load("spellings"))
def test_other_spellings_mean_the_same(name: str) -> None:
    spelling = load("spellings")[name]
    assert wire.decode_request(compact(spelling["frame"])) == (REQUESTS | SPELLINGS)[spelling["like"]]


@pytest.mark.parametrize("name", load("bad"))
def test_bad_request_names_the_key(name: str) -> None:
    bad = load("bad")[name]
    with pytest.raises(wire.BadRequest) as caught:
        wire.decode_request(compact(bad["frame"]))
    assert (caught.value.id, str(caught.value)) == (bad["frame"]["id"], bad["message"])
    if "request" in bad["frame"]:
        with pytest.raises(RequestError) as alone:
            wire.decode_request_object(compact(bad["frame"]["request"]))
        assert str(alone.value) == bad["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"null",
        b"[]",
        b'"x"',
        b"7",
        b"{",
        b"{}",
        b'{"id":1,"request":{"op":"status"}}',
        b'{"frame":"datagram","id":1,"request":{"op":"status"}}',
        b'{"frame":1,"id":1,"request":{"op":"status"}}',
        b'{"frame":"request","request":{"op":"status"}}',
        b'{"frame":"request","id":null,"request":{"op":"status"}}',
        b'{"frame":"request","id":-1,"request":{"op":"status"}}',
        b'{"frame":"request","id":1.0,"request":{"op":"status"}}',
        b'{"frame":"request","id":true,"request":{"op":"status"}}',
        b'{"frame":"request","id":"1","request":{"op":"status"}}',
        b'{"frame":"request","id":18446744073709551616,"request":{"op":"status"}}',
        b'{"frame":"request","id":18446744073709551616,"request":{"op":"nope"}}',
        b'{"frame":"request","id":1,"request":{"op":"status"}} x',
        b'{"frame":"request","id":1,"request":{"op":"status"}',
        b'{"frame":"request","id":1,"request":{"op":"status","x":NaN}}',
        b'\xef\xbb\xbf{"frame":"request","id":1,"request":{"op":"status"}}',
        b'{"frame":"request","id":1,"request":{"op":"unregister_dns","name":"\xff"}}',
        b'{"frame":"request","id":1,"request":{"op":"unregister_dns","name":"\xed\xa0\x80"}}',
        rb'{"frame":"request","id":1,"request":{"op":"unregister_dns","name":"\ud800"}}',
        rb'{"frame":"request","id":1,"request":{"op":"unregister_dns","name":"\udc00x"}}',
        b"[" * 200_000,
        b'{"frame":' * 200_000,
        b'{"frame":"request","id":1,"request":' + b"[" * 200_000,
        b'{"frame":"request","id":1,"request":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'{"frame":"request","id":1,"request":{"op":"status","x":' + b'{"x":' * 200_000,
    ],
    ids=lambda body: repr(body[:70]),
)
def test_no_frame_at_all(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        wire.decode_request(body)
    with pytest.raises(ProtocolError):
        wire.decode_server_frame(body)


@pytest.mark.parametrize("frame", [*load("responses").values(), *load("events").values()])
def test_server_frames_from_a_client_are_told_apart(frame: object) -> None:
    with pytest.raises(wire.NotARequest):
        wire.decode_request(compact(frame))
    with pytest.raises(wire.NotARequest):
        wire.decode_id(compact(frame))


def test_an_id_is_read_whatever_the_request_is() -> None:
    assert wire.decode_id(request_frame({"op": ["nothing that there is"]}, 9)) == 9
    with pytest.raises(ProtocolError, match="readable id"):
        wire.decode_id(request_frame({"op": "status"}, 2**64))
    for body in (b"", b"[]", b"[" * 200_000, b'{"frame":"newer","id":1}'):
        with pytest.raises(ProtocolError, match="not a frame"):
            wire.decode_id(body)


def test_a_client_refuses_requests() -> None:
    with pytest.raises(ProtocolError):
        wire.decode_server_frame(request_frame({"op": "status"}))


def test_a_client_passes_over_events_of_a_newer_daemon() -> None:
    assert wire.decode_server_frame(b'{"frame":"event","event":"disk_full","pubkey":7}') is None
    with pytest.raises(ProtocolError):
        wire.decode_server_frame(b'{"frame":"event","event":"peer_health_changed","pubkey":7,"healthy":true}')


@pytest.mark.parametrize("number", ["1e400", "-1e400", "9" * 5000])
def test_numbers_that_no_type_holds_are_answered(number: str) -> None:
    with pytest.raises(wire.BadRequest, match=r"request\.node_id") as caught:
        wire.decode_request(
            f'{{"frame":"request","id":3,"request":{{"op":"set_local_node_id","node_id":{number}}}}}'.encode()
        )
    assert caught.value.id == 3
    assert len(str(caught.value)) < 200


def test_the_last_of_equal_keys_counts() -> None:
    body = b'{"frame":"request","id":1,"id":2,"request":{"op":"unregister_dns","name":"a","name":"b"}}'
    assert wire.decode_request(body) == (2, wire.UnregisterDns("b"))
    with pytest.raises(wire.BadRequest):
        wire.decode_request(b'{"frame":"request","id":1,"request":{"op":"status","op":"shutdown"}}')


def test_an_answer_too_large_is_answered_as_an_error() -> None:
    peers = (wire.StatusPeer("k" * 1000, "", "", 0),) * 9000
    status = wire.Status(peer_count=9000, service_count=0, peers=peers)
    for frame in (
        wire.encode_response(2**64 - 1, status),
        wire.encode_spliced(2**64 - 1, wire.encode_response_object(status)),
    ):
        id, err = decode_response(frame)
        assert id == 2**64 - 1
        assert isinstance(err, wire.Err)
        assert "too large" in err.message


@pytest.mark.parametrize("many", [0, 1, 3])
def test_peers_that_are_encoded_already_are_put_in_as_if_they_were_not(many: int) -> None:
    peers = tuple(wire.StatusPeer(f"key{number}", "", "10.0.0.0/24", number) for number in range(many))
    encoded = wire.encode_with(
        wire.Status(peer_count=many, service_count=0), "peers", [wire.encode_part(peer) for peer in peers]
    )
    assert decode_response(wire.encode_spliced(3, encoded)) == (
        3,
        wire.Status(peer_count=many, service_count=0, peers=peers),
    )


@pytest.mark.parametrize("many", [0, 1, 3])
def test_the_same_in_the_place_of_a_list_that_is_shown_though_it_is_empty(many: int) -> None:
    names = tuple(wire.DnsName(f'"names":[]{number}', ("10.0.0.1",)) for number in range(many))
    known = wire.Dns(zone='"names":[]', names=(), upstreams=(), cached=1, cached_bytes=2, hits=3, misses=4)
    encoded = wire.encode_with(known, "names", [wire.encode_part(name) for name in names])
    assert decode_response(wire.encode_spliced(3, encoded)) == (3, msgspec.structs.replace(known, names=names))


def test_the_largest_body_passes() -> None:
    room = wire.MAX_BODY - (len(wire.encode_response(1, wire.Err(""))) - 4)
    assert len(wire.encode_response(1, wire.Err("x" * room))) == 4 + wire.MAX_BODY
    assert decode_response(wire.encode_response(1, wire.Err("x" * (room + 1)))) != (1, wire.Err("x" * (room + 1)))
    room = wire.MAX_BODY - (len(wire.encode_request(1, wire.UnregisterDns(""))) - 4)
    assert len(wire.encode_request(1, wire.UnregisterDns("x" * room))) == 4 + wire.MAX_BODY
    with pytest.raises(RequestError, match="8388609 bytes"):
        wire.encode_request(1, wire.UnregisterDns("x" * (room + 1)))


def test_text_that_is_not_utf8_never_leaves() -> None:
    name = b"caf\xe9".decode(errors="surrogateescape")
    assert decode_response(wire.encode_response(1, wire.Err(f"no {name}"))) == (1, wire.Err("no caf\\udce9"))
    assert wire.encode_response_object(wire.Err(name)) == rb'{"result":"err","message":"caf\\udce9"}'
    assert isinstance(decode_response(wire.encode_response(1, wire.BridgeName(name)))[1], wire.Err)
    with pytest.raises(RequestError, match="UTF-8"):
        wire.encode_request(1, wire.UnregisterDns(name))


def test_secrets_stay_out_of_reprs() -> None:
    for value in (
        RESPONSES["guest_config"],
        RESPONSES["edge_config"],
        REQUESTS["setup_global_overlay_full"],
    ):
        assert PRIVATE not in repr(value)
        assert "secret" not in repr(value)


def test_values_are_immutable_and_hashable() -> None:
    for _, message in (*REQUESTS.values(), *RESPONSES.values()):
        hash(message)
        for field in msgspec.structs.fields(message):
            with pytest.raises(AttributeError):
                setattr(message, field.name, None)


def decode_response(frame: bytes) -> tuple[int, wire.Response]:
    assert int.from_bytes(frame[:4], "little") == len(frame) - 4
    answer = wire.decode_server_frame(frame[4:])
    assert isinstance(answer, tuple)
    return answer


@pytest.mark.parametrize(
    ("request_", "key", "first", "second"),
    [
        ('{"op": "status", "op": "shutdown"}', "op", "status", "shutdown"),
        (
            '{"op": "detach_container", "handle": {"platform": "linux_pid", "platform": "guest_managed", "id": "a"}}',
            "platform",
            "linux_pid",
            "guest_managed",
        ),
    ],
)
def test_a_tag_that_stands_twice_is_named(request_: str, key: str, first: str, second: str) -> None:
    with pytest.raises(wire.BadRequest) as caught:
        wire.decode_request(f'{{"frame": "request", "id": 7, "request": {request_}}}'.encode(), lambda _: None)
    assert caught.value.id == 7
    assert str(caught.value) == f'request: key "{key}" stands twice, as "{first}" and "{second}"'
