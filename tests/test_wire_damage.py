"""The wire with arbitrary values, and with arbitrary damage."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_wire import compact, decode_response, load, request_frame

from overlayd import wire
from overlayd.errors import OverlaydError, ProtocolError
from overlayd.wire import mismatch, values

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
BOUNDS = {"u8": (0, 2**8 - 1), "u16": (0, 2**16 - 1), "u32": (0, 2**32 - 1), "u64": (0, 2**64 - 1)}
BOUNDS["i64"] = (-(2**63), 2**63 - 1)


def values_of(shape: msgspec.inspect.Type) -> st.SearchStrategy[Any]:
    match shape:
        case msgspec.inspect.StructType(cls=cls, fields=fields):
            return st.builds(cls, **{field.name: values_of(field.type) for field in fields})
        case msgspec.inspect.UnionType(types=types):
            return st.one_of([values_of(one) for one in types])
        case msgspec.inspect.VarTupleType(item_type=item):
            return st.lists(values_of(item), max_size=3).map(tuple)
        case msgspec.inspect.LiteralType(values=literals):
            return st.sampled_from(literals)
        case msgspec.inspect.Metadata():
            low, high = BOUNDS[mismatch.type_name(shape)]
            return st.integers(low, high) | st.sampled_from([low, high])
        case msgspec.inspect.StrType():
            return text
        case msgspec.inspect.BoolType():
            return st.booleans()
        case msgspec.inspect.NoneType():
            return st.none()
    raise TypeError(shape)


ids = st.integers(0, 2**64 - 1)


@given(ids, values_of(msgspec.inspect.type_info(wire.Request)))
def test_requests_round_trip(id: int, request: wire.Request) -> None:
    frame = wire.encode_request(id, request)
    assert int.from_bytes(frame[:4], "little") == len(frame) - 4
    assert wire.decode_request(frame[4:]) == (id, request)
    assert b":null" not in frame


@given(ids, values_of(msgspec.inspect.type_info(wire.Response)))
def test_responses_round_trip(id: int, response: wire.Response) -> None:
    assert decode_response(wire.encode_response(id, response)) == (id, response)
    assert wire.encode_spliced(id, wire.encode_response_object(response)) == wire.encode_response(id, response)
    assert b":null" not in wire.encode_response_object(response)


@given(values_of(msgspec.inspect.type_info(wire.Event)))
def test_events_round_trip(event: wire.Event) -> None:
    assert wire.decode_server_frame(wire.encode_event(event)[4:]) == event


SHAPE = msgspec.inspect.type_info(wire.Request)
ODD_NUMBERS = [0, -1, -0.0, 1.0, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**63, 2**64 - 1, 2**64, 10**400]
ODD_TEXTS = ["", "x", "linux_pid", "global", "service", "auto", "\u0000", "x" * 100]
odd_values = st.sampled_from([None, True, False, *ODD_NUMBERS, *ODD_TEXTS, [], ["x"], [[]], {}, {"scope": "global"}])


def paths(value: object, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, inner in items for path in paths(inner, (*at, key)))]


def at_path(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def damaged(value: Any, path: tuple[Any, ...], change: Any) -> Any:
    """A copy of a JSON value with the place at `path` replaced; removed from its parent if `change` is Ellipsis."""
    if not path:
        return None if change is ... else change
    key, *rest = path
    copy = dict(value) if isinstance(value, dict) else list(value)
    if not rest and change is ...:
        del copy[key]
    else:
        copy[key] = damaged(value[key], tuple(rest), change)
    return copy


@pytest.mark.parametrize(
    ("value", "shape", "wrong"),
    [
        (None, msgspec.inspect.type_info(str | None), None),
        ("text", msgspec.inspect.type_info(str | None), None),
        (1, msgspec.inspect.type_info(str | None), "key: expected string, got 1"),
        ([], msgspec.inspect.type_info(wire.Status), "key: expected object, got a list"),
    ],
)
def test_what_is_wrong_with_a_value(value: object, shape: msgspec.inspect.Type, wrong: str | None) -> None:
    assert mismatch.mismatch(value, shape, "key") == wrong


def test_a_type_that_the_contract_does_not_use_has_no_words() -> None:
    with pytest.raises(TypeError, match="no rule for FloatType"):
        mismatch.mismatch(1.5, msgspec.inspect.type_info(float), "key")


@given(st.data())
def test_a_damaged_request_is_a_value_or_a_clean_error(data: st.DataObject) -> None:
    """The slow walk that words the error is also the oracle of the fast decoder: they refuse the same requests."""
    request = data.draw(st.sampled_from([frame["request"] for frame in load("requests").values()]))
    for _ in range(data.draw(st.integers(1, 3))):
        request = damaged(request, data.draw(st.sampled_from(paths(request))), data.draw(odd_values | st.just(...)))
    wrong = mismatch.mismatch(request, SHAPE, "request")
    try:
        id, decoded = wire.decode_request(request_frame(request, 9))
    except wire.BadRequest as error:
        assert error.id == 9
        assert str(error) == wrong
        assert len(str(error)) < 300
        str(error).encode()
    else:
        assert wrong is None
        assert id == 9
        assert wire.decode_request(wire.encode_request(id, decoded)[4:]) == (id, decoded)


@given(
    st.sampled_from([compact(frame) for frame in load("requests").values()]),
    st.lists(st.tuples(st.integers(0, 1000), st.binary(max_size=3), st.integers(0, 8)), min_size=1, max_size=3),
)
def test_damaged_bytes_are_a_value_or_a_clean_error(body: bytes, damage: list[tuple[int, bytes, int]]) -> None:
    for place, insert, remove in damage:
        at = place % (len(body) + 1)
        body = body[:at] + insert + body[at + remove :]
    try:
        id, request = wire.decode_request(body)
    except (wire.BadRequest, wire.NotARequest, ProtocolError) as error:
        assert not isinstance(error, wire.BadRequest) or 0 <= error.id <= values.U64_MAX
        str(error).encode()
    else:
        assert wire.decode_request(wire.encode_request(id, request)[4:]) == (id, request)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_value_or_a_clean_error(body: bytes) -> None:
    for decode in (wire.decode_request, wire.decode_request_object, wire.decode_server_frame):
        try:
            decode(body)
        except OverlaydError as error:
            str(error).encode()


@pytest.mark.parametrize("name", ["nat_status", "edge_config", "edge_peers", "status_full", "guest_config"])
def test_a_client_refuses_numbers_out_of_range(name: str) -> None:
    frame = load("responses")[name]
    numbers = [path for path in paths(frame) if type(at_path(frame, path)) is int]
    assert len(numbers) > 1
    for path in numbers:
        with pytest.raises(ProtocolError):
            wire.decode_server_frame(compact(damaged(frame, path, 2**64)))
