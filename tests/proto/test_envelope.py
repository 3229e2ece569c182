"""Envelopes: the contract's vectors, a round trip, and the reader against prost's rules and Google's own runtime."""

import json
from pathlib import Path

import oracles_envelope
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message
from hypothesis import given
from hypothesis import strategies as st

from overlayd._fast.envelope import decode_frame, fields
from overlayd.errors import ProtocolError
from overlayd.proto import envelope
from overlayd.proto.envelope import Frame
from overlayd.proto.protobuf import varint

VECTORS = {
    vector["id"]: bytes.fromhex(vector["hex"])
    for vector in json.loads((Path(__file__).parents[1] / "vectors/envelope.json").read_text())["vectors"]
}
CANONICAL = ("V01", "V02", "V03", "V04", "V07", "V09", "V10", "V21", "V24", "V27", "V30", "V35", "V53")

int32s = st.integers(-(1 << 31), (1 << 31) - 1)
uint32s = st.integers(0, (1 << 32) - 1)
uint64s = st.integers(0, (1 << 64) - 1)
texts = st.text(st.characters(codec="utf-8"), max_size=20)
frames = st.builds(
    Frame,
    version=uint32s,
    kind=int32s,
    protocol=uint32s,
    payload=st.binary(max_size=300),
    request_id=uint64s,
    encoding=int32s,
    deadline_unix_ms=uint64s,
    traceparent=texts,
    tracestate=texts,
)


def wide(value: int, width: int) -> bytes:
    """`value` as a varint of exactly `width` bytes, or as short as it gets if that is longer."""
    encoded = bytearray(varint(value))
    while len(encoded) < width:
        encoded[-1] |= 0x80
        encoded.append(0)
    return bytes(encoded)


def read(body: bytes) -> Frame | None:
    """What we make of a body, None for a refusal."""
    try:
        return envelope.decode_body(body)
    except ProtocolError:
        return None


# --- the contract's vectors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CANONICAL)
def test_canonical_vectors_come_back_byte_for_byte(name: str) -> None:
    wire = VECTORS[name]
    decoded = envelope.decode(wire)
    assert decoded is not None
    frame, consumed = decoded
    assert consumed == len(wire)
    assert envelope.encode(frame) == wire


def test_a_payload_request_reads_field_by_field() -> None:
    frame, _ = envelope.decode(VECTORS["V09"]) or pytest.fail("incomplete")
    assert frame == Frame(
        version=1,
        kind=envelope.KIND_REQUEST,
        protocol=0xF0DE,
        payload=b'{"id":1,"method":"ping"}',
        request_id=300,
        encoding=envelope.ENCODING_NONE,
        deadline_unix_ms=1_700_000_000_000,
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        tracestate="rp=1",
    )


def test_a_response_echoes_protocol_id_and_trace_and_nothing_else() -> None:
    request, _ = envelope.decode(VECTORS["V09"]) or pytest.fail("incomplete")
    assert envelope.respond(request, b"{}") == VECTORS["V10"]


@pytest.mark.parametrize(("name", "frame"), [
    ("V38", Frame(version=1, protocol=0xF0DE, payload=b"x", request_id=9)),
    ("V49", Frame(version=1, protocol=0xF0DE, request_id=9)),
    ("V51", Frame(version=1, protocol=0xF0DE, payload=b"x", request_id=9)),
])  # fmt: skip
def test_tolerated_vectors(name: str, frame: Frame) -> None:
    assert envelope.decode(VECTORS[name]) == (frame, len(VECTORS[name]))


@pytest.mark.parametrize("name", ["V16", "V18", "V19", "V39", "V42", "V46", "V47"])
def test_refused_vectors(name: str) -> None:
    with pytest.raises(ProtocolError):
        envelope.decode(VECTORS[name])


# --- framing ------------------------------------------------------------------------------------------------------


def test_the_header_alone_decides_on_the_length() -> None:
    assert envelope.decode(b"\x01" + envelope.MAX_BODY.to_bytes(4, "little")) is None
    with pytest.raises(ProtocolError, match="16777217"):
        envelope.decode(b"\x01" + (envelope.MAX_BODY + 1).to_bytes(4, "little"))


def test_the_largest_body_is_read_and_written_and_no_larger_one() -> None:
    overhead = len(envelope.encode(Frame(payload=bytes(envelope.MAX_BODY - 5)))) - envelope.MAX_BODY - envelope.HEADER
    assert overhead == 0  # one byte of key, four of length
    wire = envelope.encode(Frame(payload=bytes(envelope.MAX_BODY - 5)))
    frame, consumed = envelope.decode(wire) or pytest.fail("incomplete")
    assert len(frame.payload) == envelope.MAX_BODY - 5
    assert consumed == len(wire)
    with pytest.raises(ProtocolError, match="too large"):
        envelope.encode(Frame(payload=bytes(envelope.MAX_BODY - 4)))


@given(frames, st.binary(max_size=20))
def test_round_trip_at_the_front_of_a_stream(frame: Frame, rest: bytes) -> None:
    wire = envelope.encode(frame)
    for cut in {*range(min(len(wire), 8)), len(wire) - 1}:
        assert envelope.decode(wire[:cut]) is None
    for kind in (bytes, bytearray, memoryview):
        assert envelope.decode(kind(wire + rest)) == (frame, len(wire))
    assert envelope.decode_body(wire[envelope.HEADER :]) == frame


@pytest.mark.parametrize("name", ["V01", "V42"])
def test_the_buffer_is_not_held(name: str) -> None:
    buffer = bytearray(VECTORS[name])
    try:
        envelope.decode(buffer)
    except ProtocolError as error:
        assert error.__traceback__ is not None  # even while the error is alive
        buffer.extend(b"more")
    else:
        buffer.extend(b"more")  # raises BufferError if anything still looks at it


def test_the_range_is_checked() -> None:
    for start, end in ((0, 3), (-1, 1), (2, 1)):
        with pytest.raises(IndexError):
            decode_frame(b"ab", start, end)


# --- against prost's rules ----------------------------------------------------------------------------------------

numbers = st.one_of(st.integers(1, 12), st.sampled_from([15, 16, 2047, 1 << 20, (1 << 29) - 1]))


def field(number: int, wire_type: int, value: bytes, width: int = 1) -> bytes:
    return wide(number << 3 | wire_type, width) + value


def delimited(value: bytes, width: int = 1) -> bytes:
    return wide(len(value), width) + value


@st.composite
def groups(draw: st.DrawFn) -> bytes:
    """A group of an unknown field, nested, with something inside."""
    depth = draw(st.integers(1, 60))
    number = draw(st.integers(10, 20))
    insides = [b"", field(3, 2, delimited(b"any")), field(1, 0, varint(1 << 63)), field(9, 5, b"1234")]
    inside = draw(st.sampled_from(insides))
    return field(number, 3, b"") * depth + inside + field(number, 4, b"") * depth


def bodies(widest: int, wrong_types: bool) -> st.SearchStrategy[bytes]:
    """Bodies of valid fields in any order; varints of keys and lengths up to `widest` bytes."""
    widths = st.integers(1, widest)
    varints = st.builds(wide, uint64s, st.integers(1, 10))
    values = {
        0: varints,
        1: st.binary(min_size=8, max_size=8),
        2: st.builds(delimited, st.one_of(st.binary(max_size=40), texts.map(str.encode)), widths),
        5: st.binary(min_size=4, max_size=4),
    }
    known = st.one_of(
        st.builds(field, st.sampled_from([1, 2, 3, 5, 6, 7]), st.just(0), varints, widths),
        st.builds(field, st.sampled_from([4, 8, 9]), st.just(2), values[2], widths),
    )
    any_number = numbers if wrong_types else numbers.filter(lambda number: number >= 10)
    strange = st.sampled_from(sorted(values)).flatmap(
        lambda kind: st.builds(field, any_number, st.just(kind), values[kind], widths)
    )
    return st.lists(st.one_of(known, known, strange, groups()), max_size=8).map(b"".join)


@st.composite
def damaged(draw: st.DrawFn, sound: st.SearchStrategy[bytes]) -> bytes:
    """A body as it is, cut, or with some bytes changed."""
    body = bytearray(draw(sound))
    del body[draw(st.integers(0, len(body))) if draw(st.booleans()) else len(body) :]
    for _ in range(draw(st.integers(0, 3)) if body else 0):
        body[draw(st.integers(0, len(body) - 1))] = draw(st.integers(0, 255))
    return bytes(body)


@given(st.one_of(st.binary(max_size=60), damaged(bodies(widest=10, wrong_types=True))))
def test_the_reader_follows_prosts_rules(body: bytes) -> None:
    try:
        expected = Frame(*oracles_envelope.decode(body))
    except ProtocolError:
        expected = None
    assert read(body) == expected


@given(bodies(widest=5, wrong_types=True))
def test_generic_fields_are_those_of_the_wire(body: bytes) -> None:
    found, rest = [], body
    while rest:
        number, wire_type, rest = oracles_envelope.take_key(rest)
        value, rest = oracles_envelope.take_value(number, wire_type, rest)
        found.append((number, wire_type, value if wire_type in (0, 2) else None))
    assert fields(body) == found


@pytest.mark.parametrize(("body", "says"), [
    (b"\x00\x01", "field number 0"),
    (field(20, 6, bytes(8)), "wire type: 6"),
    (field(20, 7, bytes(8)), "wire type: 7"),
    (field(20, 4, b""), "without a start"),
    (field(20, 3, b"") + field(21, 4, b""), "end of group 21"),
    (field(20, 3, b""), "past the end"),
    (field(20, 1, bytes(7)), "past the end"),
    (field(20, 5, bytes(3)), "past the end"),
    (field(20, 2, b"\x02x"), "past the end"),
    (field(4, 2, varint((1 << 64) - 1)), "past the end"),
    (field(5, 0, b"\x80"), "past the end"),
    (field(5, 0, b"\x80" * 10 + b"\x00"), "64 bits"),
    (varint(1 << 32 | 8) + b"\x01", "32 bits"),
    (field(8, 2, delimited(b"\xff")), "UTF-8"),
    (field(9, 2, delimited(b"\xed\xa0\x80")), "UTF-8"),
])  # fmt: skip
def test_a_refusal_says_what_is_wrong(body: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        envelope.decode_body(body)
    with pytest.raises(ProtocolError):
        oracles_envelope.decode(body)


def test_groups_nest_to_the_depth_asked_for() -> None:
    assert fields(b"\x7b" * 3 + b"\x7c" * 3, 3) == [(15, 3, None)]
    with pytest.raises(ProtocolError, match="too deep"):
        fields(b"\x7b" * 3 + b"\x7c" * 3, 2)


# --- against Google's runtime -------------------------------------------------------------------------------------


def google_frame() -> type[Message]:
    """The `Frame` message as Google's runtime builds it from a descriptor, without a compiler."""
    proto = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="frame.proto", package="oracle", syntax="proto3")
    file.enum_type.add(name="Any").value.add(name="ZERO", number=0)
    message = file.message_type.add(name="Frame")
    kinds = {"kind": proto.TYPE_ENUM, "encoding": proto.TYPE_ENUM, "payload": proto.TYPE_BYTES}
    kinds |= dict.fromkeys(("version", "protocol"), proto.TYPE_UINT32)
    kinds |= dict.fromkeys(("request_id", "deadline_unix_ms"), proto.TYPE_UINT64)
    kinds |= dict.fromkeys(("traceparent", "tracestate"), proto.TYPE_STRING)
    for number, name in enumerate(Frame.__struct_fields__, 1):
        added = message.field.add(name=name, number=number, type=kinds[name], label=proto.LABEL_OPTIONAL)
        if kinds[name] == proto.TYPE_ENUM:
            added.type_name = ".oracle.Any"
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("oracle.Frame"))


GOOGLE = google_frame()


def google_reads(body: bytes) -> Frame | None:
    message = GOOGLE()
    try:
        message.ParseFromString(body)
    except DecodeError:
        return None
    return Frame(*(getattr(message, name) for name in Frame.__struct_fields__))


@given(frames)
def test_google_writes_the_same_bytes(frame: Frame) -> None:
    message = GOOGLE(**{name: getattr(frame, name) for name in Frame.__struct_fields__})
    assert envelope.encode(frame)[envelope.HEADER :] == message.SerializeToString(deterministic=True)


@given(bodies(widest=5, wrong_types=False), st.data())
def test_google_reads_the_same(body: bytes, data: st.DataObject) -> None:
    """Whole and cut anywhere, where none of the differences below comes in."""
    body = body[: data.draw(st.integers(0, len(body)))] if data.draw(st.booleans()) else body
    assert read(body) == google_reads(body)


GROUP_15, END_15 = b"\x7b", b"\x7c"


@pytest.mark.parametrize("body", [
    pytest.param(field(3, 2, delimited(b"\x01")), id="known field, wrong wire type"),
    pytest.param(field(1, 3, b"") + field(1, 4, b""), id="known field as a group"),
    pytest.param(field(5, 0, b"\xff" * 9 + b"\x02"), id="varint over 64 bits in ten bytes"),
    pytest.param(GROUP_15 * 100 + field(20, 0, b"\x01") + END_15 * 100, id="field inside the 100th group"),
])  # fmt: skip
def test_prost_refuses_what_google_takes(body: bytes) -> None:
    assert google_reads(body) is not None
    assert read(body) is None


@pytest.mark.parametrize("body", [
    pytest.param(field(5, 0, b"\x07", width=6), id="key of more than five bytes"),
    pytest.param(field(4, 2, delimited(b"x", width=6)), id="length of more than five bytes"),
])  # fmt: skip
def test_prost_takes_what_google_refuses(body: bytes) -> None:
    assert google_reads(body) is None
    assert read(body) is not None
