"""The multiplexer: every vector's verdict, any interleaving under any split, and a detector that never misjudges."""

import doctest
import json
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.errors import ProtocolError
from overlayd.proto import envelope, identity, mux
from overlayd.proto.envelope import Frame
from overlayd.proto.mux import EndpointMux, Legacy, NeedMore, Payload, ProbeAnswered, Verdict, json_wire

CONTRACT = json.loads((Path(__file__).parents[1] / "vectors/envelope.json").read_text())
SERVED = int(CONTRACT["served_protocol"], 16)
IDENTITY = b"an identity"

MUX = EndpointMux(
    legacy=json_wire, answer_probe=partial(identity.answer_probe, identity=IDENTITY), served=frozenset({SERVED})
)


def json_frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "little") + body


def payload_frame(payload: bytes, request_id: int) -> bytes:
    return envelope.encode(Frame(version=1, protocol=SERVED, payload=payload, request_id=request_id))


class Endpoint:
    """A daemon's read buffer in the plainest form: what came out of it, message by message."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.messages: list[tuple[str, object]] = []

    def feed(self, data: bytes) -> None:
        self.buffer += data
        while True:
            before = bytes(self.buffer)
            polled = MUX.poll(self.buffer)
            assert self.buffer == before  # poll never consumes
            match polled:
                case NeedMore():
                    return
                case Legacy():
                    end = 4 + int.from_bytes(self.buffer[:4], "little")
                    if len(self.buffer) < max(end, 4):
                        return
                    self.messages.append(("LEGACY", bytes(self.buffer[4:end])))
                    del self.buffer[:end]
                case ProbeAnswered(reply, consumed):
                    self.messages.append(("ANSWER", reply))
                    del self.buffer[:consumed]
                case Payload(frame, consumed):
                    kind = "PAYLOAD" if frame.kind == envelope.KIND_REQUEST else "DROP"
                    self.messages.append((kind, frame))
                    del self.buffer[:consumed]


@pytest.mark.parametrize(
    "vector", [v for v in CONTRACT["vectors"] if v["verdict"] != "OUTBOUND"], ids=lambda vector: vector["id"]
)
@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_every_inbound_vector_gets_its_verdict(vector: dict[str, str], step: int) -> None:
    wire = bytes.fromhex(vector["hex"])
    if vector["verdict"] == "LEGACY":
        assert MUX.poll(wire) == Legacy()
        return
    endpoint = Endpoint()
    try:
        for start in range(0, len(wire), step):
            endpoint.feed(wire[start : start + step])
    except ProtocolError:
        verdict = "CLOSE"
    else:
        verdict = "+".join(kind for kind, _ in endpoint.messages) or "WAIT"
    assert verdict == vector["verdict"]


def test_a_probe_is_answered_with_its_nonce_id_and_trace() -> None:
    wire = bytes.fromhex(next(v["hex"] for v in CONTRACT["vectors"] if v["id"] == "V03"))
    polled = MUX.poll(wire)
    assert isinstance(polled, ProbeAnswered)
    assert polled.consumed == len(wire)
    reply, _ = envelope.decode(polled.reply) or pytest.fail("incomplete reply")
    assert reply == Frame(
        version=1,
        kind=envelope.KIND_RESPONSE,
        protocol=envelope.PROTOCOL_PROBE,
        payload=bytes(range(32)) + IDENTITY,
        request_id=7,
        traceparent="00-abc-def-01",
        tracestate="v=1",
    )


@pytest.mark.parametrize("protocol", [0x0000, 0xAD01, 0xD0FF, 0x5350, SERVED + 1])
def test_a_protocol_that_is_not_served_is_named(protocol: int) -> None:
    with pytest.raises(ProtocolError, match=f"{protocol:#06x}"):
        MUX.poll(envelope.encode(Frame(version=1, protocol=protocol, request_id=1)))


def test_the_legacy_detector_wins_ties() -> None:
    always = EndpointMux(legacy=lambda _: Verdict.LEGACY, answer_probe=lambda _: b"", served=frozenset({SERVED}))
    assert always.poll(payload_frame(b"", 1)) == Legacy()
    never = EndpointMux(legacy=lambda _: Verdict.ENVELOPE, answer_probe=lambda _: b"", served=frozenset({SERVED}))
    assert never.poll(b"\x02") == Legacy()  # another first byte is the legacy wire's in any case
    assert never.poll(b"") == NeedMore()


@pytest.mark.parametrize("number", [0x0000, 0xB232, 0xAD01, 0x5350, 0x6FFF, 0x7F00, 0xEFFF, 0x10000])
def test_numbers_that_are_not_ours_to_serve(number: int) -> None:
    with pytest.raises(ValueError, match=f"{number:#06x}"):
        EndpointMux(legacy=json_wire, answer_probe=lambda _: b"", served=frozenset({number}))


def test_numbers_that_are_ours_to_serve() -> None:
    served = frozenset({0x7000, 0x7EFF, 0xF000, 0xFFFF})
    EndpointMux(legacy=json_wire, answer_probe=lambda _: b"", served=served)


# Our own sizes: those around where the low byte of a length is 1, and where the fifth byte decides.
json_bodies = st.one_of(
    st.sampled_from([b"1", b"{}", b'"' + b"a" * 255 + b'"', b" " * 256 + b"1", b"\t1", b"[" + b" " * 511 + b"]"]),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3).map(lambda value: json.dumps(value).encode()),
)


@given(
    st.lists(
        st.one_of(
            json_bodies.map(lambda body: ("LEGACY", body, json_frame(body))),
            st.binary(min_size=32, max_size=32).map(
                lambda nonce: ("ANSWER", nonce, envelope.encode(identity.probe_request(nonce)))
            ),
            st.tuples(st.binary(max_size=300), st.integers(0, (1 << 64) - 1)).map(
                lambda parts: ("PAYLOAD", parts, payload_frame(*parts))
            ),
        ),
        max_size=8,
    ),
    st.data(),
)
def test_any_interleaving_under_any_split_gives_the_same_messages(
    sent: list[tuple[str, object, bytes]], data: st.DataObject
) -> None:
    stream = b"".join(wire for _, _, wire in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    endpoint = Endpoint()
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        endpoint.feed(stream[start:end])
    assert endpoint.buffer == b""
    assert [kind for kind, _ in endpoint.messages] == [kind for kind, _, _ in sent]
    for (kind, got), (_, expected, _) in zip(endpoint.messages, sent, strict=True):
        if kind == "LEGACY":
            assert got == expected
        elif kind == "ANSWER":
            assert isinstance(got, bytes)
            assert envelope.decode_body(got[envelope.HEADER :]).payload == expected + IDENTITY  # type: ignore[operator]
        else:
            assert isinstance(got, Frame)
            assert (got.payload, got.request_id) == expected


# Every byte a JSON text can start with: white space, and the first characters of the six kinds of values.
JSON_STARTS = b' \t\r\n{["-0123456789tfn'


lengths = st.integers(1, mux.JSON_MAX_BODY)


@given(lengths | lengths.map(lambda length: (length - 1) & ~0xFF | 1), st.sampled_from(JSON_STARTS))
def test_no_json_frame_is_taken_for_an_envelope(length: int, first: int) -> None:
    wire = length.to_bytes(4, "little") + bytes((first,))
    verdicts = {json_wire(wire[:size]) for size in range(1, 6)}
    assert json_wire(wire) is Verdict.LEGACY
    assert verdicts <= {Verdict.LEGACY, Verdict.NEED_MORE}


@given(st.integers(0, envelope.MAX_BODY))
def test_no_envelope_is_taken_for_json(length: int) -> None:
    wire = b"\x01" + length.to_bytes(4, "little")
    assert [json_wire(wire[:size]) for size in range(1, 6)] == [Verdict.NEED_MORE] * 4 + [Verdict.ENVELOPE]


@given(st.binary(min_size=1, max_size=12))
def test_the_detector_never_changes_its_mind(start: bytes) -> None:
    settled: set[object] = set()
    for size in range(1, len(start) + 1):
        try:
            verdict = json_wire(start[:size])
        except ProtocolError:
            assert start[0] != 1 or size >= 5
            assert Verdict.ENVELOPE not in settled
            return
        if verdict is not Verdict.NEED_MORE:
            settled.add(verdict)
    assert len(settled) <= 1


def test_the_json_cap_is_judged_from_the_header() -> None:
    assert json_wire(mux.JSON_MAX_BODY.to_bytes(4, "little")) is Verdict.LEGACY
    with pytest.raises(ProtocolError, match="too large: 8388610"):
        json_wire((mux.JSON_MAX_BODY + 2).to_bytes(4, "little"))
    assert json_wire((mux.JSON_MAX_BODY + 1).to_bytes(4, "little")) is Verdict.NEED_MORE  # could be an envelope yet
    with pytest.raises(ProtocolError, match="too large: 8388609"):
        json_wire((mux.JSON_MAX_BODY + 1).to_bytes(4, "little") + b"{")


def test_the_example_runs() -> None:
    outcome = doctest.testmod(mux)
    assert outcome.attempted > 5
    assert outcome.failed == 0
