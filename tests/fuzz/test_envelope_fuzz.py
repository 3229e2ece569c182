"""A hundred thousand damaged envelopes: only documented verdicts, no other exception, no memory that stays."""

import random
from functools import partial

import oracles_envelope
import psutil
from damaged_envelopes import CONTRACT, SEEDS, damage

from overlayd.errors import ProtocolError
from overlayd.proto import envelope, identity
from overlayd.proto.envelope import Frame
from overlayd.proto.mux import EndpointMux, Legacy, NeedMore, Payload, ProbeAnswered, json_wire

SERVED = int(CONTRACT["served_protocol"], 16)

ROUNDS = 100_000
WARM_UP = 20_000
# Ours: what the allocator may keep for itself after the warm-up; to lose one small object a round takes 5 MB or more.
SLACK = 2 * 1024 * 1024


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
