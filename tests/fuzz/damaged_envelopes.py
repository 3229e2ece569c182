"""Envelopes of the contract, and damage to them."""

import json
import random
from pathlib import Path

from overlayd.proto import envelope

CONTRACT = json.loads((Path(__file__).parents[1] / "vectors/envelope.json").read_text())
SEEDS = [bytes.fromhex(vector["hex"]) for vector in CONTRACT["vectors"]]

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
