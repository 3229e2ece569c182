"""A hundred thousand damaged envelopes: only documented verdicts, no other exception, no memory that stays."""

import json
import random
from functools import partial
from pathlib import Path

import oracles_envelope
import psutil

from overlayd.errors import ProtocolError
from overlayd.proto import envelope, identity
from overlayd.proto.envelope import Frame
from overlayd.proto.mux import EndpointMux, Legacy, NeedMore, Payload, ProbeAnswered, json_wire

CONTRACT = json.loads((Path(__file__).parents[1] / "vectors/envelope.json").read_text())
SEEDS = [bytes.fromhex(vector["hex"]) for vector in CONTRACT["vectors"]]
SERVED = int(CONTRACT["served_protocol"], 16)

ROUNDS = 100_000
WARM_UP = 20_000
# Ours: what the allocator may keep for itself after the warm-up; to lose one small object a round takes 5 MB or more.
SLACK = 2 * 1024 * 1024

# Bytes that mean something where they land: framing, lengths, keys, continuation bits, group marks.
TELLING = bytes([0x00, 0x01, 0x02, 0x08, 0x1A, 0x22, 0x42, 0x4A, 0x7B, 0x7C, 0x7F, 0x80, 0xFF])


def damage(rng: random.Random, wire: bytes) -> bytes:
    """`wire` with one to four changes; half of the time the length in the header is made right again."""
    damaged = bytearray(wire)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(damaged) + 1)
        match rng.randrange(5):
            case 0:
                damaged[at : at + 1] = bytes((rng.choice(TELLING),))
            case 1:
                damaged[at : at + 1] = bytes((rng.randrange(256),))
            case 2:
                damaged[at:at] = rng.randbytes(rng.randrange(6))
            case 3:
                del damaged[at : at + rng.randrange(6)]
            case 4:
                other = rng.choice(SEEDS)
                damaged[at:at] = other[5 : 5 + rng.randrange(20)]
    if len(damaged) > envelope.HEADER and rng.random() < 0.5:
        damaged[: envelope.HEADER] = b"\x01" + (len(damaged) - envelope.HEADER).to_bytes(4, "little")
    return bytes(damaged)


def test_damaged_envelopes_meet_documented_verdicts_only() -> None:
    rng = random.Random(20)
    mux = EndpointMux(
        legacy=json_wire, answer_probe=partial(identity.answer_probe, identity=b"me"), served=frozenset({SERVED})
    )
    memory = psutil.Process()
    seen: dict[str, int] = {}
    before = 0
    for turn in range(ROUNDS):
        if turn == WARM_UP:
            before = memory.memory_info().rss
        wire = damage(rng, rng.choice(SEEDS))
        try:
            polled = mux.poll(wire)
        except ProtocolError as error:
            assert str(error)
            seen["close"] = seen.get("close", 0) + 1
            continue
        assert isinstance(polled, NeedMore | Legacy | ProbeAnswered | Payload)
        seen[type(polled).__name__] = seen.get(type(polled).__name__, 0) + 1
        if isinstance(polled, Payload):
            assert 0 < polled.consumed <= len(wire)
            expected = Frame(*oracles_envelope.decode(wire[envelope.HEADER : polled.consumed]))
            assert polled.frame == expected
        elif isinstance(polled, ProbeAnswered):
            assert 0 < polled.consumed <= len(wire)
            assert b"me" in polled.reply
    assert set(seen) == {"close", "NeedMore", "Legacy", "ProbeAnswered", "Payload"}
    assert min(seen.values()) > ROUNDS // 1000  # no verdict is reached by accident only
    assert memory.memory_info().rss - before < SLACK
